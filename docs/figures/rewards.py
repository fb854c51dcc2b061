"""Reward and distinct answers over the steps, held to the start and free: `python -m docs.figures.rewards RUN RUN`."""

import json

from docs import figures

COLOURS = {"held to the start": "#3f72af", "free": "#d1495b"}


def main(argv: list[str]) -> None:
    folders, out = figures.arguments(__spec__.name, __doc__, argv, runs=2)
    figure = figures.new(7, 3.4)
    left, right = figure.subplots(1, 2)
    for (label, colour), folder in zip(COLOURS.items(), folders, strict=True):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
        steps = [line["step"] for line in lines]
        left.plot(steps, [line["val_reward"] for line in lines], ".-", color=colour, label=label)
        right.plot(steps, [line["val_distinct"] for line in lines], ".-", color=colour)
    left.set(xlabel="step", ylabel="reward", ylim=(-0.03, 1.05))
    right.set(xlabel="step", ylabel="share of answers that are distinct", ylim=(-0.03, 1.05))
    left.legend(loc="lower right", frameon=False)
    figures.save(figure, out)


if __name__ == "__main__":
    figures.run(main)
