"""The families in NumPy: losses and every gradient beside torch's and beside finite differences, with padding."""

from functools import cache

import numpy as np
import pytest
import torch

from data.batches import IGNORE
from engine.config.families import FAMILIES
from engine.config.sections import Config
from engine.config.settings import make
from engine.registry import build_model
from makemore.scratch.models import MODELS, Model
from makemore.scratch.taped import TAPED

V = 13
SIZES = {"n_embd": 8, "n_hidden": 10, "n_layer": 2, "n_head": 2, "order": 3, "context": 12, "activation": "tanh"}
VARIANTS = {
    "bigram": ("bigram", {}),
    "mlp": ("mlp", {"norm": "none"}),
    "mlp with batch norm": ("mlp", {"norm": "batch", "activation": "relu"}),
    "mlp with layer norm": ("mlp", {"norm": "layer", "activation": "silu"}),
    "cnn": ("cnn", {"norm": "none", "n_layer": 6}),
    "cnn with batch norm": ("cnn", {"norm": "batch", "activation": "sigmoid"}),
    "rnn": ("rnn", {"norm": "none"}),
    "rnn with batch norm": ("rnn", {"norm": "batch"}),
    "lstm": ("lstm", {"norm": "none"}),
    "gru": ("gru", {"norm": "none", "n_layer": 1}),
    "gru with layer norm": ("gru", {"norm": "layer"}),
    "transformer": ("transformer", {"activation": "gelu_tanh", "norm": "layer", "n_layer": 1}),
    "transformer of 4 blocks": ("transformer", {"activation": "gelu_tanh", "norm": "layer", "n_layer": 4}),
    "transformer without biases": (
        "transformer", {"activation": "leaky_relu", "norm": "layer", "bias": False, "tie_head": False},
    ),
    "transformer with a head": ("transformer", {"activation": "gelu_tanh", "norm": "batch", "tie_head": False}),
}  # fmt: skip


def config_of(variant: str) -> Config:
    model, options = VARIANTS[variant]
    return make(Config, {"model": model} | SIZES | options)


def both(variant: str, dtype=np.float64, models=MODELS) -> tuple[Model, torch.nn.Module]:
    """A model in NumPy, and torch's with its weights, every one of them changed so that none is zero."""
    config = config_of(variant)
    ours = models[config.model](V, config.net, seed=1, dtype=dtype)
    rng = np.random.default_rng(2)
    for parameter in ours.parameters.values():
        parameter += rng.normal(0, 0.1, parameter.shape)
    theirs = build_model(config, V).to(torch.float64 if dtype == np.float64 else torch.float32)
    theirs.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in ours.state_dict().items()})
    return ours, theirs.train()


@cache
def padded() -> tuple[np.ndarray, np.ndarray]:
    """A batch with padding, and with a target in the middle that is not predicted."""
    rng = np.random.default_rng(3)
    tokens, targets = rng.integers(0, V, (2, 4, 7))
    for row, length in enumerate((7, 3, 1, 5)):
        targets[row, length:] = IGNORE
    targets[0, 2] = targets[3, 0] = IGNORE
    return tokens, targets


@cache
def whole() -> tuple[np.ndarray, np.ndarray]:
    tokens, targets = np.random.default_rng(4).integers(0, V, (2, 3, 6))
    return tokens, targets


@cache
def single() -> tuple[np.ndarray, np.ndarray]:
    return np.array([[7]]), np.array([[8]])


@cache
def nothing() -> tuple[np.ndarray, np.ndarray]:
    return np.array([[7, 8]]), np.full((1, 2), IGNORE)


BATCHES = {"padded": padded, "whole": whole, "single": single, "nothing": nothing}


def gradients_of(model: torch.nn.Module, tokens: np.ndarray, targets: np.ndarray) -> tuple[float, dict]:
    out = model(torch.from_numpy(tokens), torch.from_numpy(targets), want_logits=False)
    model.zero_grad()
    if out.nll_sum.requires_grad:
        out.nll_sum.backward()
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    return out.nll_sum.item(), {name: gradient.numpy() for name, gradient in found.items()}


