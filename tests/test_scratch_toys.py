"""The first step of the course: points in the plane, by their commands and by their gradients."""

from pathlib import Path

import numpy as np
import pytest

from makemore.scratch import network
from makemore.scratch.functions import cross_entropy
from makemore.scratch.optimizers import SGD
from tests.helpers import ok, refused
from tests.scratch_helpers import difference, loads_torch


def straight(n: int, margin: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points that a line separates with this margin, their classes, and the line: (3,), of length 1, the last number
    the bias."""
    line = np.array([0.6, -0.48, 0.64])
    x = rng.uniform(-1, 1, (20 * n, 2))
    sides = x @ line[:2] + line[2]
    kept = np.flatnonzero(np.abs(sides) > margin)[:n]
    return x[kept], (sides[kept] > 0).astype(int), line


def test_rosenblatts_rule():
    p, points, right = network.one_layer(2, 3), np.array([[2.0, -1.0]]), np.array([1])
    assert network.perceptron(p, points, right) == 1  # all scores are 0, and class 0 is taken
    assert p["W"].tolist() == [[-2, 1], [2, -1], [0, 0]] and p["b"].tolist() == [-1, 1, 0]
    assert network.perceptron(p, points, right) == 0 and p["b"].tolist() == [-1, 1, 0]


@pytest.mark.parametrize("margin", [0.3, 0.1, 0.03])
def test_a_perceptron_errs_at_most_as_often_as_its_theorem_says(margin):
    x, targets, line = straight(200, margin, np.random.default_rng(3))
    p, mistakes = network.one_layer(2, 2), [1]
    while mistakes[-1] and len(mistakes) < 1000:
        mistakes.append(network.perceptron(p, x, targets))
    assert network.accuracy(p, x, targets) == 1
    extended = np.hstack([x, np.ones((len(x), 1))])
    gamma = (np.where(targets, 1, -1) * (extended @ line)).min()
    assert sum(mistakes) <= (np.linalg.norm(extended, axis=1).max() / gamma) ** 2  # Novikoff 1962


def test_a_perceptron_never_learns_spirals():
    x, targets = network.spirals(200, 2, 0.0, np.random.default_rng(0))
    p = network.one_layer(2, 2)
    assert min(network.perceptron(p, x, targets) for _ in range(100)) > 40


@pytest.mark.parametrize("p", [network.one_layer(2, 3), network.two_layers(2, 4, 3, np.random.default_rng(1))])
def test_the_networks_gradients_are_differences(p):
    x, targets = network.spirals(12, 3, 0.1, np.random.default_rng(2))

    def loss() -> float:
        return cross_entropy(network.scores(p, x)[0], targets)[0]

    y, back = network.scores(p, x)
    for name, gradient in back(cross_entropy(y, targets)[1]()).items():
        for index in np.ndindex(gradient.shape):
            slope = difference(loss, p[name], index)
            assert abs(slope - gradient[index]) < 1e-7, (name, index)


def test_a_step_downhill_lowers_the_loss_of_a_network():
    x, targets = network.spirals(60, 3, 0.0, np.random.default_rng(2))
    p, optimizer = network.two_layers(2, 8, 3, np.random.default_rng(1)), SGD(0.1)
    losses = [network.downhill(p, cross_entropy, x, targets, optimizer) for _ in range(20)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


def numbers(line: str) -> list[float]:
    return [float(word) for word in line.split() if word.replace(".", "").isdigit()]


def test_two_layers_learn_spirals_and_a_perceptron_does_not(cli):
    lines = ok(cli("-m makemore.scratch.spirals", "--points", 300, "--out", "s.npz")).out.splitlines()
    step, one, two, loss = numbers(lines[-1])
    assert step == 500 and one < 0.8 and two > 0.98 and loss < 0.02
    with np.load("s.npz") as file:
        assert file["accuracy"].shape == (11, 2) and file["accuracy"][-1].round(3).tolist() == [one, two]
        assert len({*file["accuracy"][:, 0]}) > 3  # the perceptron's line moves for ever
        assert file["planes"].shape[:2] == (11, 2) and set(np.unique(file["planes"])) == {0, 1}


def test_the_toys_show_what_each_loss_is_for(cli):
    out = ok(cli("-m makemore.scratch.toys", "--out", "t.npz")).out
    found = {line.strip()[:14].strip(): numbers(line[16:]) for line in out.splitlines()}
    assert found["the wave"][0] <= found["two layers"][0] < 0.1 * found["line"][0] <= found["their mean"][0]
    assert found["squared error"][0] < 0.93 < 0.97 < min(found["hinge"][0], found["cross-entropy"][0])
    assert found["hinge"][1] < 0.05 and found["cross-entropy"][1] == found["squared error"][1] == 1
    with np.load("t.npz") as file:
        assert file["two_layers"].shape == file["line_x"].shape and file["hinge"].shape == (2, 3)


@pytest.mark.parametrize("command", ["spirals", "toys"])
def test_the_same_seed_gives_the_same_file(cli, command):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        ok(cli(f"-m makemore.scratch.{command}", "--steps", 5, "--seed", seed, "--out", f"{name}.npz"))
    a, b, c = (Path(f"{name}.npz").read_bytes() for name in "abc")
    assert a == b and a != c


@pytest.mark.parametrize(
    ("command", "flags", "words"),
    [
        ("spirals", ["--arms", 1], ["--arms is 1", "at least 2"]),
        ("spirals", ["--arms", 9, "--points", 8], ["--arms is 9", "at most --points 8"]),
        ("spirals", ["--noise", -1], ["--noise is -1"]),
        ("spirals", ["--steps", 0], ["--steps is 0", "above 0"]),
        ("spirals", ["--lr", "inf"], ["--lr is inf"]),
        ("spirals", ["--out", "picture.png"], ["--out is picture.png", ".npz"]),
        ("spirals", ["--step", 3], ["--step"]),
        ("toys", ["--out", "none/t.npz", "--steps", 1], ["none/t.npz"]),
        ("toys", ["--noise", -1], ["--noise is -1"]),
        ("toys", ["--points", 0], ["--points is 0"]),
        ("toys", ["--lr", 50], ["the steps are too long", "--lr"]),
    ],
)
def test_mistakes_of_the_user(cli, command, flags, words):
    refused(cli(f"-m makemore.scratch.{command}", *flags), *words)


@pytest.mark.parametrize("command", ["spirals", "toys"])
def test_torch_stays_unloaded(command):
    assert not loads_torch(f"makemore.scratch.{command}", "--steps", 2)


def test_what_finds_torch_finds_it():
    assert loads_torch("makemore.bigram")
