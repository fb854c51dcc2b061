"""How a Transformer attends: positions, windows and grouped heads against the papers written out, and QK-norm."""

import math

import pytest
import torch
import torch.nn.functional as F

from engine.registry import build_model
from tests.helpers import configure
from tests.variants import (
    POSITIONS,
    SMALL,
    VOCAB,
    build,
    close,
    some_tokens,
)  # fmt: skip


@pytest.mark.parametrize("where", ["sinusoidal", "rope", "alibi"])
def test_a_sliding_window_is_unbounded_and_its_state_does_not_grow(where):
    model = build("transformer", positions=where, window=4)
    out = model.read(some_tokens(50))
    assert model.context is None and out.state["k0"].shape[2] == 3


@pytest.mark.parametrize("where", POSITIONS)
def test_one_layer_sees_its_window_and_nothing_before_it(where):
    model, tokens = build("transformer", positions=where, window=3, n_layer=1), some_tokens(10)
    changed = tokens.clone()
    changed[:, 4] = 6 + (changed[:, 4] - 5) % (VOCAB - 6)
    differs = (model(changed).logits - model(tokens).logits).abs().amax((0, 2)) > 1e-9
    assert differs.tolist() == [t in (4, 5, 6) for t in range(10)]


@pytest.mark.parametrize("where", ["rope", "alibi"])
def test_relative_positions_see_distances_only(where):
    model, tokens = build("transformer", positions=where, window=3, n_layer=1), some_tokens(9)
    assert close(model(tokens[:, 4:]).logits[:, 2:], model(tokens).logits[:, 6:])


