"""The gates and the memory of an LSTM over a name, and how long the memory lasts: `python -m docs.figures.lstm_gates
RUN`."""

import numpy as np
import torch

from docs import figures
from engine.run.load import load_run
from explain.gates import spread_units, walk

NAME = "alexandra"
UNITS = 16  # that are shown, from the one whose forget gate is the lowest on average to the highest


def main(argv: list[str]) -> None:
    (folder,), out = figures.arguments(__spec__.name, __doc__, argv, model="lstm")
    run = load_run(folder, device="cpu")
    tokens = torch.tensor([run.tokenizer.special.bos, *run.tokenizer.encode(NAME).tolist()])
    with torch.inference_mode():
        parts = {name: layers[0] for name, layers in walk(run.model, tokens).items()}  # (T, H) each
    forget = parts["forget"].numpy()
    ordered, units = np.argsort(forget.mean(0)), spread_units(parts["forget"], UNITS).tolist()
    figure = figures.new(7, 8.4)
    top, bottom = figure.subfigures(2, 1, height_ratios=[7, 3])
    grid = top.subplots(2, 2, sharex=True, sharey=True)
    titles = {
        "input": "input gate i", "forget": "forget gate f", "output": "output gate o", "memory": "memory c",
    }  # fmt: skip
    for axes, (part, title) in zip(grid.flat, titles.items(), strict=True):
        look = (
            {"cmap": "RdBu", "vmin": -3, "vmax": 3} if part == "memory" else {"cmap": "viridis", "vmin": 0, "vmax": 1}
        )
        shown = axes.imshow(parts[part][:, units].T, aspect="auto", **look)
        axes.set_xticks(range(len(NAME) + 1), ["start", *NAME])
        axes.set_yticks(range(UNITS), units)
        axes.set_title(title)
        top.colorbar(shown, ax=axes)
    for axes in grid[1]:
        axes.get_xticklabels()[0].set_rotation(90)
        axes.set_xlabel("letter read")
    axes = bottom.subplots()
    back = np.arange(len(NAME) + 1)
    kept = np.concatenate([np.ones((1, forget.shape[1])), np.cumprod(forget[:0:-1], 0)])  # (T, H)
    most = ordered[-len(ordered) // 4 :]
    axes.plot(back, kept[:, most].mean(1), marker="o", label="trained: the quarter of units that keeps most")
    axes.plot(back, kept.mean(1), marker="o", label="trained: all units")
    for bias in (1, 0):
        axes.plot(back, (1 / (1 + np.exp(-bias))) ** back, "--", label=f"every forget gate at sigmoid({bias})")
    axes.set(xlabel="letters ago", ylabel="share still held")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    figures.save(figure, out)


if __name__ == "__main__":
    figures.run(main)
