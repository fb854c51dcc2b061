"""The hidden units of an MLP, as the articles count them: python -m docs.units."""

import json
import re
from pathlib import Path

import pytest
import torch

from docs import units
from makemore.config import MLPConfig
from makemore.mlp import MLP
from tests.helpers import ok, refused

SMALL = ("--n-embd", 4, "--n-hidden", 8, "--n-layer", 3, "--order", 3, "--steps", 2, "--batch-size", 2)


@pytest.fixture
def run(cli):
    """A small MLP's run."""
    ok(cli("train.py", "--model", "mlp", "--activation", "relu", "--norm", "batch", *SMALL, "--out", "m"))
    return Path("m")


def test_a_unit_that_is_negative_everywhere_is_dead_under_relu_alone():
    z = torch.tensor([[-1.0, 2.0, -3.0], [-0.5, -1.0, 1.0]])
    for activation, expected in (("relu", [True, False, False]), ("leaky_relu", [False] * 3), ("gelu", [False] * 3)):
        model = MLP(10, MLPConfig(order=1, activation=activation))
        assert units.dead(model, z).tolist() == expected


def test_the_spread_is_over_the_positions_not_over_the_units():
    model = MLP(10, MLPConfig(order=1, activation="relu"))
    assert units.spread(model, torch.tensor([[5.0, 100.0], [5.0, 100.0]])) == 0
    assert units.spread(model, torch.tensor([[1.0, 2.0], [3.0, 6.0]])) == 1.5


def test_it_reads_every_target_of_the_validation_text_once(run):
    loaded = units.load_mlp(run)
    found = units.before_activation(loaded)
    n_tokens = json.loads((run / "summary.json").read_text())["val_tokens"]
    assert [tuple(z.shape) for z in found] == [(n_tokens, 8)] * 3
    again = units.before_activation(loaded, loaded.model)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    other = units.before_activation(loaded, MLP(loaded.model.vocab_size, loaded.config.net))
    assert not torch.equal(found[0], other[0])


def test_the_command_prints_a_line_a_layer(cli, run):
    ended = ok(cli("-m docs.units", run))
    assert re.findall(r"^ +(\d) +[\d.e-]+ +[\d.]+$", ended.out, re.MULTILINE) == ["1", "2", "3"]
    assert re.search(r"^share of dead units in all layers: 0\.\d{3}$", ended.out, re.MULTILINE)


def test_the_initial_weights_are_those_that_the_training_began_with(cli):
    ok(cli("train.py", "--model", "mlp", "--lr", 1e-30, "--weight-decay", 0, *SMALL, "--out", "still"))
    run = units.load_mlp(Path("still"))
    begun, now = units.initial(run).state_dict(), run.model.state_dict()
    assert all(torch.equal(begun[name], now[name]) for name in now)
    assert ok(cli("-m docs.units", "still", "--initial")).out == ok(cli("-m docs.units", "still")).out


def test_another_family_is_refused(cli):
    ok(cli("train.py", "--model", "bigram", "--counts", "--out", "b"))
    refused(cli("-m docs.units", "b"), "b is a bigram", "--model mlp")
