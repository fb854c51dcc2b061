"""The language-model contract, for every family and every option: state, causality, loss, padding."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from data.batches import IGNORE
from kernels.cross_entropy import linear, linear_op
from makemore import base
from makemore.config import LayeredConfig
from makemore.layers import make_norm
from nanogpt.model import Transformer
from tests.variants import (
    CONTEXT,
    FIXED,
    VOCAB,
    B,
    build,
    close,
    every_neural,
    every_transformer,
    every_variant,
    longest,
    ready,
    some_tokens,
)  # fmt: skip


def gradients(model) -> list[torch.Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.to_dense().clone() for p in model.parameters()]


@every_variant
@FIXED
@given(cuts=st.lists(st.integers(0, 10)))
def test_reading_in_parts_equals_reading_at_once(name, cuts):
    model = ready(name)
    tokens = some_tokens(longest(model))
    state, parts = None, []
    for part in np.split(tokens.numpy(), sorted({c for c in cuts if 0 < c < tokens.shape[1]}), axis=1):
        out = model(torch.from_numpy(part), state=state)
        state = out.state
        parts.append(out.logits)
    assert close(torch.cat(parts, 1), model(tokens).logits)


@every_variant
def test_reading_token_by_token_equals_reading_at_once(name):
    model, state, parts = ready(name), None, []
    tokens = some_tokens(longest(model))
    for token in tokens.split(1, 1):
        logits, _, _, state = model(token, state=state)
        parts.append(logits)
        assert all(len(kept) == B for kept in state.values()), "the state has the batch first"
    whole = model(tokens)
    assert close(torch.cat(parts, 1), whole.logits)
    assert state.keys() == whole.state.keys() and all(close(state[key], whole.state[key]) for key in state)


@every_variant
def test_no_token_changes_what_was_said_before_it(name):
    model = ready(name)
    tokens = some_tokens(longest(model))
    before = model(tokens).logits
    for t in range(tokens.shape[1]):
        changed = tokens.clone()
        changed[:, t] = 6 + (changed[:, t] - 5) % (VOCAB - 6)
        after = model(changed).logits
        assert torch.equal(after[:, :t], before[:, :t])
        assert name == "ngram 1" or not close(after[:, t], before[:, t]), "and the token itself is read"


REACH = {
    "bigram": 1, "bigram counted": 1, "ngram 1": 0, "ngram 2": 1, "ngram 4": 3, "mlp": 3, "mlp reach 1": 1,
    "cnn": 1 + 1 + 2, "cnn deep": 1 + 1 + 2 + 4 + 8 + 16, "rnn fused": 40, "lstm fused": 40, "gru written": 40,
    "transformer learned": 12, "transformer rope window": 1 + 3 + 3, "transformer alibi window": 1 + 3 + 3,
}  # fmt: skip


@pytest.mark.parametrize("name", REACH)
def test_a_family_looks_as_far_back_as_it_says_and_no_further(name):
    model, length = ready(name), min(40, ready(name).context or 40)
    tokens = torch.cat([some_tokens(120)[0].unfold(0, length, 5), some_tokens(120, seed=1)[0].unfold(0, length, 5)])
    said, reach = model(tokens).logits[:, -1], 0
    for back in range(1, length + 1):
        changed = tokens.clone()
        changed[:, -back] = 6 + (changed[:, -back] - 5) % (VOCAB - 6)
        if not torch.equal(model(changed).logits[:, -1], said):
            reach = back
    assert reach == REACH[name]


@every_variant
def test_rows_of_a_batch_know_nothing_of_each_other(name):
    model = ready(name)
    tokens = some_tokens(longest(model))
    assert close(model(tokens.flip(0)).logits.flip(0), model(tokens).logits)
    assert close(model(tokens[:1]).logits, model(tokens).logits[:1])


@every_variant
def test_forward_gives_its_four_fields_with_and_without_targets(name):
    model = ready(name)
    tokens = some_tokens(longest(model))
    targets = tokens.roll(-1, 1)
    targets[:, -1] = IGNORE
    bare, full, lean = model(tokens), model(tokens, targets), model(tokens, targets, want_logits=False)
    assert bare._fields == ("logits", "nll_sum", "n_tokens", "state")
    assert bare.logits.shape == (*tokens.shape, VOCAB) and bare.nll_sum is None and bare.n_tokens is None
    assert full.n_tokens == lean.n_tokens == tokens.numel() - B and full.nll_sum.ndim == 0
    assert lean.logits is None and model(tokens, want_logits=False)[:3] == (None, None, None)
    assert full.state.keys() == lean.state.keys() == bare.state.keys()


@every_variant
def test_the_loss_is_the_cross_entropy_of_the_logits_summed_over_valid_targets(name):
    model = ready(name)
    tokens, targets = some_tokens(longest(model)), some_tokens(longest(model), seed=1)
    targets[0, 0] = targets[1] = IGNORE
    full, lean = model(tokens, targets), model(tokens, targets, want_logits=False)
    log_p = full.logits.double().log_softmax(-1)
    by_hand = -sum(log_p[b, t, i] for b in range(B) for t, i in enumerate(targets[b].tolist()) if i != IGNORE)
    assert close(full.nll_sum, by_hand) and close(lean.nll_sum, by_hand)
    assert full.n_tokens == int((targets != IGNORE).sum())


@every_neural
def test_a_batch_with_nothing_to_predict_costs_exactly_nothing(name, monkeypatch):
    for small in (4096, 0):
        monkeypatch.setattr(base, "SMALL_VOCABULARY", small)
        model = build(name, dropout=0.1, label_smoothing=0.1).train()
        tokens = some_tokens(longest(model))
        kept = {key: value.clone() for key, value in model.state_dict().items()}
        out = model(tokens, torch.full_like(tokens, IGNORE), want_logits=False)
        out.nll_sum.backward()
        assert out.nll_sum.item() == 0.0 and out.n_tokens.item() == 0
        assert all((gradient == 0).all() for gradient in gradients(model))
        assert all(torch.equal(kept[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["ngram 4", "bigram counted"])
def test_a_model_that_counts_also_scores_nothing_as_nothing(name):
    tokens = some_tokens(5)
    out = ready(name)(tokens, torch.full_like(tokens, IGNORE))
    assert out.nll_sum.item() == 0.0 and out.n_tokens.item() == 0


@every_variant
def test_a_weight_multiplies_the_loss_of_its_target(name):
    model, tokens, targets = ready(name), some_tokens(longest(ready(name))), some_tokens(longest(ready(name)), seed=1)
    targets[1] = IGNORE
    weight = torch.rand(tokens.shape)
    nll = -model(tokens).logits.double().log_softmax(-1).gather(-1, targets.clamp_min(0)[..., None])[..., 0]
    for want_logits in (True, False):
        out = model(tokens, targets, weight=weight, want_logits=want_logits)
        assert close(out.nll_sum, (weight * nll)[targets != IGNORE].sum())
        assert out.n_tokens == (targets != IGNORE).sum()


@every_neural
def test_a_large_vocabulary_costs_the_same_loss_and_gradients(name, monkeypatch):
    found = []
    for small in (4096, 0):
        monkeypatch.setattr(base, "SMALL_VOCABULARY", small)
        monkeypatch.setattr(linear, "CHUNK_BYTES", 400)
        model = build(name, label_smoothing=0.1, z_loss=0.01).train()
        tokens, targets = some_tokens(longest(model)), some_tokens(longest(model), seed=1)
        targets[0], weight = IGNORE, torch.linspace(0, 2, tokens.numel()).view(tokens.shape)
        out = model(tokens, targets, weight=weight, want_logits=False)
        out.nll_sum.backward()
        found.append((out.nll_sum.detach(), *gradients(model)))
    assert all(close(plain, chunked) for plain, chunked in zip(*found, strict=True))


def test_a_large_vocabulary_never_holds_all_logits(monkeypatch):
    monkeypatch.setattr(linear, "CHUNK_BYTES", 4 * 8 * 5000)
    model, rows = build("mlp", vocab_size=5000).float().train(), []
    whole = linear_op.loss_and_gradient

    def watched(logits, *rest):
        rows.append(len(logits))
        return whole(logits, *rest)

    monkeypatch.setattr(linear_op, "loss_and_gradient", watched)
    tokens = some_tokens(10)
    model(tokens, tokens, want_logits=False).nll_sum.backward()
    assert sum(rows) == tokens.numel() and max(rows) == 8


@every_neural
def test_padding_changes_neither_loss_nor_gradients_nor_statistics(name):
    model = build(name).train()
    length = longest(model) - 1 or 1
    more = longest(model) - length
    tokens, targets = some_tokens(length), some_tokens(length, seed=1)
    padded = torch.cat([tokens, some_tokens(more, seed=2)], 1)
    ignored = torch.cat([targets, torch.full((B, more), IGNORE)], 1)
    found = []
    for some, wanted in ((tokens, targets), (padded, ignored)):
        again = build(name).train()
        out = again(some, wanted, want_logits=False)
        out.nll_sum.backward()
        found.append((out.nll_sum.detach(), *gradients(again), *again.state_dict().values()))
    assert all(close(a, b) for a, b in zip(*found, strict=True))


@every_transformer
def test_a_transformer_trains_on_rows_of_any_lengths_with_holes_as_if_it_computed_padding_too(name, monkeypatch):
    T = longest(build(name))
    tokens, targets = some_tokens(T), some_tokens(T, seed=1)
    targets[0, 1:-1] = targets[1, T // 2 :] = targets[2, 1:] = IGNORE  # a hole is read, an end is padding
    found, rows = [], []
    for packs in (True, False):
        if not packs:
            monkeypatch.setattr(Transformer, "_packing", lambda self, valid: None)
        model = build(name).train()
        first = getattr(model, "neural", model).h[0]
        first.mlp.register_forward_hook(lambda module, given, result: rows.append(given[0][..., 0].numel()))
        out = model(tokens, targets, want_logits=False)
        out.nll_sum.backward()
        found.append((out.nll_sum.detach(), *gradients(model), *model.state_dict().values()))
    assert all(close(packed, padded) for packed, padded in zip(*found, strict=True))
    assert rows == [T + T // 2 + 1 if T > 1 else 2, B * T]


def test_batch_norm_statistics_are_those_of_what_is_no_padding():
    norm, x = make_norm(LayeredConfig(norm="batch"), 4).train(), torch.randn(3, 5, 4)
    valid = torch.rand(3, 5) < 0.6
    y = norm(x, valid)
    read = valid.flip(1).cummax(1).values.flip(1)  # all up to the last position where something is predicted
    rows = x[read]
    assert close(y[read], (rows - rows.mean(0)) / (rows.var(0, correction=0) + 1e-5).sqrt())
    assert close(norm.running_mean, 0.1 * rows.mean(0)) and close(norm.running_var, 0.9 + 0.1 * rows.var(0))


@pytest.mark.parametrize("name", ["mlp", "bigram", "lstm fused", "transformer"])
def test_labels_are_smoothed_in_training_only(name):
    plain, smooth = build(name), build(name, label_smoothing=0.2)
    tokens, targets = some_tokens(8), some_tokens(8, seed=1)
    assert close(smooth(tokens, targets).nll_sum, plain(tokens, targets).nll_sum)
    out = smooth.train()(tokens, targets)
    wanted = F.cross_entropy(out.logits.flatten(0, 1), targets.flatten(), reduction="sum", label_smoothing=0.2)
    assert close(out.nll_sum, wanted) and not close(out.nll_sum, plain(tokens, targets).nll_sum)


@pytest.mark.parametrize("name", ["mlp", "bigram", "lstm fused", "transformer capped"])
def test_a_z_loss_is_added_in_training_only(name):
    plain, pulled = build(name), build(name, z_loss=0.2)
    tokens, targets = some_tokens(8), some_tokens(8, seed=1)
    targets[0] = IGNORE
    expected = plain(tokens, targets)
    assert torch.equal(pulled(tokens, targets).nll_sum, expected.nll_sum)
    squares = expected.logits.logsumexp(-1).square()[targets != IGNORE]
    assert close(pulled.train()(tokens, targets).nll_sum, expected.nll_sum + 0.2 * squares.sum())


def test_a_capped_logit_is_nowhere_above_its_cap():
    model, tokens = ready("transformer capped"), some_tokens(8)
    uncapped = build("transformer", tie_head=False)
    uncapped.load_state_dict(model.state_dict())
    logits = uncapped(tokens).logits
    assert logits.abs().max() > 2 and close(model(tokens).logits, 2 * torch.tanh(logits / 2))


@pytest.mark.parametrize("name", ["mlp", "cnn", "lstm fused", "gru written", "transformer"])
def test_dropout_drops_in_training_only(name):
    model, tokens = build(name, dropout=0.5), some_tokens(8)
    assert torch.equal(model(tokens).logits, model(tokens).logits)
    model.train()
    assert not torch.equal(model(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize(
    ("model", "options"), [("rnn", {}), ("rnn", {"activation": "relu"}), ("lstm", {}), ("gru", {})]
)
def test_written_cells_equal_the_fused_ones_with_their_gradients(model, options):
    fused, written = (build(model, cells=cells, norm="layer", **options) for cells in ("fused", "written"))
    written.load_state_dict(fused.state_dict())
    tokens, targets = some_tokens(10), some_tokens(10, seed=1)
    state = {key: vector.detach() for key, vector in fused(some_tokens(3, seed=2)).state.items()}
    a, b = (each(tokens, targets, state) for each in (fused, written))
    assert close(a.logits, b.logits) and all(close(a.state[key], b.state[key]) for key in a.state)
    for each in (a, b):
        each.nll_sum.backward()
    assert all(close(x, y) for x, y in zip(gradients(fused), gradients(written), strict=True))


@every_transformer
def test_forward_refuses_more_than_the_context(name):
    model = ready(name)
    if model.context is None:
        assert model(some_tokens(3 * CONTEXT)).logits.shape == (B, 3 * CONTEXT, VOCAB)
        return
    with pytest.raises(ValueError, match=f"{model.context + 1} tokens are more than the context of {model.context}"):
        model(some_tokens(model.context + 1))
    full = model(some_tokens(model.context))
    with pytest.raises(ValueError, match="more than the context"):
        model(some_tokens(1), state=full.state)
