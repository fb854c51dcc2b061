"""The functions in NumPy: every gradient beside torch's and beside finite differences, in float64."""

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from makemore.layers import BatchNorm
from makemore.scratch import functions as f
from makemore.scratch import optimizers, recurrent, tape
from makemore.scratch.soft_targets import soft_cross_entropy
from tests.conftest import ROOT

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 7, (3, 5))
TARGETS = RNG.integers(0, 6, 4)


def draw(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def torch_recurrent(kind: type[nn.Module]) -> Callable:
    """The layer of torch as a function of x, the first hidden vectors, and W, U, b and c."""

    def run(x, *rest):
        *hidden, W, U, b, c = rest
        layer = kind(x.shape[-1], U.shape[1], batch_first=True).double()
        first = [h[None] for h in hidden]
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        given = dict(zip(names, (W, U, b, c), strict=True))
        return torch.func.functional_call(layer, given, (x, first[0] if len(first) == 1 else tuple(first)))[0]

    return run


def torch_convolution(x, W, b):
    padded = F.pad(x.mT, (2 * (W.shape[2] - 1), 0))
    return F.conv1d(padded, W, b, dilation=2).mT


def torch_hinge(scores, targets):
    right = scores.gather(1, targets[:, None])
    wrong = F.one_hot(targets, scores.shape[1]) == 0
    return ((scores - right + 1).clamp_min(0) * wrong).sum() / max(1, len(scores))


def cell_sizes(gates: int, hidden: int = 1, B: int = 3, T: int = 4) -> list[np.ndarray]:
    n, H = 5, 2
    return [
        draw(B, T, n), *(draw(B, H) for _ in range(hidden)),
        draw(gates * H, n), draw(gates * H, H), draw(gates * H), draw(gates * H),
    ]  # fmt: skip


TAUGHT = draw(4, 6)
MEAN, VAR = draw(4), np.abs(draw(4)) + 0.1


def torch_two_taps(x, W, b):
    padded = F.pad(x, (0, 0, 2, 0))
    return F.linear(torch.cat([padded[:, :-2], x], -1), W, b)


def torch_heads(qkv):
    B, T, _ = qkv.shape
    q, k, v = qkv.view(B, T, 3, 2, -1).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, -1)


def torch_dropped_attention(q, k, v):
    T = q.shape[2]
    scores = (q @ k.mT / q.shape[3] ** 0.5).masked_fill(torch.ones(T, T).triu(1) > 0, -torch.inf)
    kept = torch.tensor(np.random.default_rng(7).random((*q.shape[:3], T)) >= 0.5)
    return scores.softmax(-1) * kept * 2 @ v


