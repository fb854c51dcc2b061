"""The next values of each series, with quantiles."""

from typing import Any

import numpy as np

from forecast.paths import Window, draw_paths
from forecast.subject import Subject


def look_ahead(subject: Subject, ahead: int, samples: int, levels: list[float], seed: int) -> list[dict[str, Any]]:
    """For each series its `column`, the number of its `values`, the `quantiles` at the `levels` (a list of `ahead`
    values for each) and the `median`."""
    windows = [Window(n, each.values) for n, each in enumerate(subject.series)]
    paths = draw_paths(subject.run, subject.scale, windows, ahead, samples, seed)
    return [
        {"column": each.name, "values": len(each.values)} | quantiles_of(drawn, levels)
        for each, drawn in zip(subject.series, paths, strict=True)
    ]


def quantiles_of(paths: np.ndarray, levels: list[float]) -> dict[str, Any]:
    """What the paths (samples, ahead) of a forecast say, for JSON."""
    quantiles, median = np.quantile(paths, levels, axis=0).tolist(), np.median(paths, axis=0).tolist()
    return {"levels": levels, "quantiles": quantiles, "median": median}


def as_table(found: dict[str, Any]) -> str:
    """A row a step, a column a quantile."""
    levels = [f"{level:g}" for level in found["levels"]]
    cells = [[f"{value:.5g}" for value in row] for row in found["quantiles"]]
    width = max(map(len, [*levels, *sum(cells, [])])) + 2
    rows = [f"{found['column']}, after {found['values']:,} values", "step" + "".join(f"{x:>{width}}" for x in levels)]
    rows += [f"{n:>4}" + "".join(f"{x:>{width}}" for x in row) for n, row in enumerate(zip(*cells, strict=True), 1)]
    return "\n".join(rows)
