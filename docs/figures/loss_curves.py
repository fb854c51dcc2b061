"""Validation losses over the steps, and the schedules: `python -m docs.figures.loss_curves RUN ...`
draws seven runs."""

import json

from docs import figures
from engine.config.flags import config_of
from engine.config.sections import SCHEDULES
from engine.training.schedules import lr_factor

STEPS = 300


def main(argv: list[str]) -> None:
    folders, out = figures.arguments(__spec__.name, __doc__, argv, runs=7)
    figure = figures.new(7, 3.8)
    losses, rates = figure.subplots(1, 2, width_ratios=[3, 2])
    for folder in folders:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
        steps, values = [line["step"] for line in lines], [line["val_loss"] for line in lines]
        losses.plot(steps, values, label=config_of(folder).optim.optimizer, linewidth=1.2)
    losses.set(title="validation loss", xlabel="step", ylabel="nats a character", ylim=(2.35, 3.4))
    losses.legend(fontsize=8)
    for schedule in SCHEDULES:
        factors = [lr_factor(schedule, step, STEPS, 100, 0.1) for step in range(STEPS)]
        rates.plot(range(STEPS), factors, label=schedule, linewidth=1.2)
    rates.set(title="learning rate, of its peak", xlabel="step", ylim=(0, 1.45))
    rates.legend(fontsize=8, loc="upper left", ncols=2)
    figures.save(figure, out)


if __name__ == "__main__":
    figures.run(main)
