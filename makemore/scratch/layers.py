"""Layers of NumPy functions: what a model strings together.

A layer takes x and gives y and its backward, which takes the derivative by y and the gradients found so far, adds those
of its own parameters to them, and returns the derivative by x.
"""

from collections.abc import Callable, Mapping

import numpy as np

from makemore.scratch.functions import Array

Gradients = dict[str, Array]
Layer = Callable[[Array], tuple[Array, Callable[[Array, Gradients], Array]]]


def layer(function: Callable, parameters: Mapping[str, Array], *names: str) -> Layer:
    """`function(x, *parameters)` as a layer, those of its parameters being these; a name that a model has not (a bias
    that is left out) is left out."""
    used = [name for name in names if name in parameters]

    def run(x: Array) -> tuple[Array, Callable[[Array, Gradients], Array]]:
        y, back = function(x, *(parameters[name] for name in used))

        def back_(dy: Array, gradients: Gradients) -> Array:
            dx, *found = back(dy) if used else (back(dy),)
            for name, derivative in zip(used, found, strict=False):
                add(gradients, name, derivative)
            return dx

        return y, back_

    return run


def add(gradients: Gradients, name: str, derivative: Array) -> None:
    """Add to the gradient of a parameter, which may be used in several places."""
    gradients[name] = gradients[name] + derivative if name in gradients else derivative


def in_turn(*layers: Layer) -> Layer:
    """One layer after the other; their backwards the other way round."""

    def run(x: Array) -> tuple[Array, Callable[[Array, Gradients], Array]]:
        backs = []
        for one in layers:
            x, back = one(x)
            backs.append(back)

        def back_(dy: Array, gradients: Gradients) -> Array:
            for back in reversed(backs):
                dy = back(dy, gradients)
            return dy

        return x, back_

    return run


def residual(*layers: Layer) -> Layer:
    """x + layers(x): the derivative by x is that by the sum and what comes back through the layers."""
    inner = in_turn(*layers)

    def run(x: Array) -> tuple[Array, Callable[[Array, Gradients], Array]]:
        y, back = inner(x)
        return x + y, lambda dy, gradients: dy + back(dy, gradients)

    return run


def across(kept: Array, inner: Layer) -> Layer:
    """A layer that looks across positions, (B, T, C), for rows (N, C) of those positions that are not padding: where
    `kept` (B, T) holds. Padding, which stands at the end of a row, is zero inside."""
    if kept.all():
        return _reshaped(kept.shape, inner)

    def run(x: Array) -> tuple[Array, Callable[[Array, Gradients], Array]]:
        y, back = inner(_spread(x, kept))
        return y[kept], lambda dy, gradients: back(_spread(dy, kept), gradients)[kept]

    return run


def _spread(rows: Array, kept: Array) -> Array:
    """(N, C) -> (B, T, C), zero where nothing is kept."""
    spread = np.zeros((*kept.shape, rows.shape[-1]), rows.dtype)
    spread[kept] = rows
    return spread


def _reshaped(shape: tuple[int, ...], inner: Layer) -> Layer:
    """`across` without padding: nothing has to be copied."""

    def run(x: Array) -> tuple[Array, Callable[[Array, Gradients], Array]]:
        y, back = inner(x.reshape(*shape, -1))

        def back_(dy: Array, gradients: Gradients) -> Array:
            return back(dy.reshape(*shape, -1), gradients).reshape(x.shape)

        return y.reshape(-1, y.shape[-1]), back_

    return run
