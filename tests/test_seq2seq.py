"""Every encoder and decoder keeps the contract: cache, padding, causality, gradients into the encoder."""

import pytest
import torch

from data.batches import IGNORE
from makemore.config import GRUConfig, LSTMConfig
from makemore.seq2seq import Seq2Seq
from nanogpt.config import TransformerConfig
from nanogpt.encoder_decoder import EncoderDecoder
from tests.kernel_helpers import DEVICE

POSITIONS = ["learned", "sinusoidal", "rope"]  # of a Transformer
ALIGNS = ["none", "bahdanau", "luong-dot", "luong-general"]
CONFIGS = {"gru": GRUConfig, "lstm": LSTMConfig}
KINDS = [*((cell, align) for cell in CONFIGS for align in ALIGNS), *(("transformer", each) for each in POSITIONS)]
V, B, S, T = 11, 3, 7, 6


def made(cell: str = "gru", align: str = "luong-general", n_layer: int = 2) -> Seq2Seq | EncoderDecoder:
    torch.manual_seed(0)
    if cell == "transformer":
        config = TransformerConfig(
            context=8, n_layer=n_layer, n_embd=8, n_head=2, n_kv_head=1, positions=align, qk_norm=align == "rope",
            activation="swiglu", tie_head=align == "learned",
        )  # fmt: skip
        return EncoderDecoder(V, config).double().eval()
    return Seq2Seq(V, CONFIGS[cell](n_layer=n_layer, n_embd=6, n_hidden=8), cell=cell, attention=align).double().eval()


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    """Sources (B, S) of 7, 4 and 1 tokens, padded, and targets (B, T)."""
    generator = torch.Generator().manual_seed(1)
    sources = torch.randint(6, V, (B, S), generator=generator)
    sources[1, 4:] = sources[2, 1:] = 0
    return sources, torch.randint(6, V, (B, T), generator=generator)


