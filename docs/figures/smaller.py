"""The losses of a small model alone and taught, and what the three say about a next letter:
`python -m docs.figures.smaller TEACHER ALONE TAUGHT`."""

import json

import numpy as np
import torch

from docs import figures
from engine.run.load import load_run
from engine.run.run import Run

BEGINNING = "mari"
SHOWN = 10  # letters, the likeliest to the teacher
COLOURS = {"teacher": "#444444", "alone": "#d1495b", "taught": "#3f72af"}


def next_letters(run: Run) -> np.ndarray:
    """The probability of each id after BEGINNING, (V,)."""
    with torch.inference_mode():
        logits, _ = run.model.read_last(torch.tensor([run.prompt_ids(BEGINNING)]))
    return logits[0].softmax(-1).numpy()


def main(argv: list[str]) -> None:
    folders, out = figures.arguments(__spec__.name, __doc__, argv, runs=3)
    figure = figures.new(7.4, 3.6)
    losses, letters = figure.subplots(1, 2)
    said = {}
    for label, folder in zip(COLOURS, folders, strict=True):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
        steps, values = [line["step"] for line in lines], [line["val_loss"] for line in lines]
        losses.plot(steps, values, ".-", color=COLOURS[label], label=label)
        said[label] = next_letters(load_run(folder, device="cpu"))
    losses.set(xlabel="step", ylabel="validation loss, nats a character", ylim=(2.2, 2.8))
    losses.legend(frameon=False)
    shown = said["teacher"].argsort()[::-1][:SHOWN]  # ids, which are those of the others too
    for n, (label, colour) in enumerate(COLOURS.items()):
        places = np.arange(SHOWN) + (n - 1) * 0.27
        letters.bar(places, said[label][shown], 0.27, color=colour)
    tokenizer = load_run(folders[0], device="cpu").tokenizer
    ends = tokenizer.special.eos
    letters.set_xticks(range(SHOWN), ["end" if i == ends else tokenizer.decode([int(i)]) for i in shown])
    letters.set(xlabel=f"the letter after {BEGINNING}", ylabel="probability")
    figures.save(figure, out)


if __name__ == "__main__":
    figures.run(main)