# Ours, torch's, the arguments that have a derivative, and what else both take.
CASES: dict[str, tuple] = {
    "linear": (f.linear, F.linear, [draw(2, 3, 4), draw(5, 4), draw(5)]),
    "linear without a bias": (f.linear, F.linear, [draw(3, 4), draw(5, 4)]),
    "linear of nothing": (f.linear, F.linear, [draw(0, 4), draw(5, 4), draw(5)]),
    "embedding": (lambda W: f.embedding(TOKENS, W), lambda W: F.embedding(torch.tensor(TOKENS), W), [draw(7, 4)]),
    "embedding of many rows": (
        lambda W: f.embedding(TOKENS, W), lambda W: F.embedding(torch.tensor(TOKENS), W), [draw(600, 2)],
    ),
    "layer norm": (f.layer_norm, lambda x, g, b: F.layer_norm(x, g.shape, g, b), [draw(2, 3, 4), draw(4), draw(4)]),
    "layer norm of one column": (
        f.layer_norm, lambda x, g, b: F.layer_norm(x, g.shape, g, b), [draw(2, 1), draw(1), draw(1)],
    ),
    "batch norm": (
        f.batch_norm, lambda x, g, b: F.batch_norm(x, None, None, g, b, True), [draw(6, 4), draw(4), draw(4)],
    ),
    "sigmoid": (f.sigmoid, torch.sigmoid, [draw(3, 4) * 40]),
    "tanh": (f.tanh, torch.tanh, [draw(3, 4)]),
    "relu": (f.relu, F.relu, [draw(3, 4)]),
    "leaky relu": (f.leaky_relu, F.leaky_relu, [draw(3, 4)]),
    "gelu": (f.gelu, lambda x: F.gelu(x, approximate="tanh"), [draw(3, 4) * 3]),
    "silu": (f.silu, F.silu, [draw(3, 4) * 3]),
    "softmax": (f.softmax, lambda x: x.softmax(-1), [draw(3, 4) * 100]),
    "cross-entropy": (
        lambda x: f.cross_entropy(x, TARGETS), lambda x: F.cross_entropy(x, torch.tensor(TARGETS)), [draw(4, 6) * 100],
    ),
    "soft cross-entropy": (
        lambda x: soft_cross_entropy(x, TAUGHT.astype(x.dtype), 2.0),
        lambda x: 4 * F.cross_entropy(x / 2, torch.tensor(TAUGHT / 2).softmax(-1)), [draw(4, 6) * 100],
    ),
    "mean squared error": (
        lambda y: f.mean_squared_error(y, np.ones(4)), lambda y: F.mse_loss(y, torch.ones(4).double()), [draw(4)],
    ),
    "hinge": (lambda x: f.hinge(x, TARGETS), lambda x: torch_hinge(x, torch.tensor(TARGETS)), [draw(4, 6)]),
    "causal convolution": (
        lambda *a: f.causal_convolution(*a, dilation=2), torch_convolution, [draw(2, 6, 3), draw(5, 3, 3), draw(5)],
    ),
    "causal attention": (
        f.causal_attention, lambda *a: F.scaled_dot_product_attention(*a, is_causal=True),
        [draw(2, 3, 5, 4), draw(2, 3, 5, 4), draw(2, 3, 5, 4)],
    ),
    "attention of one token": (
        f.causal_attention, lambda *a: F.scaled_dot_product_attention(*a, is_causal=True),
        [draw(1, 1, 1, 4), draw(1, 1, 1, 4), draw(1, 1, 1, 4)],
    ),
    "layer norm without a bias": (f.layer_norm, lambda x, g: F.layer_norm(x, g.shape, g), [draw(2, 3, 4), draw(4)]),
    "batch norm in evaluation": (
        lambda x, g, b: f.normalise(x, MEAN.astype(x.dtype), VAR.astype(x.dtype), g, b),
        lambda x, g, b: F.batch_norm(x, torch.tensor(MEAN), torch.tensor(VAR), g, b, False),
        [draw(6, 4), draw(4), draw(4)],
    ),
    "two taps": (lambda *a: f.two_taps(*a, dilation=2), torch_two_taps, [draw(2, 6, 3), draw(5, 6), draw(5)]),
    "two taps further back than the text": (
        lambda *a: f.two_taps(*a, dilation=2), torch_two_taps, [draw(2, 1, 3), draw(5, 6), draw(5)],
    ),
    "gate": (
        lambda x: f.gate(x, f.silu), lambda x: F.silu(x[..., :3]) * torch.sigmoid(x[..., 3:]), [draw(2, 4, 6)],
    ),
    "vectors beside each other": (f.beside, lambda x: x.flatten(1), [draw(3, 2, 4)]),
    "vectors beside each other, of nothing": (f.beside, lambda x: x.flatten(1), [draw(0, 2, 4)]),
    "positions": (f.plus_positions, lambda x, W: x + W[:3], [draw(2, 3, 4), draw(5, 4)]),
    "attention of heads": (lambda x: f.attention_of_heads(x, 2), torch_heads, [draw(2, 5, 18)]),
    "attention with dropout": (
        lambda *a: f.causal_attention(*a, 0.5, np.random.default_rng(7)), torch_dropped_attention,
        [draw(2, 3, 5, 4), draw(2, 3, 5, 4), draw(2, 3, 5, 4)],
    ),
    "rnn": (recurrent.rnn, torch_recurrent(nn.RNN), cell_sizes(1)),
    "gru": (recurrent.gru, torch_recurrent(nn.GRU), cell_sizes(3)),
    "gru of one step": (recurrent.gru, torch_recurrent(nn.GRU), cell_sizes(3, T=1, B=1)),
    "lstm": (recurrent.lstm, torch_recurrent(nn.LSTM), cell_sizes(4, hidden=2)),
}  # fmt: skip


