"""Exact match of a model that answers instructions, by task: `python -m docs.figures.instruct_tasks RUN`."""

import json

from docs import figures

COLOURS = ("#3f72af", "#f2a65a", "#9a9a9a")


def main(argv: list[str]) -> None:
    (folder,), out = figures.arguments(__spec__.name, __doc__, argv)
    test = json.loads((folder / "summary.json").read_text("utf-8"))["test"]
    groups = {"tasks": test, **test["groups"]}
    figure = figures.new(7, 5.2)
    axes = figure.subplots()
    names: list[str] = []
    for (group, found), colour in zip(groups.items(), COLOURS, strict=True):
        ordered = sorted(found["tasks"].items(), key=lambda item: -item[1]["exact_match"])
        places = range(len(names), len(names) + len(ordered))
        bars = axes.barh(places, [row["exact_match"] for _, row in ordered], color=colour, label=group)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
        names += [name for name, _ in ordered]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.1), xlabel="share of answers that are exactly right")
    axes.legend(loc="lower right", frameon=False)
    figures.save(figure, out)


if __name__ == "__main__":
    figures.run(main)
