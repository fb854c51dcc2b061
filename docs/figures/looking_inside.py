"""What four looks into models found: `python -m docs.figures.looking_inside LENS NEURONS TURNED DEFENDED GROUPS`, the
folders that they wrote."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from docs import figures

BLUE, RED, GREY = "#3f72af", "#d1495b", "0.6"
BY = {"current": ("the letter read", BLUE), "next": ("the next letter", GREY), "place": ("the place", RED)}


def main(argv: list[str]) -> None:
    folders, out = figures.arguments(__spec__.name, __doc__, argv, runs=5)
    lens, neurons = _read(folders[0], "lens"), _read(folders[1], "neurons")
    turned, defended = (_read(folder, "adversarial") for folder in folders[2:4])
    groups = _read(folders[4], "groups")["groups"]
    figure = figures.new(7, 7)
    (left, right), (below, last) = figure.subplots(2, 2, height_ratios=[2, 3])
    losses = [float(np.mean(layer)) for layer in lens["nll"]]
    left.bar(range(1, len(losses) + 1), losses, color=BLUE)
    left.set(title="lens: alexandra", xlabel="layer after which the head reads", ylabel="nats a letter")
    left.set_xticks(range(1, len(losses) + 1))
    units = neurons["units"]
    for by, (label, colour) in BY.items():
        at = [n for n, unit in enumerate(units) if unit["by"] == by]
        if at:
            right.bar(at, [units[n]["explained"][by] for n in at], color=colour, label=f"by {label}")
    right.set_xticks(range(len(units)), [str(unit["unit"]) for unit in units])
    right.set(title="neurons: the first eight", xlabel="unit", ylabel="variance explained", ylim=(0, 1.35))
    right.set_yticks([0, 0.5, 1])
    right.legend(loc="upper right", fontsize=8, frameon=False)
    for found, label, colour in ((turned, "as it is", RED), (defended, "--augment 0.2", BLUE)):
        rows = found["by_changes"]
        below.plot([row["changes"] for row in rows], [row["accuracy"] for row in rows], "o-", color=colour, label=label)
    below.set(title="adversarial: surnames", xlabel="characters changed", ylabel="accuracy left", ylim=(-0.03, 1))
    below.set_xticks([row["changes"] for row in turned["by_changes"]])
    below.legend(frameon=False)
    for n, row in enumerate(groups):
        last.plot(row["interval"], [n, n], color=BLUE, alpha=0.5)
        last.plot(row["figure"], n, "o", color=BLUE, markersize=4)
    last.set_yticks(range(len(groups)), [row["group"] for row in groups], fontsize=8)
    last.invert_yaxis()
    last.set(title="groups: languages", xlabel="accuracy, interval of 95%")
    figures.save(figure, out)


def _read(folder: Path, what: str) -> Any:
    return json.loads((folder / f"{what}.json").read_text("utf-8"))


if __name__ == "__main__":
    figures.run(main)
