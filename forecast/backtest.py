"""Forecasts of what is known already: windows of the test part, beside the two naive forecasts."""

from typing import Any

import numpy as np

from data.errors import UserError
from data.series.columns import Series
from forecast.ahead import quantiles_of
from forecast.paths import Window, draw_paths
from forecast.scores import (
    best_season,
    coverage,
    mean_absolute_error,
    naive_error,
    seasonal_naive,
    weighted_quantile_loss,
)
from forecast.subject import Subject


def backtest(
    subject: Subject, windows: int, ahead: int, samples: int, levels: list[float], season: int | None, seed: int
) -> list[dict[str, Any]]:
    """For each series its `column`, `windows`, `season`, the scores of the `model` and of both naive forecasts, and the
    `last` window's forecast. The windows begin evenly spread over the test part, each after all that comes before
    it. Raises UserError where that is too short for one."""
    origins = [_origins(each, n, windows, ahead) for each, n in zip(subject.series, subject.borders, strict=True)]
    starts = [
        Window(n, each.values[:origin])
        for n, (each, begins) in enumerate(zip(subject.series, origins, strict=True)) for origin in begins
    ]  # fmt: skip
    drawn = iter(draw_paths(subject.run, subject.scale, starts, ahead, samples, seed))
    found = []
    for each, border, begins in zip(subject.series, subject.borders, origins, strict=True):
        paths = np.stack([next(drawn) for _ in begins])  # (windows, samples, ahead)
        past = each.values[:border]
        m = _season(season, past, each.name) or best_season(past, ahead)
        truth = np.stack([each.values[origin : origin + ahead] for origin in begins])
        scored = _Scored(truth, np.array(levels), naive_error(past, m))
        naive = {
            name: scored.of(np.stack([seasonal_naive(each.values[:origin], ahead, steps) for origin in begins]))
            for name, steps in (("season before", m), ("last value", 1))
        }
        found.append(
            {"column": each.name, "windows": len(begins), "ahead": ahead, "season": m, "levels": levels}
            | {"model": scored.of(np.median(paths, axis=1), np.quantile(paths, levels, axis=1)), **naive}
            | {"last": {"values": begins[-1]} | quantiles_of(paths[-1], levels)}
        )
    return found


class _Scored:
    """Scores of forecasts of `truth` (windows, ahead)."""

    def __init__(self, truth: np.ndarray, levels: np.ndarray, unit: float | None):
        self.truth, self.levels, self.unit = truth, levels, unit

    def of(self, forecast: np.ndarray, quantiles: np.ndarray | None = None) -> dict[str, float | None]:
        """Of a `forecast` (windows, ahead) and its `quantiles` (Q, windows, ahead); None: of a point alone."""
        error = mean_absolute_error(forecast, self.truth)
        points = np.broadcast_to(forecast, (len(self.levels), *forecast.shape)) if quantiles is None else quantiles
        scores = {
            "mae": error,
            "mase": None if self.unit is None else error / self.unit,
            "wql": weighted_quantile_loss(points, self.levels, self.truth),
        }
        return scores if quantiles is None else scores | {"coverage": coverage(points[0], points[-1], self.truth)}


def _origins(series: Series, border: int, windows: int, ahead: int) -> list[int]:
    """Where the windows of a series begin."""
    last = len(series.values) - ahead
    if last < border or border < 1:
        known = len(series.values) - border
        raise UserError(f"the test part of '{series.name}' has {known:,} values: fewer than --ahead {ahead}")
    return np.unique(np.linspace(border, last, windows).astype(int)).tolist()


def _season(season: int | None, past: np.ndarray, name: str) -> int | None:
    if season is not None and season > len(past):
        raise UserError(f"--season {season} is longer than the {len(past):,} values of '{name}' before its test part")
    return season


def as_table(found: dict[str, Any]) -> str:
    """A row for the model and for each naive forecast."""
    low, high = found["levels"][0], found["levels"][-1]
    rows = [
        f"{found['column']}: {found['windows']:,} windows of {found['ahead']} steps, a season of {found['season']}",
        f"{'':<14}{'MAE':>10}{'MASE':>8}{'WQL':>9}  from {low:g} to {high:g}",
    ]
    for name in ("model", "season before", "last value"):
        scores = found[name]
        inside = f"  {scores['coverage']:.1%} of the values" if "coverage" in scores else ""
        rows.append(
            f"{name:<14}{scores['mae']:>10.4g}{_cell(scores['mase'], 3):>8}{_cell(scores['wql'], 4):>9}{inside}"
        )
    return "\n".join(rows)


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
