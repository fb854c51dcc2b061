"""The tiles of attention's masks: which the kernels skip, which they mask, which are whole: `python -m
docs.figures.mask_tiles`."""

from typing import Any

import numpy as np
import torch

from docs import figures
from kernels.attention.reference import sees
from kernels.attention.tiles import Tiles, tiles

LENGTH, HEAD_SIZE, WINDOW = 1024, 64, 256
SKIPPED, MASKED, WHOLE = range(3)
NAMES = ("skipped", "masked", "whole")
COLOURS = ("#ffffff", "#f2a65a", "#3f72af")


def kinds(seen: np.ndarray, of: Tiles) -> np.ndarray:
    """Whether a tile of `seen` (queries, keys) is skipped, masked or whole, (tiles of queries, tiles of keys)."""
    rows, columns = len(seen) // of.block_m, seen.shape[1] // of.block_n
    cut = seen.reshape(rows, of.block_m, columns, of.block_n)
    return np.where(cut.all((1, 3)), WHOLE, np.where(cut.any((1, 3)), MASKED, SKIPPED))


def panel(axes: Any, title: str, window: int | None) -> None:
    """The tiles of the forward kernel in bfloat16 on an H100, each in its colour."""
    block_d = HEAD_SIZE  # a power of two: no padding
    of = tiles("forward", block_d, torch.bfloat16, "sm90", plain=window is None, way="plain")
    found = kinds(sees(LENGTH, LENGTH, True, window, torch.device("cpu")).numpy(), of)
    for (i, j), kind in np.ndenumerate(found):
        corner = (j * of.block_n, i * of.block_m)
        axes.add_patch(_rectangle(corner, of.block_n, of.block_m, COLOURS[kind]))
    axes.plot([0, LENGTH], [0, LENGTH], color="black", linewidth=1)
    if window:
        axes.plot([0, LENGTH - window], [window, LENGTH], color="black", linewidth=1)
    counts = ", ".join(f"{(found == kind).sum()} {name}" for kind, name in enumerate(NAMES))
    axes.set_title(f"{title}\n{counts}", fontsize=10)
    axes.set(xlim=(0, LENGTH), ylim=(LENGTH, 0), aspect="equal", xlabel="key")
    axes.set_xticks(range(0, LENGTH + 1, 256))
    axes.set_yticks(range(0, LENGTH + 1, 256))


def _rectangle(corner: tuple[int, int], width: int, height: int, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, width, height, facecolor=colour, edgecolor="#888888", linewidth=0.5)


def main(argv: list[str]) -> None:
    _, out = figures.arguments(__spec__.name, __doc__, argv, runs=0)
    figure = figures.new(7, 4.2)
    left, right = figure.subplots(1, 2, sharey=True)
    panel(left, "causal", None)
    panel(right, f"causal, window of {WINDOW}", WINDOW)
    left.set_ylabel("query")
    patches = [_rectangle((0, 0), 1, 1, colour) for colour in COLOURS]
    figure.legend(patches, NAMES, loc="outside lower center", ncols=3, frameon=False)
    figures.save(figure, out)


if __name__ == "__main__":
    figures.run(main)
