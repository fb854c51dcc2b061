"""The confusion matrix of a classifier on its test examples: `python -m docs.figures.confusion RUN`."""

import json

import numpy as np

from docs import figures


def main(argv: list[str]) -> None:
    (folder,), out = figures.arguments(__spec__.name, __doc__, argv)
    test = json.loads((folder / "summary.json").read_text("utf-8"))["test"]
    labels, counts = list(test["classes"]), np.array(test["confusion"])
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)  # of each actual class
    figure = figures.new(6.4, 6.0)
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=90)
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="predicted", ylabel="actual")
    axes.tick_params(length=0)
    for row, column in np.argwhere(counts):
        colour = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=9, color=colour)
    figures.save(figure, out)


if __name__ == "__main__":
    figures.run(main)
