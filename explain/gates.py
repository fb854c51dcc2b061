"""The gates of an LSTM or a GRU over a text: what it forgets, takes in and shows, unit by unit."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from data.errors import UserError
from explain.found import Found, name_axis, new_figure, rounded, words
from explain.subject import Subject
from makemore.recurrent import GRU, LSTM

NAMES = {LSTM: ("input", "forget", "output"), GRU: ("reset", "update")}
SHOWN = 24  # units in the picture, from the lowest mean of the last gate to the highest


def gates(subject: Subject, tokens: Tensor) -> Found:
    """Each gate (layer, T, H), from 0 to 1. UserError for families without gates."""
    model: Any = subject.model
    if type(model) not in NAMES:
        raise UserError(f"{subject.name} is a {subject.family}, which has no gates; an lstm and a gru have")
    with torch.inference_mode():
        found = gates_of(model, tokens)
    names, tokens_shown = NAMES[type(model)], words(subject.tokenizer, tokens.tolist())
    L = len(found[names[0]])
    figure = new_figure(1.5 + len(names) * (1.2 + 0.16 * len(tokens)), 0.8 + 3.4 * L)
    grid = figure.subplots(L, len(names), sharex=True, squeeze=False)
    said = []
    for layer, row in enumerate(grid):
        units = spread_units(found[names[-1]][layer], SHOWN)
        for name, axes in zip(names, row, strict=True):
            values = found[name][layer]
            axes.imshow(values[:, units].T.numpy(), cmap="viridis", vmin=0, vmax=1, aspect="auto")
            axes.set_title(f"layer {layer + 1}: {name} gate", fontsize=9)
            axes.set_yticks(range(len(units)), units.tolist(), fontsize=6)
            name_axis(axes.xaxis, tokens_shown)
            said.append(f"layer {layer + 1}, {name} gate: mean {values.mean():.3f}, from {values.min():.3f} to "
                        f"{values.max():.3f}")  # fmt: skip
        row[0].set_ylabel("unit")
    numbers = {"tokens": tokens_shown} | {name: rounded(values.tolist()) for name, values in found.items()}
    return Found(numbers, figure, "\n".join(said))


def gates_of(model: Any, tokens: Tensor) -> dict[str, Tensor]:
    """The gates (layer, T, H) by name."""
    found = walk(model, tokens)
    return {name: found[name] for name in NAMES[type(model)]}


def walk(model: Any, tokens: Tensor) -> dict[str, Tensor]:
    """What the layers of a GRU or an LSTM compute, step by step from their own weights: the gates by name, the `hidden`
    vector, and of an LSTM the `memory`, (layer, T, H) each."""
    x, _ = model.embed(tokens[None], None)
    names = (*NAMES[type(model)], "hidden", *(["memory"] if isinstance(model, LSTM) else []))
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for layer, norm in zip(model.layers, model.norms, strict=True):
        of_input = F.linear(x[0], layer.weight_ih_l0, layer.bias_ih_l0)  # (T, G H)
        h = c = x.new_zeros(model.n_hidden)
        passed: list[Tensor] = []
        for row in of_input:
            of_hidden = F.linear(h, layer.weight_hh_l0, layer.bias_hh_l0)
            if isinstance(model, LSTM):
                i, f, g, o = (row + of_hidden).chunk(4)
                i, f, o = i.sigmoid(), f.sigmoid(), o.sigmoid()
                c = f * c + i * g.tanh()
                h = o * c.tanh()
                passed.append(torch.stack([i, f, o, h, c]))
            else:
                (rx, zx, nx), (rh, zh, nh) = row.chunk(3), of_hidden.chunk(3)
                r, z = (rx + rh).sigmoid(), (zx + zh).sigmoid()
                h = (1 - z) * (nx + r * nh).tanh() + z * h
                passed.append(torch.stack([r, z, h]))
        for name, values in zip(found, torch.stack(passed, 1), strict=True):  # (T, H) each
            found[name].append(values)
        x = norm(found["hidden"][-1][None], None)
    return {name: torch.stack(layers) for name, layers in found.items()}


def spread_units(values: Tensor, count: int) -> Tensor:
    """`count` units of `values` (T, H), from the one with the lowest mean to the one with the highest."""
    ordered = values.mean(0).argsort()
    return ordered[torch.linspace(0, len(ordered) - 1, min(count, len(ordered))).long()]
