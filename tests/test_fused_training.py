"""The faster ways of a training step on a CPU give what the layers give, and are taken only in their place."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import makemore.compiled
import makemore.mlp_looked_up
import makemore.recurrent_scan
from engine.registry import build_model
from engine.training.optimizers import AdamW
from kernels.step.elements import activated
from kernels.step.scan import scan
from makemore.base import keep_bits
from makemore.tables import looked_up, looked_up_windows
from nanogpt.attention import rotary_cos_sin, rotate
from nanogpt.fused import fused_turn
from tests.helpers import configure

pytestmark = pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc")), reason="no C compiler here")
FIXED = settings(max_examples=40, deadline=None, derandomize=True)
SIZES = st.integers(1, 9)
VOCAB = 9
HALF = {"rtol": 3e-2, "atol": 6e-2}  # of bfloat16, which is rounded after each of torch's operations
SMALL = {"n_embd": 6, "n_hidden": 10, "n_layer": 1, "order": 3, "activation": "tanh", "context": 8}


def gradients(loss: Tensor, of: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, of, retain_graph=True))


def assert_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU])
@given(B=SIZES, T=SIZES, C=SIZES, H=st.sampled_from([1, 5, 16, 63, 64, 70, 130]), seed=st.integers(0, 99))
@FIXED
def test_a_scan_is_the_layer(kind, B, T, C, H, seed):
    torch.manual_seed(seed)
    layer, library = kind(C, H, batch_first=True), makemore.compiled.functions()
    x, first = torch.randn(B, T, C, requires_grad=True), torch.randn(B, H, requires_grad=True)
    given, mix = [x, first, *layer.parameters()], torch.randn(B, T, H)
    y, last = layer(x, first[None])
    gates = nn.functional.linear(x, layer.weight_ih_l0, layer.bias_ih_l0)
    z, final = scan(library, gates, first, layer.weight_hh_l0, layer.bias_hh_l0)
    assert_close([z, final], [y, last[0]])
    theirs, ours = (y * mix).sum() + last.square().sum(), (z * mix).sum() + final.square().sum()
    expected = gradients(theirs, given)
    assert_close(gradients(ours, given), expected)
    assert_close(gradients(ours, given), expected)  # a second time: nothing that backward needs was overwritten


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU])
def test_the_gradient_of_a_scan_may_be_an_expanded_one(kind):
    layer, library = kind(4, 16, batch_first=True), makemore.compiled.functions()
    x, first = torch.randn(5, 3, 4), torch.zeros(5, 16)
    gates = nn.functional.linear(x, layer.weight_ih_l0, layer.bias_ih_l0)
    y, _ = scan(library, gates, first, layer.weight_hh_l0, layer.bias_hh_l0)
    parameters = list(layer.parameters())
    assert_close(gradients(y.sum(), parameters), gradients(layer(x, first[None])[0].sum(), parameters))


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU])
def test_a_scan_on_two_threads_is_that_on_one_to_the_bit(kind):
    layer, library, kept = kind(4, 24, batch_first=True), makemore.compiled.functions(), torch.get_num_threads()
    x, results = torch.randn(37, 6, 4), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        gates = nn.functional.linear(x, layer.weight_ih_l0, layer.bias_ih_l0).detach()
        results.append(scan(library, gates, torch.zeros(37, 24), layer.weight_hh_l0, layer.bias_hh_l0)[0])
    torch.set_num_threads(kept)
    assert torch.equal(*results)


@given(B=SIZES, T=SIZES, C=SIZES, H=SIZES, order=st.integers(1, 5), bias=st.booleans())
@FIXED
def test_looked_up_products_are_the_products(B, T, C, H, order, bias):
    torch.manual_seed(0)
    wte, layer = nn.Embedding(VOCAB, C), nn.Linear(order * C, H, bias=bias)
    tokens = torch.randint(VOCAB, (B, order - 1 + T))
    vectors = wte(tokens)
    theirs = layer(torch.cat([vectors[:, i : i + T] for i in range(order)], -1))
    ours = looked_up_windows(wte, tokens, order, layer.weight, layer.bias, makemore.compiled.functions())
    given, mix = [wte.weight, *layer.parameters()], torch.randn(B, T, H)
    assert_close([ours], [theirs])
    assert_close(gradients((ours * mix).sum(), given), gradients((theirs * mix).sum(), given))
    if order == 1:
        assert_close([looked_up(wte, tokens, layer.weight, layer.bias)], [theirs])


def test_a_token_outside_of_the_vocabulary_is_an_error():
    wte, layer = nn.Embedding(VOCAB, 3), nn.Linear(6, 4)
    for token in (VOCAB, -1):
        with pytest.raises(IndexError, match="vocabulary of 9"):
            looked_up_windows(wte, torch.tensor([[1, token]]), 2, layer.weight, None, makemore.compiled.functions())


MODELS = {
    "rnn": {"model": "rnn"},
    "rnn of two layers, with dropout and a norm": {"model": "rnn", "n_layer": 2, "dropout": 0.3, "norm": "layer"},
    "gru": {"model": "gru"},
    "gru with n-grams": {"model": "gru", "hash_ngrams": 3, "hash_rows": 32},
    "mlp": {"model": "mlp"},
    "mlp of three layers, with dropout": {"model": "mlp", "n_layer": 3, "dropout": 0.3},
    "mlp with n-grams and a batch norm": {"model": "mlp", "hash_ngrams": 3, "hash_rows": 32, "norm": "batch"},
}


def step_of(options: dict, fused: bool, carried: bool) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """The loss, the gradients and the state of one training step, after one batch where `carried`."""
    config = configure(**{**SMALL, **options})
    torch.manual_seed(0)
    model = build_model(config, VOCAB).train()
    if not fused:
        keep_bits(model)
    tokens = torch.randint(6, VOCAB, (2, 5, 8))
    state = model(tokens[0]).state if carried else None
    torch.manual_seed(1)
    out = model(tokens[1], tokens[1].roll(-1, 1), state, want_logits=False)
    dense = [p for name, p in model.named_parameters() if not name.startswith("ngrams")]
    return out.nll_sum, gradients(out.nll_sum, dense), out.state


@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("options", MODELS.values(), ids=list(MODELS))
def test_a_fused_training_step_is_the_written_one(options, carried):
    ours, theirs = (step_of(options, fused, carried) for fused in (True, False))
    assert_close([ours[0]], [theirs[0]])
    assert_close(ours[1], theirs[1])
    assert_close([*ours[2].values()], [*theirs[2].values()])


def ways(monkeypatch) -> list[str]:
    """A list in which each fused way that is taken leaves its name."""
    taken: list[str] = []
    for module, name in ((makemore.recurrent_scan, "scan"), (makemore.mlp_looked_up, "looked_up_windows"),
                         (makemore.recurrent_scan, "looked_up")):  # fmt: skip
        original = getattr(module, name)

        def noted(*args, name=name, original=original):
            taken.append(name)
            return original(*args)

        monkeypatch.setattr(module, name, noted)
    return taken


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"model": "rnn"}, ["looked_up", "scan"]),
        ({"model": "gru", "n_layer": 2}, ["looked_up", "scan", "scan"]),
        ({"model": "gru", "dropout": 0.1}, ["scan"]),  # what the layer reads is no row of the table
        ({"model": "mlp"}, ["looked_up_windows"]),
        ({"model": "rnn", "activation": "relu"}, []),
        ({"model": "rnn", "cells": "written"}, []),
        ({"model": "lstm"}, []),  # oneDNN's is as fast
    ],
    ids=str,
)
def test_which_models_train_in_a_fused_way(monkeypatch, options, expected):
    taken = ways(monkeypatch)
    step_of(options, fused=True, carried=False)
    assert taken == expected
    step_of(options, fused=False, carried=False)
    assert taken == expected


@pytest.mark.parametrize("model", ["rnn", "mlp"])
def test_what_is_not_training_or_not_the_layer_is_left_to_torch(monkeypatch, model):
    config = configure(model=model, **SMALL)
    tokens, built = torch.randint(6, VOCAB, (5, 8)), build_model(config, VOCAB)
    taken = ways(monkeypatch)
    built.eval()(tokens)
    with torch.no_grad():
        built.train()(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        built(tokens)
    copy = build_model(config, VOCAB).double()
    copy(tokens)
    with FlopCounterMode(display=False) as counter:
        built(tokens)
    assert counter.get_total_flops()  # what watches torch's operations sees them all
    with FakeTensorMode():
        build_model(config, VOCAB)(torch.ones(5, 8, dtype=torch.int64))
    built.layers[0].register_forward_hook(lambda *_: None)
    built(tokens)
    assert not taken
    monkeypatch.setattr(makemore.compiled, "functions", lambda: None)  # nothing compiles them here
    build_model(config, VOCAB)(tokens)
    assert not taken


def test_adamw_takes_torchs_steps_to_the_bit():
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((37, 5), (3,), (64, 64))]
    sides = []
    for kind in (AdamW, torch.optim.AdamW):
        params, random = [nn.Parameter(p.clone()) for p in start], torch.Generator().manual_seed(1)
        groups = [{"params": params[:2], "weight_decay": 0.3}, {"params": params[2:], "weight_decay": 0.0}]
        optimizer = kind(groups, lr=1e-2, betas=(0.8, 0.95), fused=True)
        for step in range(6):
            for n, p in enumerate(params):
                p.grad = None if n == step % 4 else torch.randn(p.shape, generator=random)
            optimizer.param_groups[0]["lr"] = 1e-2 / (step + 1)
            optimizer.step()
        state = [optimizer.state[p][name] for p in params for name in ("exp_avg", "exp_avg_sq", "step")]
        sides.append([p.detach() for p in params] + state)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(*sides, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("normed", [True, False])
@given(B=SIZES, T=SIZES, heads=st.integers(1, 4), others=st.integers(0, 2), half=st.sampled_from([1, 3, 16, 20]))
@FIXED
def test_turned_heads_are_normed_and_rotated(dtype, normed, B, T, heads, others, half):
    torch.manual_seed(0)
    whole = torch.randn(B, T, heads + others, 2 * half).to(dtype).requires_grad_()
    x, (cos, sin) = whole[:, :, :heads], rotary_cos_sin(torch.arange(T), 2 * half)
    attention = SimpleNamespace(training=True, fused=True, qk_norm=normed)
    exact = torch.nn.functional.rms_norm(x, (2 * half,)) if normed else x
    theirs, ours = rotate(exact, cos, sin), fused_turn(attention, x, (cos, sin))
    mix, near = torch.randn(theirs.shape).to(dtype), dict(rtol=1e-4, atol=1e-5) if dtype == torch.float32 else HALF
    torch.testing.assert_close(ours, theirs, **near)
    torch.testing.assert_close(*(gradients((y * mix).sum(), [whole])[0] for y in (ours, theirs)), **near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["swiglu", "relu2"])
@given(B=SIZES, C=st.integers(1, 40))
@FIXED
def test_fused_activations_are_the_activations(dtype, activation, B, C):
    torch.manual_seed(0)
    x = (3 * torch.randn(2, B, 2 * C)).to(dtype).requires_grad_()
    theirs = x[..., :C] * torch.nn.functional.silu(x[..., C:]) if activation == "swiglu" else x.relu().square()
    ours = activated(makemore.compiled.functions(), activation, x)
    mix, near = torch.randn(theirs.shape).to(dtype), dict(rtol=1e-4, atol=1e-5) if dtype == torch.float32 else HALF
    torch.testing.assert_close(ours, theirs, **near)
    torch.testing.assert_close(*(gradients((y * mix).sum(), [x])[0] for y in (ours, theirs)), **near)


@pytest.mark.parametrize("size", [1, 40])
def test_closed_gates_are_closed(size):
    library, layer = makemore.compiled.functions(), nn.GRU(4, size, batch_first=True)
    closed = torch.tensor([-1000.0, -100, -89, -88, -87]).repeat_interleave(size)
    x = torch.cat([torch.ones_like(closed), closed])[None].requires_grad_()
    y = activated(library, "swiglu", x)
    assert_close([y, *gradients(y.sum(), [x])], [torch.zeros_like(y), torch.zeros_like(x)])
    x, first = 1000 * torch.randn(5, 6, 4), torch.randn(5, size)
    gates = nn.functional.linear(x, layer.weight_ih_l0, layer.bias_ih_l0)
    y, _ = scan(library, gates, first, layer.weight_hh_l0, layer.bias_hh_l0)
    assert_close([y], [layer(x, first[None])[0]])


TRANSFORMERS = {
    "the default": {},
    "relu2, grouped heads": {"activation": "relu2", "n_kv_head": 1},
    "without norms of queries and keys": {"qk_norm": False},
    "dropout": {"dropout": 0.2},
    "GPT-2's parts": {"positions": "learned", "qk_norm": False, "activation": "gelu"},
}


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("options", TRANSFORMERS.values(), ids=list(TRANSFORMERS))
def test_a_fused_step_of_a_transformer_is_the_written_one(options, half):
    default = {"model": "transformer", "n_layer": 2, "n_head": 2, "n_embd": 16, "positions": "rope", "qk_norm": True,
               "activation": "swiglu", "bias": False}  # fmt: skip
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        ours, theirs = (step_of(default | options, fused, carried=False) for fused in (True, False))
    near = HALF if half else {"rtol": 1e-4, "atol": 1e-5}
    for a, b in zip([ours[0], *ours[1]], [theirs[0], *theirs[1]], strict=True):
        torch.testing.assert_close(a, b, **near)
    if not half and "gelu" not in options.values():
        assert not torch.equal(ours[1][0], theirs[1][0])  # by other sums


@pytest.mark.parametrize("activation", ["swiglu", "relu2"])
def test_what_is_not_a_number_stays_one(activation):
    x = torch.full((3, 40), float("nan"), requires_grad=True)
    y = activated(makemore.compiled.functions(), activation, x)
    assert y.isnan().all() and gradients(y.sum(), [x])[0].isnan().all()
