"""The gates of a GRU over a name, and the name's loss with the reset in either place: `python -m docs.figures.gru_gates
RUN`."""

from collections.abc import Mapping

import numpy as np
import torch

from docs import figures
from engine.run.load import load_run
from explain.gates import spread_units, walk
from makemore.scratch.functions import Array, cross_entropy, linear, sigmoid

NAME = "alexandra"
UNITS = 16  # that are shown, from the one whose update gate is the lowest on average to the highest


def reset_before(weights: Mapping[str, Array], tokens: Array) -> Array:
    """The hidden vectors (T, H) with h reset before the product with U, as in Cho et al. 2014: a model that nobody
    trained here, so that only this picture has it."""
    W, U, b, c = (weights[f"layers.0.{part}_l0"] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    h, found = np.zeros(U.shape[1], U.dtype), []
    for x in weights["wte.weight"][tokens]:
        rx, zx, nx = np.split(W @ x + b, 3)
        rh, zh, _ = np.split(U @ h + c, 3)
        r, z = sigmoid(rx + rh)[0], sigmoid(zx + zh)[0]
        h = (1 - z) * np.tanh(nx + np.split(U @ (r * h) + c, 3)[2]) + z * h
        found.append(h)
    return np.array(found)


def main(argv: list[str]) -> None:
    (folder,), out = figures.arguments(__spec__.name, __doc__, argv, model="gru")
    run = load_run(folder, device="cpu")
    weights = {name: tensor.numpy() for name, tensor in run.model.state_dict().items()}
    special = run.tokenizer.special
    tokens = np.array([special.bos, *run.tokenizer.encode(NAME), special.eos])
    with torch.inference_mode():
        parts = {name: layers[0] for name, layers in walk(run.model, torch.from_numpy(tokens[:-1])).items()}
    units = spread_units(parts["update"], UNITS).tolist()
    figure = figures.new(7, 6)
    top, bottom = figure.subfigures(2, 1, height_ratios=[3, 2])
    grid = top.subplots(1, 2, sharey=True)
    for axes, gate, name in zip(grid, ("update", "reset"), ("update gate z", "reset gate r"), strict=True):
        shown = axes.imshow(parts[gate][:, units].T.numpy(), cmap="viridis", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(tokens) - 1), ["start", *NAME])
        axes.set_yticks(range(UNITS), units)
        axes.get_xticklabels()[0].set_rotation(90)
        axes.set(title=name, xlabel="letter read")
    grid[0].set_ylabel("unit")
    top.colorbar(shown, ax=grid, shrink=0.9)
    axes = bottom.subplots()
    places = np.arange(len(tokens) - 1)
    for before, shift, label in ((False, -0.2, "reset after the product, as trained"), (True, 0.2, "reset before it")):
        features = reset_before(weights, tokens[:-1]) if before else parts["hidden"].numpy()
        logits = linear(features, weights["lm_head.weight"], weights["lm_head.bias"])[0]
        losses = [cross_entropy(row[None], target[None])[0] for row, target in zip(logits, tokens[1:], strict=True)]
        axes.bar(places + shift, losses, 0.4, label=f"{label}: {np.mean(losses):.2f} nats")
    axes.set_xticks(places, [*NAME, "end"])
    axes.set(xlabel="letter to predict", ylabel="loss in nats")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    figures.save(figure, out)


if __name__ == "__main__":
    figures.run(main)
