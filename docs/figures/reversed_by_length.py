"""Exact match of reversing by length, without attention and with: `python -m docs.figures.reversed_by_length RUN
RUN`."""

import json

import numpy as np

from docs import figures

COLOURS = {"one vector": "#9a9a9a", "attention": "#3f72af"}


def main(argv: list[str]) -> None:
    folders, out = figures.arguments(__spec__.name, __doc__, argv, runs=2)
    figure = figures.new(7, 3.2)
    axes = figure.subplots()
    for shift, (label, colour), folder in zip((-0.2, 0.2), COLOURS.items(), folders, strict=True):
        groups = json.loads((folder / "summary.json").read_text("utf-8"))["test"]["groups"]
        bars = axes.bar(np.arange(len(groups)) + shift, [of["exact_match"] for of in groups.values()], 0.38,
                        color=colour, label=label)  # fmt: skip
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=9)
        axes.set_xticks(range(len(groups)), groups)
    axes.set(ylim=(0, 1.15), ylabel="share of strings reversed")
    axes.legend(frameon=False, ncols=2, loc="upper right")
    figures.save(figure, out)


if __name__ == "__main__":
    figures.run(main)