def attention_by_hand(attn, x, where: str, window: int | None, cap: float | None):
    """Causal attention of x (T, C) in plain loops, from the layer's own weights."""
    T, hs, groups = len(x), attn.head_size, attn.n_head // attn.n_kv_head
    heads = F.linear(x, attn.c_attn.weight, attn.c_attn.bias).view(T, -1, hs)
    q, k, v = heads.split([attn.n_head, attn.n_kv_head, attn.n_kv_head], 1)
    if where == "rope":  # pairs (i, i + hs / 2) as complex numbers, turned by t / 10000^(2i / hs)
        turn = torch.outer(torch.arange(T).double(), 10000.0 ** (-torch.arange(0, hs, 2).double() / hs))
        turn = torch.polar(torch.ones_like(turn), turn)[:, None]
        q, k = (torch.complex(*z.chunk(2, -1)) * turn for z in (q, k))
        q, k = (torch.cat([z.real, z.imag], -1) for z in (q, k))
    y = torch.zeros(T, attn.n_head, hs).double()
    for head in range(attn.n_head):
        slope = 2 ** (-8 * (head + 1) / attn.n_head) if where == "alibi" else 0
        for t in range(T):
            seen = range(max(0, t - window + 1) if window else 0, t + 1)
            scores = torch.stack([q[t, head] @ k[s, head // groups] / math.sqrt(hs) for s in seen])
            scores = scores if cap is None else cap * (scores / cap).tanh()
            weights = (scores - slope * (t - torch.tensor(seen))).softmax(0)
            y[t, head] = sum(w * v[s, head // groups] for w, s in zip(weights, seen, strict=True))
    return F.linear(y.flatten(1), attn.c_proj.weight, attn.c_proj.bias)


@pytest.mark.parametrize("where", POSITIONS)
@pytest.mark.parametrize(
    "options", [{}, {"window": 3, "attention_cap": 0.3}, {"n_kv_head": 2}, {"window": 4, "n_kv_head": 1}], ids=str
)
def test_attention_is_what_the_papers_say(where, options):
    model = build("transformer", positions=where, **options)
    seen = []
    model.h[0].attn.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output[0])))
    model(some_tokens(9))
    ((x, y),) = seen
    assert close(
        y[1], attention_by_hand(model.h[0].attn, x[1], where, options.get("window"), options.get("attention_cap"))
    )


def test_qk_norm_makes_the_size_of_queries_and_keys_irrelevant():
    for qk_norm in (False, True):
        model, tokens = build("transformer", qk_norm=qk_norm, bias=False), some_tokens(8)
        before = model(tokens).logits
        for block in model.h:
            block.attn.c_attn.weight.data[: 2 * 16] *= 10
        assert close(model(tokens).logits, before) == qk_norm


@pytest.mark.parametrize(
    "options", [{}, {"window": 3, "positions": "alibi"}, {"positions": "rope", "norm": "batch"}], ids=str
)
@pytest.mark.parametrize("training", [False, True])
def test_a_reader_of_whole_texts_sees_ahead_and_no_padding(options, training):
    model, tokens = build("transformer", **options, n_layer=1), some_tokens(9)
    model.see_ahead(2)
    model.train(training)
    valid = torch.ones(tokens.shape, dtype=torch.bool)
    valid[0, 6:] = False

    def read(tokens):
        return model.hidden(tokens, None, valid)[0]

    before = read(tokens)
    for j in (4, 7):
        changed = tokens.clone()
        changed[:, j] = 7 + (changed[:, j] - 6) % (len(model.wte.weight) - 8)
        after = read(changed)
        same = [[close(a, b) for a, b in zip(*row, strict=True)] for row in zip(before, after, strict=True)]
        first = max(0, j - 2)
        last = j + options["window"] if "window" in options else 9
        sees = [first <= i < last for i in range(9)]
        if options.get("norm") == "batch" and training:
            continue  # whose statistics every position shares
        assert [not is_same for is_same in same[1]] == sees
        assert [not is_same for is_same in same[0][:6]] == (sees[:6] if j < 6 else [False] * 6), "padding is not seen"


def test_value_embeddings_are_added_through_a_gate_in_every_other_layer():
    model, tokens = build("transformer", n_layer=3, n_kv_head=2, value_embeddings=True), some_tokens(5)
    assert [*model.vte] == ["0", "2"] and model.added_values(1, tokens) is None
    attn, x = model.h[2].attn, torch.randn(*tokens.shape, model.n_embd, dtype=torch.float64)
    (_, k, v), (_, plain_k, plain_v) = attn.heads(x, None, None, model.added_values(2, tokens)), attn.heads(x, None)
    gate = 2 / (1 + torch.exp(-x[..., :32] @ attn.value_gate.weight.T))  # (B, T, n_kv_head)
    added = gate[..., None] * model.vte["2"].weight[tokens].unflatten(-1, (2, -1))
    assert close(v, plain_v + added.transpose(1, 2)) and torch.equal(k, plain_k)


def test_value_embeddings_start_small_behind_an_open_gate():
    config = configure(**SMALL | {"n_embd": 64}, model="transformer", value_embeddings=True, weight_init="torch")
    model = build_model(config, 500)
    assert model.vte["1"].weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert (model.h[1].attn.gate(torch.randn(3, 64)) == 1).all()


def test_a_value_residual_mixes_the_values_of_the_first_layer_into_the_later_ones():
    model = build("transformer", n_layer=3, n_kv_head=2, value_residual=True)
    assert [block.attn.value_mix is None for block in model.h] == [True, False, False]
    attn, x = model.h[2].attn, torch.randn(3, 5, model.n_embd, dtype=torch.float64)
    first = torch.randn(3, 2, 5, model.head_size, dtype=torch.float64)
    (_, k, v), (_, plain_k, plain_v) = attn.heads(x, None, first=first), attn.heads(x, None)
    own_part, first_part = attn.value_mix
    assert close(v, own_part * plain_v + first_part * first) and torch.equal(k, plain_k)
    tokens = some_tokens(5)
    values = model(tokens).state["v0"]
    seen: list[torch.Tensor] = []
    hook = model.h[2].register_forward_pre_hook(lambda _, __, options: seen.append(options["first"]), with_kwargs=True)
    model(tokens)
    hook.remove()
    assert torch.equal(seen[0], values)


def test_a_value_residual_starts_half_and_half():
    config = configure(**SMALL, model="transformer", value_residual=True)
    assert build_model(config, 50).h[1].attn.value_mix.tolist() == [0.5, 0.5]
