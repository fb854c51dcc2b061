"""Reading on a token at a time, past any context, and the Transformer's own way of doing so."""

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import makemore.base
import makemore.counts.ngram_stepper
import nanogpt.graph_stepper
import nanogpt.model
import nanogpt.stepper
from data.tokenizers import BOS
from engine.training.lora import add_lora
from makemore import segments
from makemore.small_work import for_small_work
from nanogpt.graph_stepper import GraphStepper
from nanogpt.stepper import TransformerStepper
from tests.kernel_helpers import DEVICE
from tests.variants import FIXED, VARIANTS, VOCAB, B, build, close, every_transformer, every_variant, ready, some_tokens


@functools.cache
def uncached(name: str) -> torch.Tensor:
    """Logits of 40 tokens, each from nothing but the tokens that it depends on."""
    model, tokens = ready(name), some_tokens(40)
    padded = torch.cat([torch.full((B, model.history), BOS), tokens], 1)
    logits = []
    for t in range(40):
        first = model.window_start(t)
        state = model.start(padded[:, first : first + model.history], None)
        logits.append(model(tokens[:, first : t + 1], state=state).logits[:, -1])
    return torch.stack(logits, 1)


@every_variant
@FIXED
@given(cuts=st.lists(st.integers(1, 39)))
def test_decoding_past_the_context_equals_the_uncached_reference(name, cuts):
    model, tokens = ready(name), some_tokens(40)
    borders = [0, *sorted(set(cuts)), 40]
    state, parts = None, []
    for a, b in zip(borders, borders[1:], strict=False):
        out = model.read(tokens[:, a:b], state)
        state = out.state
        parts.append(out.logits)
    assert close(torch.cat(parts, 1), uncached(name))


