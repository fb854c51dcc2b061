"""Regression and classification on toy data: what the mean squared error, the hinge loss and the cross-entropy make of
the same models.

    python -m makemore.scratch.toys [--steps 1000] [--out toys.npz]

Regression: a line and a network of two layers learn a wave. Classification: one layer learns two classes by each of
the three losses; a part of one class lies far from the border, on the right side of it.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import UserError, run_command
from makemore.scratch.commands import check_positive, write_arrays
from makemore.scratch.functions import Array, cross_entropy, hinge, mean_squared_error
from makemore.scratch.network import Loss, Parameters, accuracy, downhill, one_layer, scores, two_layers
from makemore.scratch.optimizers import SGD

LINE = np.linspace(-1, 1, 201)[:, None]  # where the pictures show what was learned


@dataclass
class Options:
    """Learn a wave and two classes, with three losses."""

    steps: int = 1000
    """Steps downhill, each with all points."""
    points: int = 200
    """Points to train on, and as many to test on."""
    noise: float = 0.1
    """Standard deviation of a point from the wave."""
    hidden: int = 16
    """Units of the first of the two layers."""
    lr: float = 0.1
    """Learning rate, with a momentum of 0.9."""
    out: Path | None = None
    """Write points and what was learned of them (.npz)."""
    seed: int = 1
    """Same seed, same numbers."""


def wave(n: int, noise: float, rng: np.random.Generator) -> tuple[Array, Array]:
    """n places between -1 and 1, and sin(5 x) there with noise: (n, 1) and (n, 1)."""
    x = rng.uniform(-1, 1, (n, 1))
    return x, np.sin(5 * x) + noise * rng.standard_normal((n, 1))


def clouds(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """n points of two classes, (n, 2) and (n,): class 0 around (-1, 0), class 1 around (1, 0), but a third of class 1
    far away, around (6, 0)."""
    targets = np.arange(n) % 2
    middle = np.where(targets == 0, -1.0, 1.0)[:, None] * np.array([1.0, 0.0])
    middle[1::6] = 6, 0
    return middle + 0.35 * rng.standard_normal((n, 2)), targets


def squared_error(y: Array, targets: Array) -> Any:
    """The mean squared error of scores (N, V) that are to be 1 for the right class and 0 for the others."""
    return mean_squared_error(y, np.eye(y.shape[1])[targets])


LOSSES: dict[str, Loss] = {"squared error": squared_error, "hinge": hinge, "cross-entropy": cross_entropy}


def descend(p: Parameters, loss: Loss, x: Array, targets: Array, options: Options) -> None:
    """Train a model for all steps, each with all points."""
    optimizer = SGD(options.lr, momentum=0.9)
    for _ in range(options.steps):
        downhill(p, loss, x, targets, optimizer)


def regression(options: Options, rng: np.random.Generator) -> dict[str, Array]:
    """Print the test errors of a line and of two layers beside the smallest possible one; what to draw of them."""
    x, y = wave(options.points, options.noise, rng)
    x_test, y_test = wave(options.points, options.noise, rng)
    models = {"line": one_layer(1, 1), "two layers": two_layers(1, options.hidden, 1, rng)}
    print("regression: mean squared error on points not trained on")
    print(f"  {'their mean':14} {mean_squared_error(np.full_like(y_test, y.mean()), y_test)[0]:.4f}")
    drawn = {"wave": np.hstack([x, y]), "line_x": LINE}
    for name, p in models.items():
        descend(p, mean_squared_error, x, y, options)
        print(f"  {name:14} {mean_squared_error(scores(p, x_test)[0], y_test)[0]:.4f}")
        drawn[name] = scores(p, LINE)[0]
    print(f"  {'the wave':14} {mean_squared_error(np.sin(5 * x_test), y_test)[0]:.4f}")
    return drawn


def classification(options: Options, rng: np.random.Generator) -> dict[str, Array]:
    """Print what each loss makes of one layer; what to draw of it."""
    (x, targets), (x_test, targets_test) = (clouds(options.points, rng) for _ in range(2))
    drawn = {"clouds": x, "classes": targets}
    print("classification: accuracy on points not trained on, share of the training points that still have a gradient")
    for name, loss in LOSSES.items():
        p = one_layer(2, 2)
        descend(p, loss, x, targets, options)
        pulling = np.abs(loss(scores(p, x)[0], targets)[1]()).max(1) > 0
        print(f"  {name:14} {accuracy(p, x_test, targets_test):.3f}  {pulling.mean():.3f}")
        drawn[name] = np.hstack([p["W"], p["b"][:, None]])
    return drawn


def main() -> int:
    import tyro

    options: Any = tyro.cli(Options, prog=f"python -m {__package__}.toys")
    check_positive(options, "steps", "points", "hidden", "lr")
    if options.noise < 0:
        raise UserError(f"--noise is {options.noise}; it has to be at least 0")
    rng = np.random.default_rng(options.seed)
    drawn = regression(options, rng) | classification(options, rng)
    if options.out:
        write_arrays(options.out, {name.replace(" ", "_").replace("-", "_"): x for name, x in drawn.items()})
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
