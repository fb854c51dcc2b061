"""The validation loss of several runs against their training time: `python -m docs.figures.loss_against_seconds BIGRAM
RNN TRANSFORMER`."""

import json

from docs import figures

HIGHEST = 3.2  # that is shown: the first losses, about 4, would press the rest together


def main(argv: list[str]) -> None:
    folders, out = figures.arguments(__spec__.name, __doc__, argv, runs=3)
    figure = figures.new()
    axes = figure.subplots()
    for folder, name in zip(folders, ("bigram", "RNN", "Transformer"), strict=True):
        lines = map(json.loads, (folder / "metrics.jsonl").read_text("utf-8").splitlines())
        points = [(line["seconds"], line["val_loss"]) for line in lines if "val_loss" in line]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name)
    axes.set(xlabel="seconds of training", ylabel="validation loss in nats a character")
    axes.set_ylim(top=HIGHEST)
    axes.legend()
    figures.save(figure, out)


if __name__ == "__main__":
    figures.run(main)