ON_THE_TAPE = [v for v, (model, options) in VARIANTS.items() if model in TAPED and options.get("norm") != "batch"]
ENGINES = [(v, MODELS) for v in VARIANTS] + [(v, TAPED) for v in ON_THE_TAPE if "biases" not in v]
IDS = [f"{variant}, {'by hand' if models is MODELS else 'on the tape'}" for variant, models in ENGINES]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("variant", "models"), ENGINES, ids=IDS)
def test_loss_gradients_and_statistics_are_torch_s(variant, models, batch):
    ours, theirs = both(variant, models=models)
    tokens, targets = BATCHES[batch]()
    loss, back = ours.loss(tokens, targets)
    wanted, gradients = gradients_of(theirs, tokens, targets)
    assert loss == pytest.approx(wanted, rel=1e-12, abs=1e-13)
    found = back(1.0)
    assert found.keys() == gradients.keys() == ours.parameters.keys()
    largest = max(np.abs(g).max() for g in gradients.values())
    for name, gradient in found.items():
        assert gradient.dtype == np.float64 and gradient.shape == gradients[name].shape
        assert np.abs(gradient - gradients[name]).max() <= 1e-12 * max(largest, 1e-300), name
    for name, buffer in theirs.state_dict().items():
        assert np.allclose(ours.state_dict()[name], buffer.numpy(), rtol=1e-12, atol=1e-14), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_finite_differences(variant):
    ours, _ = both(variant)
    tokens, targets = padded()
    found, rng, step = ours.loss(tokens, targets)[1](1.0), np.random.default_rng(5), 1e-5
    for name, parameter in ours.parameters.items():
        direction = rng.choice([-1.0, 1.0], parameter.shape)
        parameter += step * direction
        above = ours.loss(tokens, targets)[0]
        parameter -= 2 * step * direction
        below = ours.loss(tokens, targets)[0]
        parameter += step * direction
        assert (above - below) / (2 * step) == pytest.approx((found[name] * direction).sum(), rel=1e-6, abs=1e-7), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_evaluation_are_torch_s(variant):
    ours, theirs = both(variant)
    ours.loss(*padded())[1]
    gradients_of(theirs, *padded())
    ours.eval(), theirs.eval()
    tokens, targets = whole()
    with torch.no_grad():
        out = theirs(torch.from_numpy(tokens), torch.from_numpy(targets))
    assert np.allclose(ours.logits(tokens), out.logits.numpy(), rtol=1e-11, atol=1e-12)
    assert ours.loss(tokens, targets)[0] == pytest.approx(out.nll_sum.item(), rel=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_stays_float32(variant):
    ours, _ = both(variant, np.float32)
    gradients = ours.loss(*padded())[1](0.5)
    assert {g.dtype for g in gradients.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("model", MODELS)
def test_two_forwards_before_a_backward_and_a_scale(model):
    ours, _ = both(next(v for v, (m, _) in VARIANTS.items() if m == model))
    alone = ours.loss(*whole())[1](1.0)
    _, first = ours.loss(*whole())
    ours.loss(*padded())
    again = first(3.0)
    assert all(np.allclose(again[name], 3 * alone[name], rtol=1e-12, atol=1e-13) for name in alone)


@pytest.mark.parametrize("model", MODELS)
def test_dropout_is_drawn_in_training_alone(model):
    if model == "bigram":
        return
    config = make(Config, {"model": model} | SIZES | {"dropout": 0.5})
    config.net.activation = "gelu_tanh"
    ours = MODELS[model](V, config.net, seed=1, dtype=np.float64)
    assert ours.loss(*whole())[0] != ours.loss(*whole())[0]
    ours.eval()
    assert ours.loss(*whole())[0] == ours.loss(*whole())[0]


def test_every_trained_family_has_a_twin():
    assert MODELS.keys() == FAMILIES.keys() - {"ngram"}


def test_weights_of_other_shapes_are_refused():
    ours, _ = both("gru")
    with pytest.raises(ValueError, match=r"wte.weight has the shape \(1,\)"):
        ours.load_state_dict(ours.state_dict() | {"wte.weight": np.zeros(1)})
    with pytest.raises(ValueError, match="more is in one of the two"):
        ours.load_state_dict(ours.state_dict() | {"more": np.zeros(1)})
