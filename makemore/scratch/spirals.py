"""The first step of the course: a perceptron and a network of two layers learn which spiral a point lies on.

    python -m makemore.scratch.spirals [--steps 500] [--hidden 32] [--out spirals.npz]

Straight lines do not separate spirals, so the perceptron cannot learn them, however long it tries.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.errors import UserError, run_command
from makemore.scratch.commands import check_positive, write_arrays
from makemore.scratch.functions import Array, cross_entropy
from makemore.scratch.network import accuracy, downhill, one_layer, perceptron, scores, spirals, two_layers
from makemore.scratch.optimizers import SGD

SHOWN = 10  # lines of the table
EDGE, SIDE = 1.2, 120  # the plane of the picture, -EDGE to EDGE, as SIDE x SIDE points


@dataclass
class Options:
    """Train a perceptron and a network of two layers on spirals."""

    steps: int = 500
    """Times over the training points."""
    arms: int = 2
    """Spirals, each a class."""
    points: int = 600
    """Points to train on, and as many to test on."""
    noise: float = 0.01
    """Standard deviation of a point from its spiral, which is 1 long in the plane."""
    hidden: int = 32
    """Units of the first of the two layers."""
    lr: float = 1.0
    """Learning rate of the two layers, with a momentum of 0.9."""
    out: Path | None = None
    """Write the points, and over the steps the accuracies and what the models say of the whole plane (.npz)."""
    seed: int = 1
    """Same seed, same numbers."""


def main() -> int:
    import tyro

    options = tyro.cli(Options, prog=f"python -m {__package__}.spirals")
    check(options)
    arrays = learn(options)
    if options.out:
        write_arrays(options.out, arrays)
    return 0


def learn(options: Options) -> dict[str, Array]:
    """Train both models and print their accuracy; what the picture is drawn of."""
    rng = np.random.default_rng(options.seed)
    x, targets = spirals(options.points, options.arms, options.noise, rng)
    x_test, targets_test = spirals(options.points, options.arms, options.noise, rng)
    plane = np.stack(np.meshgrid(*[np.linspace(-EDGE, EDGE, SIDE)] * 2), -1).reshape(-1, 2)
    models = {
        "perceptron": one_layer(2, options.arms),
        "two layers": two_layers(2, options.hidden, options.arms, rng),
    }
    optimizer = SGD(options.lr, momentum=0.9)
    shown = [*dict.fromkeys(np.linspace(0, options.steps, SHOWN + 1).astype(int).tolist())]
    rows, planes = [], []
    print("accuracy on points not trained on\n  step  perceptron  two layers    loss")
    for step in range(options.steps + 1):
        if step in shown:
            loss = cross_entropy(scores(models["two layers"], x)[0], targets)[0]
            rows.append([accuracy(p, x_test, targets_test) for p in models.values()])
            planes.append([scores(p, plane)[0].argmax(1).reshape(SIDE, SIDE) for p in models.values()])
            print(f"{step:6}  {rows[-1][0]:10.3f}  {rows[-1][1]:10.3f}  {loss:6.3f}")
        if step < options.steps:
            order = rng.permutation(options.points)
            perceptron(models["perceptron"], x[order], targets[order])
            downhill(models["two layers"], cross_entropy, x, targets, optimizer)
    over_steps = {"steps": np.array(shown), "accuracy": np.array(rows), "planes": np.array(planes, np.int8)}
    return over_steps | {"points": x, "arms": targets, "edge": np.array(EDGE)}


def check(options: Options) -> None:
    """Refuse what cannot be trained."""
    check_positive(options, "steps", "points", "hidden", "lr")
    if options.arms < 2 or options.points < options.arms:
        raise UserError(f"--arms is {options.arms}; it has to be at least 2, and at most --points {options.points}")
    if options.noise < 0:
        raise UserError(f"--noise is {options.noise}; it has to be at least 0")


if __name__ == "__main__":
    sys.exit(run_command(main))