@pytest.mark.parametrize("cell, align", KINDS)
def test_a_target_read_from_a_cache_equals_one_read_at_once(cell, align):
    model, (sources, tokens) = made(cell, align), texts()
    state = model.start(sources, None)
    whole = model(tokens, None, state).logits
    step = model.stepper(state)
    stepped = torch.stack([step(tokens[:, t]) for t in range(T)], 1)
    assert torch.allclose(whole, stepped, rtol=0, atol=1e-12)
    first = model.read(tokens[:, :2], state)
    rest = model.read(tokens[:, 2:], first.state)
    assert torch.allclose(whole, torch.cat([first.logits, rest.logits], 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("cell, align", KINDS)
def test_padding_of_a_source_is_never_seen(cell, align):
    model, (sources, tokens) = made(cell, align), texts()
    together = model(tokens, None, model.start(sources, None)).logits
    for row, length in enumerate((7, 4, 1)):
        alone = model(tokens[row : row + 1], None, model.start(sources[row : row + 1, :length], None)).logits
        assert torch.allclose(together[row], alone[0], rtol=0, atol=1e-12)
    weights = model.aligned(tokens, model.start(sources, None))[2]
    if align == "none":
        assert weights is None
    else:
        assert torch.allclose(weights.sum(-1), torch.ones(B, T).double()) and not weights[1, :, 4:].any()


@pytest.mark.parametrize("cell, align", KINDS)
def test_a_step_depends_on_its_source_and_on_no_later_token(cell, align):
    model, (sources, tokens) = made(cell, align), texts()
    logits = model(tokens, None, model.start(sources, None)).logits
    other = tokens.clone()
    other[:, 3] = 6 + (other[:, 3] - 5) % (V - 6)
    changed = model(other, None, model.start(sources, None)).logits
    assert torch.equal(logits[:, :3], changed[:, :3]) and not torch.equal(logits[:, 3], changed[:, 3])
    others = sources.clone()
    others[0, 2] = 6 + (others[0, 2] - 5) % (V - 6)
    changed = model(tokens, None, model.start(others, None)).logits
    assert not torch.equal(logits[0], changed[0]) and torch.allclose(logits[1:], changed[1:], atol=1e-12)


@pytest.mark.parametrize("cell, align", KINDS)
def test_every_weight_has_the_gradient_of_the_loss(cell, align):
    model, (sources, tokens) = made(cell, align, n_layer=1).train(), texts()
    targets = tokens.roll(-1, 1)
    targets[0, 4:] = IGNORE

    def loss() -> torch.Tensor:
        return model(tokens, targets, model.start(sources, None), want_logits=False).nll_sum

    loss().backward()
    for name, weight in model.named_parameters():
        index, eps = int(weight.grad.abs().argmax()), 1e-6
        with torch.no_grad():
            flat = weight.view(-1)
            flat[index] += eps
            above = float(loss())
            flat[index] -= 2 * eps
            below = float(loss())
            flat[index] += eps
        # Of Luong's dot and of no attention every weight is reached; so is each of Bahdanau's network.
        found = float(weight.grad.view(-1)[index])
        assert found != 0 and (above - below) / (2 * eps) == pytest.approx(found, rel=1e-4, abs=1e-7), name


@pytest.mark.parametrize("cell, align", [("gru", "luong-dot"), ("transformer", "rope")])
def test_without_a_source_a_model_reads_an_empty_one(cell, align):
    model, (_, tokens) = made(cell, align), texts()
    empty = model.start(torch.full((B, 1), 2), None)
    assert torch.equal(model(tokens).logits, model(tokens, None, empty).logits)


def test_half_of_an_odd_width_is_refused():
    with pytest.raises(ValueError, match="--n-hidden 7 is odd"):
        Seq2Seq(V, GRUConfig(n_hidden=7))


def test_more_than_the_context_of_a_transformer_is_refused():
    model, (sources, tokens) = made("transformer", "learned"), texts()
    with pytest.raises(ValueError, match="12 tokens are more than the context of 8"):
        model.start(sources.repeat(1, 2)[:, :12], None)
    with pytest.raises(ValueError, match="12 tokens are more than the context of 8"):
        model(tokens.repeat(1, 2), None, model.start(sources, None))
    with pytest.raises(ValueError, match="--positions alibi"):
        EncoderDecoder(V, TransformerConfig(context=8, n_embd=8, positions="alibi"))


def test_a_transformer_learns_with_dropout_and_starts_as_if_its_blocks_were_not_there():
    torch.manual_seed(0)
    config = TransformerConfig(context=8, n_layer=1, n_embd=8, n_head=2, dropout=0.5, zero_init=True)
    model, (sources, tokens) = EncoderDecoder(V, config).double(), texts()
    assert not any(block.cross.c_proj.weight.any() or block.mlp.c_proj.weight.any() for block in model.decoder)
    nll = model(tokens, tokens.roll(-1, 1), model.start(sources, None), want_logits=False).nll_sum
    nll.backward()
    assert all(block.cross.c_proj.weight.grad.any() for block in model.decoder)


@pytest.mark.parametrize("positions", POSITIONS)
def test_all_attention_of_a_transformer_runs_on_the_kernels_that_are_asked_for(positions, monkeypatch):
    sources, tokens = texts()
    found = {}
    for backend in ("torch", "triton"):
        torch.manual_seed(0)
        config = TransformerConfig(
            context=8, n_layer=2, n_embd=8, n_head=2, n_kv_head=1, positions=positions, attention=backend
        )
        model = EncoderDecoder(V, config).to(DEVICE)
        if backend == "triton":
            monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)
        out = model(tokens.to(DEVICE), tokens.to(DEVICE), model.start(sources.to(DEVICE), None))
        out.nll_sum.backward()
        found[backend] = [out.logits, *(weight.grad for weight in model.parameters())]
    for ours, theirs in zip(found["triton"], found["torch"], strict=True):
        torch.testing.assert_close(ours, theirs)