@every_variant
@FIXED
@given(length=st.integers(1, 35), part=st.sampled_from([3, 4096]))
def test_what_follows_a_prompt_is_what_reading_all_of_it_gives(name, length, part):
    model, tokens = ready(name), some_tokens(40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(makemore.base, "PART", B * part)  # tokens of all rows
        logits, state = model.read_last(tokens[:, :length])
    step = model.stepper(state)
    logits = [logits, *(step(token) for token in tokens[:, length:].unbind(1))]
    assert close(torch.stack(logits, 1), uncached(name)[:, length - 1 :])


@every_variant
@pytest.mark.parametrize("cuts", [[], [11], [1, 25]], ids=str)
def test_a_text_is_scored_as_it_is_read(name, cuts, monkeypatch):
    monkeypatch.setattr(makemore.base, "LOGITS_AT_ONCE", 4 * VOCAB)
    sizes = ((makemore.base, "PART", 16), (nanogpt.model, "PART", 30), (segments, "SEGMENTS", 3))
    for module, constant, small in sizes:
        monkeypatch.setattr(module, constant, small)
    monkeypatch.setattr(segments, "BLOCK", 2)
    monkeypatch.setattr(segments, "SHORTEST", 4)
    model, tokens = ready(name), some_tokens(40)
    wanted = -uncached(name)[:, :-1].double().log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
    for row, nll in zip(tokens, wanted, strict=True):
        state, parts = None, []
        for a, b in zip([0, *cuts], [*cuts, 39], strict=True):
            part, state = model.token_nll(row[a:b], row[a + 1 : b + 1], state)
            parts.append(part)
        assert torch.allclose(torch.cat(parts), nll, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("forgets", [True, False])
@pytest.mark.parametrize("name", ["lstm fused", "gru written", "rnn hashed"])
def test_a_long_text_is_read_side_by_side_as_in_order(name, forgets, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENTS", 8)
    monkeypatch.setattr(segments, "BLOCK", 8)
    monkeypatch.setattr(segments, "SHORTEST", 16)
    model, rows = build(name).requires_grad_(False), []
    if not forgets:  # a state that stays for ever
        for weight in model.parameters():
            weight.data.mul_(3)
    tokens = some_tokens(1000)[0]

    def read(some, state):
        rows.append(some.numel())
        return model.read_hidden(some, state)

    found = torch.zeros(1000, model.n_hidden, dtype=torch.float64)
    state = segments.read_segments(read, tokens, None, lambda place, hidden: found.__setitem__(place, hidden))
    in_order, after = model.read_hidden(tokens[None], None)
    assert close(found, in_order[0]) and all(close(state[key], after[key]) for key in after)
    assert max(rows) <= 64


@pytest.mark.parametrize("name", ["bigram", "mlp", "cnn", "ngram 4", "transformer", "transformer rope window"])
def test_of_a_long_prompt_only_what_matters_is_read(name, monkeypatch):
    model, read = ready(name), []
    for method in {"read", "hidden"} & set(dir(model)):
        original = getattr(type(model), method)
        watched = functools.partial(
            lambda original, tokens, *rest: read.append(tokens.shape[1]) or original(model, tokens, *rest), original
        )
        monkeypatch.setattr(model, method, watched, raising=False)
    model.read_last(torch.randint(6, 13, (1, 10_000)))
    assert 0 < sum(read) <= 20


@pytest.mark.parametrize("context", [1, 2, 7, 12])
def test_past_its_context_a_transformer_keeps_the_last_half(context):
    model = build("transformer", context=context)
    starts = [model.window_start(t) for t in range(40)]
    lengths = [t + 1 - start for t, start in enumerate(starts)]
    assert lengths[:context] == [*range(1, context + 1)] and max(lengths) == context
    assert {a for a, b in zip(lengths[1:], lengths, strict=False) if a <= b} == {context // 2 + 1}


def decoded(model, tokens: torch.Tensor, first: int) -> torch.Tensor:
    """Logits of all `tokens`, the first `first` of them read as a prompt."""
    out = model.read(tokens[:, :first])
    step = model.stepper(out.state)
    return torch.cat([out.logits, *(step(token)[:, None] for token in tokens[:, first:].unbind(1))], 1)


@every_variant
@FIXED
@given(first=st.integers(1, 39))
def test_a_stepper_gives_what_the_uncached_reference_gives(name, first):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nanogpt.stepper, "INITIAL_CAPACITY", 2)  # so that its tables have to grow
        assert close(decoded(ready(name), some_tokens(40), first), uncached(name))


@pytest.mark.parametrize("name", [name for name in VARIANTS if name.startswith("ngram") or " mixed" in name])
def test_many_rows_are_looked_up_at_once_to_the_same_end(name, monkeypatch):
    monkeypatch.setattr(makemore.counts.ngram_stepper, "ROW_BY_ROW", B - 1)
    assert close(decoded(ready(name), some_tokens(40), 5), uncached(name))


@every_transformer
def test_every_transformer_has_the_fast_stepper(name):
    model = ready(name)
    step = model.stepper(model.read(some_tokens(1)).state)
    assert isinstance(getattr(step, "neural", step), TransformerStepper)


def replayed(step, device):
    """Stands in for the capture of `step`: computes anew, into the same place, and from where everything lay when the
    graph was captured."""
    stepper, result = step.__self__, step().clone()

    def tables() -> list[int]:
        read = [stepper.token, stepper.index, stepper.tokens, stepper.cos_sin, stepper.position_embeddings]
        read += [*stepper.history.values(), *(layer.kv for layer in stepper.layers)]
        return [table.data_ptr() for table in read if table is not None]

    def replay() -> None:
        assert tables() == captured
        result.copy_(step())

    captured = tables()
    return replay, result


@every_transformer
@FIXED
@given(first=st.integers(1, 39), left=st.integers(0, 39))
def test_the_step_that_a_gpu_captures_gives_the_same(name, first, left):
    """Everything but the capture itself. From the `left`-th token on it is used outside of inference mode."""
    model = getattr(ready(name), "neural", ready(name))
    tokens, logits = some_tokens(40), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nanogpt.stepper, "INITIAL_CAPACITY", 2)
        patch.setattr(nanogpt.graph_stepper, "EAGER", 3)
        patch.setattr(nanogpt.graph_stepper, "capture", replayed)
        with torch.inference_mode():
            step = GraphStepper(model, model.read(tokens[:, :first]).state)
        for i in range(first, 40):
            with torch.inference_mode(i < left):
                logits.append(step(tokens[:, i]).clone())
    assert bool(step.captured) == (40 - first > 3)
    assert close(torch.stack(logits, 1), model.read(tokens).logits[:, first:])


@every_transformer
def test_a_step_that_cannot_be_captured_is_launched_as_before(name, monkeypatch, capsys):
    def fails(step, device):
        step()  # as the warm-up does
        raise torch.OutOfMemoryError("CUDA out of memory.\nMore of it.")

    monkeypatch.setattr(nanogpt.graph_stepper, "EAGER", 3)
    monkeypatch.setattr(nanogpt.graph_stepper, "capture", fails)
    model = getattr(ready(name), "neural", ready(name))
    tokens = some_tokens(40)
    step = GraphStepper(model, model.read(tokens[:, :5]).state)
    logits = torch.stack([step(token) for token in tokens[:, 5:].unbind(1)], 1)
    assert close(logits, model.read(tokens).logits[:, 5:])
    message = "warning: decoding goes on without a CUDA graph, which is slower: capturing a step failed with "
    assert capsys.readouterr().err == f"{message}'CUDA out of memory.'\n"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
@every_transformer
def test_a_captured_step_gives_the_same(name, monkeypatch):
    monkeypatch.setattr(nanogpt.graph_stepper, "EAGER", 3)
    model = build(name).cuda().requires_grad_(False)
    model = getattr(model, "neural", model)
    tokens = some_tokens(40).cuda()
    step = model.stepper(model.read(tokens[:, :5]).state)
    assert isinstance(step, GraphStepper)
    with torch.inference_mode():
        logits = torch.stack([step(token) for token in tokens[:, 5:].unbind(1)], 1)
    assert step.captured
    assert close(logits, model.read(tokens).logits[:, 5:])


@pytest.mark.parametrize("why", ["training", "adapters", "triton"])
def test_what_the_fast_stepper_does_not_know_is_read_as_ever(why):
    options = {"attention": "triton", "n_layer": 1, "n_head": 1} if why == "triton" else {"dropout": 0.0}
    model = build("transformer", context=4, **options).float().requires_grad_(False)
    if why == "adapters":
        add_lora(model, 2, 4.0)
        for module in model.modules():
            if hasattr(module, "lora_b"):
                torch.nn.init.normal_(module.lora_b)
    model.train(why == "training")
    model, one, tokens = (x.to(DEVICE if why == "triton" else "cpu") for x in (model, some_tokens(1), some_tokens(8)))
    assert not isinstance(model.stepper(model.read(one).state), TransformerStepper)
    assert close(decoded(model, tokens, 3), model.read(tokens).logits)


@every_variant
def test_a_state_may_be_read_on_from_twice(name):
    model, tokens = ready(name), some_tokens(12)
    state = model.read(tokens[:, :3]).state
    before = {key: part.clone() for key, part in state.items()}
    for last in (tokens[:, 3:12], tokens[:, 2:9]):
        step = model.stepper(state)
        parts = torch.stack([step(token) for token in last.unbind(1)], 1)
        assert close(parts, model.read(last, state).logits)
    assert all(torch.equal(part, before[key]) for key, part in state.items())


def test_decoding_leaves_threads_and_libraries_as_they_were():
    model = ready("transformer")
    torch.set_num_threads(2)
    try:
        step = model.stepper(model.read(some_tokens(3)[:1]).state)
        step(some_tokens(1)[:1, 0])
        with pytest.raises(IndexError):
            step(torch.tensor([model.vocab_size]))
        assert torch.get_num_threads() == 2 and torch.backends.mkldnn.enabled
    finally:
        torch.set_num_threads(1)


def test_so_they_are_with_two_steppers_at_once():
    torch.set_num_threads(2)
    try:
        with for_small_work(1):
            with for_small_work(10):
                pass
            assert not torch.backends.mkldnn.enabled
        first, second = for_small_work(1), for_small_work(1)
        for enter in (first, second):
            enter.__enter__()
        for leave in (first, second):  # as threads may: not the last one in first
            leave.__exit__(None, None, None)
        assert torch.get_num_threads() == 2 and torch.backends.mkldnn.enabled
    finally:
        torch.set_num_threads(1)
