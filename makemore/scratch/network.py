"""Points in the plane, and models of them with their gradients by hand: one layer, trained by Rosenblatt's rule or by
gradient, and two layers."""

from collections.abc import Callable

import numpy as np

from data.errors import UserError
from makemore.scratch.functions import Array, linear, tanh
from makemore.scratch.optimizers import Optimizer

Parameters = dict[str, Array]
Loss = Callable[[Array, Array], tuple[Array, Callable[..., Array]]]  # of scores and targets

TURNS = 1.25  # of a spiral: enough that no straight line cuts two of them apart


def spirals(n: int, arms: int, noise: float, rng: np.random.Generator) -> tuple[Array, Array]:
    """n points on `arms` spirals that wind TURNS times around the origin, and the arm of each: (n, 2) and (n,)."""
    arm = np.arange(n) % arms
    along = np.sqrt(rng.uniform(0.01, 1, n))  # 0.1 to 1; the root puts as many points on the long outer part
    angle = 2 * np.pi * (TURNS * along + arm / arms)
    points = along[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    return points + noise * rng.standard_normal((n, 2)), arm


def perceptron(p: Parameters, x: Array, targets: Array) -> int:
    """Rosenblatt's rule, once over points x (N, n): where the score W x + b of a wrong class is the highest, its row of
    W (V, n) loses x, and the right one gains it. Returns how many points were wrong. Rosenblatt 1958."""
    W, b, wrong = p["W"], p["b"], 0
    for point, target in zip(x, targets, strict=True):
        highest = (W @ point + b).argmax()
        if highest != target:
            W[highest] -= point
            b[highest] -= 1
            W[target] += point
            b[target] += 1
            wrong += 1
    return wrong


def one_layer(inputs: int, outputs: int) -> Parameters:
    """The parameters of a model that is linear, all 0."""
    return {"W": np.zeros((outputs, inputs)), "b": np.zeros(outputs)}


def two_layers(inputs: int, hidden: int, outputs: int, rng: np.random.Generator) -> Parameters:
    """The parameters of a network of two layers, each weight drawn with the variance of 1 / its layer's inputs."""
    return {
        "W1": rng.standard_normal((hidden, inputs)) / np.sqrt(inputs),
        "b1": rng.standard_normal(hidden),  # the units bend at different places
        "W2": rng.standard_normal((outputs, hidden)) / np.sqrt(hidden),
        "b2": np.zeros(outputs),
    }


def scores(p: Parameters, x: Array) -> tuple[Array, Callable[[Array], Parameters]]:
    """What the model p says of points x (N, n): (N, V). `back` gives the derivatives by the parameters, by name."""
    if "W" in p:
        y, back_linear = linear(x, p["W"], p["b"])
        return y, lambda dy: dict(zip(("W", "b"), back_linear(dy)[1:], strict=True))
    a, back_first = linear(x, p["W1"], p["b1"])  # (N, hidden)
    h, back_tanh = tanh(a)
    y, back_second = linear(h, p["W2"], p["b2"])

    def back(dy: Array) -> Parameters:
        dh, dW2, db2 = back_second(dy)  # the chain rule: from the last function to the first
        da = back_tanh(dh)
        _, dW1, db1 = back_first(da)
        return {"W1": dW1, "b1": db1, "W2": dW2, "b2": db2}

    return y, back


def downhill(p: Parameters, loss: Loss, x: Array, targets: Array, optimizer: Optimizer) -> float:
    """One step of the model p with points x (N, n): the scores and their loss, then the gradients backwards. The loss,
    as it was before. Raises UserError where it is no longer a number."""
    with np.errstate(over="ignore", invalid="ignore"):
        y, back_scores = scores(p, x)
        value, back_loss = loss(y, targets)
        optimizer.step(p, back_scores(back_loss()))
    if not np.isfinite(value):
        raise UserError(f"the loss is {value} after {optimizer.steps - 1} steps: the steps are too long, lower --lr")
    return float(value)


def accuracy(p: Parameters, x: Array, targets: Array) -> float:
    """The share of points whose highest score is that of their class."""
    return float((scores(p, x)[0].argmax(1) == targets).mean())