def derivatives(function: Callable, arguments: list, dy: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    y, back = function(*arguments)
    found = back(dy)
    return y, [found] if isinstance(found, np.ndarray) else [x for x in found if x is not None]


def close(ours: np.ndarray, theirs: np.ndarray, within: float) -> bool:
    """Within this share of the largest number."""
    assert ours.shape == theirs.shape and ours.dtype == np.float64
    return bool(np.abs(ours - theirs).max(initial=0) <= within * max(1.0, np.abs(theirs).max(initial=0)))


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_torchs(name):
    ours, theirs, arguments = CASES[name]
    leaves = [torch.tensor(x, requires_grad=True) for x in arguments]
    expected = theirs(*leaves)
    dy = np.asarray(RNG.standard_normal(tuple(expected.shape)))
    expected.backward(torch.tensor(dy))
    y, found = derivatives(ours, arguments, dy)
    assert close(np.asarray(y), expected.detach().numpy(), 1e-12)
    assert len(found) == len(leaves)
    for derivative, leaf in zip(found, leaves, strict=True):
        assert close(derivative, leaf.grad.numpy(), 1e-12)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_differences(name):
    ours, _, arguments = CASES[name]
    y, _ = ours(*arguments)
    dy = np.asarray(RNG.standard_normal(np.shape(y)))
    _, found = derivatives(ours, arguments, dy)
    step = 1e-6
    for i, derivative in enumerate(found):
        direction = RNG.standard_normal(arguments[i].shape)
        moved = [[*arguments[:i], arguments[i] + sign * step * direction, *arguments[i + 1 :]] for sign in (1, -1)]
        slope = sum(sign * (ours(*each)[0] * dy).sum() for sign, each in zip((1, -1), moved, strict=True)) / (2 * step)
        exact = (derivative * direction).sum()
        assert abs(slope - exact) <= 1e-6 * max(1, abs(exact)), i


@pytest.mark.parametrize("name", CASES)
def test_a_function_may_be_called_again_before_its_backward(name):
    ours, _, arguments = CASES[name]
    y, back = ours(*arguments)
    dy = np.asarray(RNG.standard_normal(np.shape(y)))
    alone = back(dy)
    _, first = ours(*arguments)
    ours(*(2 * x + 1 for x in arguments))
    for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (alone, first(dy))), strict=True):
        assert (a is None and b is None) or np.array_equal(a, b)


@pytest.mark.parametrize("name", CASES)
def test_float32_stays_float32(name):
    ours, _, arguments = CASES[name]
    y, back = ours(*(x.astype(np.float32) for x in arguments))
    found = back(np.asarray(RNG.standard_normal(np.shape(y)), np.float32))
    for x in [y, *(found if isinstance(found, tuple) else (found,))]:
        assert x is None or name == "mean squared error" or x.dtype == np.float32


def test_a_loss_of_no_rows_is_zero():
    soft = lambda x, _: soft_cross_entropy(x, x, 2.0)  # noqa: E731
    for loss in (f.cross_entropy, f.hinge, soft):
        value, back = loss(np.zeros((0, 5)), np.zeros(0, int))
        assert value == 0 and back(1.0).shape == (0, 5)


def test_dropout_keeps_the_mean_and_drops_the_gradient_alike():
    y, back = f.dropout(np.ones(10_000), 0.25, np.random.default_rng(1))
    assert abs(y.mean() - 1) < 0.03 and abs((y == 0).mean() - 0.25) < 0.03
    assert np.array_equal(back(np.ones(10_000)), y)


def test_batch_norms_statistics_are_those_that_torch_keeps():
    x, norm = draw(6, 4), nn.BatchNorm1d(4, momentum=1.0).double()
    norm(torch.tensor(x))
    mean, var = f.statistics(x)
    assert close(mean, norm.running_mean.numpy(), 1e-12) and close(var, norm.running_var.numpy(), 1e-12)


def test_the_models_batch_norm_keeps_float64():
    x, norm = draw(2, 3, 4), BatchNorm(4).double()
    ours = norm(torch.tensor(x)).detach().numpy()
    assert close(ours.reshape(6, 4), f.batch_norm(x.reshape(6, 4), np.ones(4), np.zeros(4))[0], 1e-12)


def test_torch_stays_unloaded():
    loaded = "from makemore.scratch import functions, optimizers, recurrent, tape"
    code = f"import sys\n{loaded}\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


