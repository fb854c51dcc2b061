"""The gates and the memory of an LSTM over a name, and how long the memory lasts: `python -m docs.figures.lstm_gates
RUN`."""

from collections.abc import Mapping

import numpy as np

from docs import figures
from engine.run.load import load_run
from makemore.scratch.functions import Array, sigmoid

NAME = "alexandra"
UNITS = 16  # that are shown, from the one whose forget gate is the lowest on average to the highest


def read(weights: Mapping[str, Array], tokens: Array) -> dict[str, Array]:
    """The gates i, f and o and the memory after each of `tokens` (T,): (T, H) each."""
    W, U, b, c = (weights[f"layers.0.{part}_l0"] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    h = memory = np.zeros(U.shape[1], U.dtype)
    found = []
    for x in weights["wte.weight"][tokens]:
        i, f, g, o = np.split(W @ x + b + U @ h + c, 4)
        i, f, g, o = sigmoid(i)[0], sigmoid(f)[0], np.tanh(g), sigmoid(o)[0]
        memory = f * memory + i * g
        h = o * np.tanh(memory)
        found.append((i, f, o, memory))
    return dict(zip("ifoc", map(np.array, zip(*found, strict=True)), strict=True))


def main(argv: list[str]) -> None:
    (folder,), out = figures.arguments(__spec__.name, __doc__, argv, model="lstm")
    run = load_run(folder, device="cpu")
    weights = {name: tensor.numpy() for name, tensor in run.model.state_dict().items()}
    parts = read(weights, np.array([run.tokenizer.special.bos, *run.tokenizer.encode(NAME)]))
    ordered = np.argsort(parts["f"].mean(0))
    units = ordered[np.linspace(0, len(ordered) - 1, UNITS).astype(int)]
    figure = figures.new(7, 8.4)
    top, bottom = figure.subfigures(2, 1, height_ratios=[7, 3])
    grid = top.subplots(2, 2, sharex=True, sharey=True)
    titles = {"i": "input gate i", "f": "forget gate f", "o": "output gate o", "c": "memory c"}
    for axes, (part, title) in zip(grid.flat, titles.items(), strict=True):
        look = {"cmap": "RdBu", "vmin": -3, "vmax": 3} if part == "c" else {"cmap": "viridis", "vmin": 0, "vmax": 1}
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
    kept = np.concatenate([np.ones((1, parts["f"].shape[1])), np.cumprod(parts["f"][:0:-1], 0)])  # (T, H)
    most = ordered[-len(ordered) // 4 :]
    axes.plot(back, kept[:, most].mean(1), marker="o", label="trained: the quarter of units that keeps most")
    axes.plot(back, kept.mean(1), marker="o", label="trained: all units")
    for bias in (1, 0):
        axes.plot(back, sigmoid(np.array(float(bias)))[0] ** back, "--", label=f"every forget gate at sigmoid({bias})")
    axes.set(xlabel="letters ago", ylabel="share still held")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    figures.save(figure, out)


if __name__ == "__main__":
    figures.run(main)
