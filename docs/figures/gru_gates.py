"""The gates of a GRU over a name, and the name's loss with the reset in either place: `python -m docs.figures.gru_gates
RUN`."""

from collections.abc import Mapping

import numpy as np

from docs import figures
from engine.run.load import load_run
from makemore.scratch.functions import Array, cross_entropy, linear, sigmoid

NAME = "alexandra"
UNITS = 16  # that are shown, from the one whose update gate is the lowest on average to the highest


def read(weights: Mapping[str, Array], tokens: Array, before: bool = False) -> tuple[Array, Array, Array]:
    """The hidden vector, the update gate and the reset gate after each of `tokens` (T,): (T, H) each. `before`: h is
    reset before the product with U, as in Cho et al. 2014, instead of after it."""
    W, U, b, c = (weights[f"layers.0.{part}_l0"] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    h, found = np.zeros(U.shape[1], U.dtype), []
    for x in weights["wte.weight"][tokens]:
        rx, zx, nx = np.split(W @ x + b, 3)
        rh, zh, nh = np.split(U @ h + c, 3)
        r, z = sigmoid(rx + rh)[0], sigmoid(zx + zh)[0]
        n = np.tanh(nx + np.split(U @ (r * h) + c, 3)[2] if before else nx + r * nh)
        h = (1 - z) * n + z * h
        found.append((h, z, r))
    hidden, update, reset = (np.array(each) for each in zip(*found, strict=True))
    return hidden, update, reset


def main(argv: list[str]) -> None:
    (folder,), out = figures.arguments(__spec__.name, __doc__, argv, model="gru")
    run = load_run(folder, device="cpu")
    weights = {name: tensor.numpy() for name, tensor in run.model.state_dict().items()}
    special = run.tokenizer.special
    tokens = np.array([special.bos, *run.tokenizer.encode(NAME), special.eos])
    hidden, update, reset = read(weights, tokens[:-1])
    ordered = np.argsort(update.mean(0))
    units = ordered[np.linspace(0, len(ordered) - 1, UNITS).astype(int)]
    figure = figures.new(7, 6)
    top, bottom = figure.subfigures(2, 1, height_ratios=[3, 2])
    grid = top.subplots(1, 2, sharey=True)
    for axes, gate, name in zip(grid, (update, reset), ("update gate z", "reset gate r"), strict=True):
        shown = axes.imshow(gate[:, units].T, cmap="viridis", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(tokens) - 1), ["start", *NAME])
        axes.set_yticks(range(UNITS), units)
        axes.get_xticklabels()[0].set_rotation(90)
        axes.set(title=name, xlabel="letter read")
    grid[0].set_ylabel("unit")
    top.colorbar(shown, ax=grid, shrink=0.9)
    axes = bottom.subplots()
    places = np.arange(len(tokens) - 1)
    for before, shift, label in ((False, -0.2, "reset after the product, as trained"), (True, 0.2, "reset before it")):
        features = hidden if not before else read(weights, tokens[:-1], before)[0]
        logits = linear(features, weights["lm_head.weight"], weights["lm_head.bias"])[0]
        losses = [cross_entropy(row[None], target[None])[0] for row, target in zip(logits, tokens[1:], strict=True)]
        axes.bar(places + shift, losses, 0.4, label=f"{label}: {np.mean(losses):.2f} nats")
    axes.set_xticks(places, [*NAME, "end"])
    axes.set(xlabel="letter to predict", ylabel="loss in nats")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    figures.save(figure, out)


if __name__ == "__main__":
    figures.run(main)
