"""Forecasts as a picture: what was before, the median, bands between quantiles, and what came where it is known."""

from pathlib import Path
from typing import Any

import numpy as np

from data.errors import warn
from data.series.columns import Series
from engine.run.results import write_picture

MOST_PANELS = 8
BLUE, GREY, RED = "#0b6e99", "#7a7a7a", "#c0392b"
LIGHTEST, DARKEST = 0.2, 0.55  # how much of the blue the widest band has, and one of no width


def draw(path: Path, series: list[Series], found: list[dict[str, Any]], ahead: int) -> None:
    """Write the PNG `path`: a panel for each of the first series. `found`: their forecasts, after how many `values`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = list(zip(series, found, strict=True))[:MOST_PANELS]
    if len(found) > len(shown):
        warn(f"the picture shows the first {MOST_PANELS} of {len(found):,} series")
    figure = Figure(figsize=(9, 3.2 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (each, forecast) in zip(figure.subplots(len(shown), squeeze=False)[:, 0], shown, strict=True):
        _panel(axes, each, forecast, ahead)
    write_picture(path, figure)


def _panel(axes: Any, series: Series, forecast: dict[str, Any], ahead: int) -> None:
    start, levels, quantiles = forecast["values"], forecast["levels"], forecast["quantiles"]
    before = np.arange(max(0, start - 5 * ahead), start)
    axes.plot(before - start + 1, series.values[before], color=GREY, lw=1.2, label="before")
    steps = np.arange(1, ahead + 1)
    bands = len(levels) // 2
    for n in range(bands):
        label = f"{levels[n]:g} to {levels[-1 - n]:g}"
        axes.fill_between(steps, quantiles[n], quantiles[-1 - n], color=shade(n, bands), lw=0, label=label)
    axes.plot(steps, forecast["median"], color=BLUE, lw=1.6, label="median")
    truth = series.values[start : start + ahead]
    if len(truth):
        axes.plot(steps[: len(truth)], truth, color=RED, lw=1.2, ls="--", label="what came")
    axes.axvline(0.5, color=GREY, lw=0.6)
    axes.set_title(series.name.encode("ascii", "replace").decode(), parse_math=False)
    axes.set_xlabel("step")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)  # beside the curve, not on it


def shade(n: int, bands: int) -> tuple[float, ...]:
    """The colour of the n-th of so many bands, from the widest: the narrower, the darker. None shines through, so that
    a band has the same colour in the legend."""
    from matplotlib.colors import to_rgb

    share = LIGHTEST + (DARKEST - LIGHTEST) * n / bands
    return tuple(1 - share * (1 - part) for part in to_rgb(BLUE))