OPTIMIZERS = {
    "sgd": (optimizers.SGD(0.1), lambda p: torch.optim.SGD(p, 0.1)),
    "momentum": (optimizers.SGD(0.1, 0.9), lambda p: torch.optim.SGD(p, 0.1, 0.9)),
    "adagrad": (optimizers.Adagrad(0.1), lambda p: torch.optim.Adagrad(p, 0.1)),
    "rmsprop": (optimizers.RMSprop(0.1), lambda p: torch.optim.RMSprop(p, 0.1)),
    "adam": (optimizers.Adam(0.1), lambda p: torch.optim.Adam(p, 0.1)),
    "adamw": (optimizers.AdamW(0.1, weight_decay=0.3), lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.3)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_take_torchs_steps(name):
    ours, make = OPTIMIZERS[name]
    parameters = {"W": draw(3, 4)}
    theirs = torch.tensor(parameters["W"], requires_grad=True)
    optimizer = make([theirs])
    for _ in range(20):
        gradient = draw(3, 4)
        theirs.grad = torch.tensor(gradient)
        optimizer.step()
        ours.step(parameters, {"W": gradient})
        assert close(parameters["W"], theirs.detach().numpy(), 1e-12)


def test_adamw_leaves_vectors_and_embeddings_alone():
    parameters = {"W": np.ones((2, 2)), "b": np.ones(2), "wte": np.ones((2, 2))}
    optimizer = optimizers.AdamW(0.1, weight_decay=0.5, undecayed=frozenset({"wte"}))
    optimizer.step(parameters, {name: np.zeros_like(x) for name, x in parameters.items()})
    assert [float(x.max()) for x in parameters.values()] == [0.95, 1, 1]


def test_gradients_are_clipped_together():
    gradients = {"a": np.array([3.0]), "b": np.array([4.0])}
    assert optimizers.clip(gradients, 1.0) == 5
    assert np.allclose([gradients["a"][0], gradients["b"][0]], [0.6, 0.8])
    assert optimizers.clip(gradients, 2.0) == pytest.approx(1) and gradients["a"][0] == pytest.approx(0.6)


TAPED = {
    "sums and products": lambda a, b: (a * b + a - b / (a * a + 2.0)).sum(),
    "broadcast": lambda a, b: (a[:1] * b + b[:, :1] - 3.0).mean(),
    "matmul": lambda a, b: (a @ b.swapaxes(0, 1) @ b).tanh().sum(),
    "indices taken twice": lambda a, b: (a[np.array([0, 0, 2])] * b).sum(),
    "softmax": lambda a, b: ((a.exp() / a.exp().sum(1, keepdims=True)).log() * b).sum(),
    "sigmoid, powers, reshape": lambda a, b: ((a.sigmoid() ** 3.0).reshape(4, 3) @ b).sum(0).mean(),
    "concat": lambda a, b: (concat_of(a)([a, b * 2.0], 0) ** 2.0).sum(),
    "where": lambda a, b: where_of(a)(MASK, a, b * a).sum(),
    "numbers on the left": lambda a, b: (2.0 * a + (1.0 - b)).sum(),
}
MASK = np.arange(12).reshape(3, 4) % 2 == 0


def concat_of(x):
    return tape.concat if isinstance(x, tape.Tensor) else torch.cat


def where_of(x):
    return tape.where if isinstance(x, tape.Tensor) else lambda mask, *rest: torch.where(torch.tensor(mask), *rest)


class Torch(torch.Tensor):
    """torch's tensor with NumPy's word for a reduced axis that stays."""

    def sum(self, axis=None, keepdims=False):
        return super().sum() if axis is None else super().sum(axis, keepdim=keepdims)


@pytest.mark.parametrize("name", TAPED)
def test_the_tape_differentiates_as_torch(name):
    a, b = draw(3, 4), draw(3, 4)
    ours = [tape.Tensor(x) for x in (a, b)]
    theirs = [torch.tensor(x).as_subclass(Torch).requires_grad_() for x in (a, b)]
    value, expected = TAPED[name](*ours), TAPED[name](*theirs)
    value.backward()
    expected.backward()
    assert close(value.value, expected.detach().numpy(), 1e-12)
    for x, leaf in zip(ours, theirs, strict=True):
        assert leaf.grad is None or close(x.grad, leaf.grad.numpy(), 1e-12)


def test_what_is_used_twice_gets_both_derivatives():
    a = tape.Tensor(1.0)
    b = a + a
    (b + b).backward()
    assert a.grad == 4 and b.grad == 2


def test_a_long_chain_needs_no_recursion():
    x = y = tape.Tensor(1.0)
    for _ in range(5000):
        y = y + 1.0
    y.backward()
    assert x.grad == 1
