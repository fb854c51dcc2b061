"""There is one Transformer: decoding a token at a time hears whatever is changed in it and whatever listens to it, with
and without gradients."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import kernels
import makemore.base
import nanogpt.attention
from engine.run.generate import generate
from engine.run.sampling import Sampling
from makemore.base import LanguageModel, Stepper
from makemore.counts.mixture import Mixture
from makemore.counts.ngram import NGram
from makemore.counts.ngram_stepper import CountStepper
from makemore.layers import LayerNorm
from nanogpt.attention import CausalSelfAttention
from nanogpt.block import MLP, Block
from nanogpt.model import Transformer
from nanogpt.stepper import TransformerStepper
from tests.matrices import matrix
from tests.variants import VOCAB, build, close, some_tokens

TOKENS = 30  # past the context of 12, so that half of it is encoded anew


def uncached(model, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of `tokens`, each by a forward over nothing but the tokens that it depends on."""
    starts = [model.window_start(t) for t in range(tokens.shape[1])]
    return torch.stack([model(tokens[:, first : t + 1]).logits[:, -1] for t, first in enumerate(starts)], 1)


def decoded(model, tokens: torch.Tensor, first: int = 1) -> torch.Tensor:
    """Logits after each of `tokens` from the `first`-th on: decoded one by one after a prompt of so many."""
    logits, state = model.read_last(tokens[:, :first])
    step = model.stepper(state)
    return torch.stack([logits, *(step(token) for token in tokens[:, first:].unbind(1))], 1)


class Double(nn.Module):
    """A parametrization."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


class ReversedBlock(Block):
    """Its last sum is a difference."""

    def forward(self, *args):
        x, y, cache = super().forward(*args)
        return x, -y, cache


class OtherKeys(Block):
    """Attends to other keys, also where half of the context is encoded anew."""

    def forward(self, x, *rest):
        return super().forward(3 * x, *rest)


class SharperAttention(CausalSelfAttention):
    def heads(self, *args):
        q, k, v = super().heads(*args)
        return 2 * q, k, v


class LinearMLP(MLP):
    def forward(self, x):
        return self.c_proj(self.c_fc(x)[..., : self.c_proj.in_features])


class LargerLinear(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class LargerNorm(LayerNorm):
    def forward(self, *args, **kwargs):
        y = super().forward(*args, **kwargs)
        return 2 * y if isinstance(y, torch.Tensor) else (2 * y[0], y[1])


class LargerTransformer(Transformer):
    def head(self, hidden):
        return 2 * super().head(hidden)


class ShiftedTransformer(Transformer):
    def embed(self, tokens, state):
        return super().embed((tokens + 1) % self.vocab_size, state)


class OwnWeight(torch.Tensor):
    """A weight that says itself what `F.linear` is with it, as quantised ones do."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is not torch.nn.functional.linear:
            return super().__torch_function__(function, types, args, kwargs)
        x, weight, *bias = args
        return 2 * function(x, weight.as_subclass(torch.Tensor), *bias)


def doubled(module, args, result):
    """A forward hook: of a block or an attention the first or second tensor, of a norm the normed one."""
    if isinstance(module, Block):
        return result[0], 2 * result[1], result[2]
    return 2 * result if isinstance(result, torch.Tensor) else (2 * result[0], *result[1:])


def doubled_first(module, args):
    return 2 * args[0], *args[1:]


def hook(name: str) -> Callable:
    return lambda model, patch: model.get_submodule(name).register_forward_hook(doubled)


def pre_hook(name: str) -> Callable:
    return lambda model, patch: model.get_submodule(name).register_forward_pre_hook(doubled_first)


def of_class(name: str, cls: type) -> Callable:
    return lambda model, patch: setattr(model.get_submodule(name) if name else model, "__class__", cls)


def attribute(module: str, name: str, value) -> Callable:
    return lambda model, patch: setattr(model.get_submodule(module), name, value)


def instance_method(module: str, name: str) -> Callable:
    """The method of one module replaced by one that doubles its (first) result."""

    def change(model, patch):
        changed = model.get_submodule(module) if module else model
        original = getattr(changed, name)
        setattr(changed, name, lambda *args, **kwargs: doubled(None, None, original(*args, **kwargs)))

    return change


def class_method(cls: type, name: str) -> Callable:
    """The same of a class."""

    def change(model, patch):
        original = getattr(cls, name)

        def method(self, *args, **kwargs):
            return doubled(None, None, original(self, *args, **kwargs))

        patch.setattr(cls, name, method)

    return change


def own_weight(model, patch) -> None:
    layer = model.h[0].mlp.c_fc
    layer.weight = nn.Parameter(layer.weight.data.as_subclass(OwnWeight), requires_grad=False)


def without_mlp(model, patch) -> None:
    width = model.n_embd
    model.h[1].mlp = nn.Linear(width, width).double().eval().requires_grad_(False)


def adapter(model, patch) -> None:
    block = model.h[0]
    block.mlp = nn.Sequential(block.mlp, nn.Linear(model.n_embd, model.n_embd).double()).eval().requires_grad_(False)


CHANGES: dict[str, Callable] = {
    **{f"hook on {name}": hook(name) for name in (
        "wte", "drop", "h.0", "h.1.attn", "h.0.attn.attend", "h.0.attn.c_attn", "h.1.attn.c_proj", "h.0.mlp",
        "h.1.mlp.c_fc", "h.1.mlp.c_proj", "h.0.attn.resid_dropout", "h.0.mlp.dropout", "h.0.ln_1", "h.1.ln_2", "ln_f",
    )},
    **{f"hook before {name}": pre_hook(name) for name in ("h.0", "h.1.attn", "h.1.mlp", "h.1.mlp.c_fc", "ln_f")},
    "hook on every module": lambda model, patch: register_module_forward_hook(
        lambda module, args, result: 2 * result if isinstance(module, nn.Linear) else None
    ),
    "another Block": of_class("h.0", ReversedBlock),
    "a Block of other keys": of_class("h.1", OtherKeys),
    "another attention": of_class("h.1.attn", SharperAttention),
    "another MLP": of_class("h.0.mlp", LinearMLP),
    "another Linear": of_class("h.0.mlp.c_fc", LargerLinear),
    "another norm": of_class("h.0.ln_2", LargerNorm),
    "another head": of_class("", LargerTransformer),
    "another embedding": of_class("", ShiftedTransformer),
    "a Linear for an MLP": without_mlp,
    "an adapter around an MLP": adapter,
    "forward of an MLP": instance_method("h.0.mlp", "forward"),
    "heads of an attention": instance_method("h.0.attn", "heads"),
    "embed of the model": instance_method("", "embed"),
    "head of the model": instance_method("", "head"),
    "forward of all MLPs": class_method(MLP, "forward"),
    "forward of all blocks": class_method(Block, "_first"),
    "forward of all attentions": class_method(CausalSelfAttention, "heads"),
    "forward of all Linears": class_method(nn.Linear, "forward"),
    "forward of all kernels' norms": class_method(kernels.LayerNorm, "forward"),
    "forward of all kernels' attentions": class_method(nanogpt.attention.Attention, "forward"),
    "embed of all models": class_method(LanguageModel, "embed"),
    "parametrized": lambda model, patch: parametrize.register_parametrization(model.h[0].mlp.c_fc, "weight", Double()),
    "parametrized embedding": lambda model, patch: parametrize.register_parametrization(model.wte, "weight", Double()),
    "spectral norm, parametrized": lambda model, patch: parametrizations.spectral_norm(model.h[0].attn.c_proj),
    "a weight of a class of its own": own_weight,
    "another window in one layer": attribute("h.1.attn.attend", "window", 3),
    "another scale": attribute("h.0.attn.attend", "scale", 0.1),
}  # fmt: skip


@pytest.fixture
def no_global_hooks():
    yield
    torch.nn.modules.module._global_forward_hooks.clear()


@pytest.mark.parametrize("change", matrix(CHANGES, [*CHANGES][::2]))
@torch.no_grad()
def test_decoding_hears_what_was_changed_in_the_model(change, monkeypatch, no_global_hooks):
    model, tokens = build("transformer default").requires_grad_(False), some_tokens(TOKENS)
    before = decoded(model, tokens)
    CHANGES[change](model, monkeypatch)
    found = decoded(model, tokens)
    assert close(found, uncached(model, tokens))
    assert not close(found, before), "the change makes a difference"


@pytest.mark.parametrize("name", ["wpe", "ln_f", "h.1.ln_1", "lm_head", "ngrams"])
def test_so_it_does_in_the_parts_that_only_other_transformers_have(name):
    options = {"positions": "learned", "norm": "layer", "tie_head": False, "hash_ngrams": 3, "hash_rows": 50}
    model, tokens = build("transformer", **options).requires_grad_(False), some_tokens(TOKENS)
    before = decoded(model, tokens)
    hook(name)(model, None)
    found = decoded(model, tokens)
    assert close(found, uncached(model, tokens)) and not close(found, before)


def test_slopes_of_one_layer_are_its_own():
    model, tokens = build("transformer alibi").requires_grad_(False), some_tokens(TOKENS)
    model.h[1].attn.attend.slopes = 3 * model.h[1].attn.attend.slopes
    assert close(decoded(model, tokens), uncached(model, tokens))


@pytest.mark.parametrize("table", ["wte", "wpe"])
def test_an_embedding_of_bounded_norm_is_bounded(table):
    model, tokens = build("transformer learned", tie_head=False).requires_grad_(False), some_tokens(TOKENS)
    model.get_submodule(table).max_norm = 0.5
    assert close(decoded(model, tokens), uncached(model, tokens))


REPARAMETRIZED = {
    "weight norm": (lambda layer: weight_norm(layer), "weight_g"),
    "spectral norm": (lambda layer: spectral_norm(layer).eval(), "weight_v"),
    "pruned": (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "weight_mask"),
    "parametrized": (lambda layer: parametrizations.weight_norm(layer), "parametrizations.weight.original0"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", REPARAMETRIZED)
@torch.no_grad()
def test_a_weight_that_is_computed_before_each_token_may_change_between_two(how):
    model, tokens = build("transformer default").requires_grad_(False), some_tokens(4)
    layer, (reparametrize, name) = model.h[0].mlp.c_fc, REPARAMETRIZED[how]
    reparametrize(layer)
    state = model.read(tokens[:, :2]).state
    step = model.stepper(state)
    state = model.read(tokens[:, 2:3], state).state
    assert close(step(tokens[:, 2]), model.read(tokens[:, 2:3], model.read(tokens[:, :2]).state).logits[:, 0])
    parts = name.split(".")
    getattr(layer.get_submodule(".".join(parts[:-1])), parts[-1]).mul_(2)
    changed = step(tokens[:, 3])
    assert close(changed, model.read(tokens[:, 3:], state).logits[:, 0])
    assert not close(changed, build("transformer default").read(tokens).logits[:, -1])


def test_a_hook_fires_for_every_token():
    model, tokens, fired = build("transformer default").requires_grad_(False), some_tokens(12), []
    model.h[0].attn.register_forward_hook(lambda *args: fired.append(1))
    decoded(model, tokens)
    assert len(fired) == 12


def test_a_hook_that_comes_between_two_texts_is_heard_in_the_second_and_not_after_it_has_gone():
    model, fired = build("transformer default").requires_grad_(False), []

    def text() -> list[list[int]]:
        arguments = Sampling(temperature=0.0), [], 2, torch.Generator()
        return [token.tolist() for token in generate(model, some_tokens(2), 20, *arguments)]

    first = text()
    handle = model.h[1].mlp.register_forward_hook(lambda *args: fired.append(1))
    second = text()
    handle.remove()
    assert first == second == text() and len(first) <= len(fired) <= len(first) + 3  # ... and half of the context anew
    assert isinstance(model.stepper(model.read(some_tokens(2)).state), TransformerStepper)


@pytest.mark.parametrize("how", ["module", "wrapped", "model"])
def test_a_compiled_part_is_what_runs(how):
    model, tokens, compiled = build("transformer default").requires_grad_(False), some_tokens(10), []

    def backend(graph, inputs):
        return lambda *args: compiled.append(1) or graph(*args)

    if how == "module":
        model.h[0].mlp.compile(backend=backend)
    elif how == "wrapped":
        model.h[0].mlp = torch.compile(model.h[0].mlp, backend=backend)
    else:  # reading goes by `hidden`, not by the `forward` that was compiled: as fast as ever
        model.forward = torch.compile(model.forward, backend=backend)
    found = decoded(model, tokens)
    assert close(found, build("transformer default").read(tokens).logits)
    is_fast = isinstance(model.stepper(model.read(tokens).state), TransformerStepper)
    assert is_fast == (how == "model")
    assert len(compiled) == (0 if how == "model" else 11)  # with the reading above


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["transformer untied", "transformer mixed", "transformer default", "lstm fused"])
def test_a_quantised_model_decodes_as_it_reads(name):
    model = build(name).float().requires_grad_(False)
    quantised, tokens = torch.ao.quantization.quantize_dynamic(model), some_tokens(TOKENS)
    state, parts = None, []
    for token in tokens.split(1, 1):
        out = quantised.read(token, state)
        state = out.state
        parts.append(out.logits)
    found = decoded(quantised, tokens)
    assert close(found, torch.cat(parts, 1)) and not close(found, model.read(tokens).logits)


def test_dropout_that_was_left_on_drops():
    model, tokens = build("transformer default", dropout=0.5).requires_grad_(False), some_tokens(TOKENS)
    state = model.read(tokens[:, :3]).state
    for name in ("drop", "h.0.attn.attend", "h.1.mlp.dropout"):
        part = model.get_submodule(name).train()
        first, second = (model.stepper(state)(tokens[:, 3]) for _ in range(2))
        assert not close(first, second), name
        part.eval()
    assert torch.equal(*(model.stepper(state)(tokens[:, 3]) for _ in range(2)))


def test_a_hook_on_the_head_is_heard_by_the_loss_of_a_large_vocabulary(monkeypatch):
    monkeypatch.setattr(makemore.base, "SMALL_VOCABULARY", 0)
    model, tokens = build("transformer untied").requires_grad_(False), some_tokens(8)
    logits = model(tokens).logits
    model.lm_head.register_forward_hook(doubled)
    found = model(tokens, tokens, want_logits=False).nll_sum
    assert close(found, -(2 * logits).log_softmax(-1).gather(-1, tokens[..., None]).sum())


class Flat(NGram):
    """Counts with a little of the uniform distribution."""

    def distribution(self, backs):
        return 0.9 * super().distribution(backs) + 0.1 / self.vocab_size


class Tempered(Mixture):
    def _mixed(self, *args):
        return super()._mixed(*args) / 2


@pytest.mark.parametrize("change", ["subclass", "instance", "class", "hook"])
def test_counts_are_heard_too(change, monkeypatch):
    model, tokens = build("ngram 4"), some_tokens(TOKENS)
    before = decoded(model, tokens)
    if change == "subclass":
        model.__class__ = Flat
    elif change == "instance":
        instance_method("", "distribution")(model, monkeypatch)
    elif change == "class":
        class_method(NGram, "distribution")(model, monkeypatch)
    else:
        model.register_forward_hook(lambda module, args, out: out._replace(logits=out.logits / 2))
    found = decoded(model, tokens)
    assert close(found, model.read(tokens).logits) and not close(found, before)


@pytest.mark.parametrize("change", ["mixture", "counts", "neural", "gate"])
def test_so_is_each_part_of_a_mixture(change):
    model, tokens = build("transformer mixed").requires_grad_(False), some_tokens(TOKENS)
    before = decoded(model, tokens)
    if change == "mixture":
        model.__class__ = Tempered
    elif change == "counts":
        model.counts.__class__ = Flat
    elif change == "neural":
        model.neural.h[0].__class__ = ReversedBlock
    else:
        model.gate.register_forward_hook(lambda module, args, result: result.flip(-1))
    found = decoded(model, tokens)
    assert close(found, model.read(tokens).logits) and not close(found, before)


def test_what_nobody_changed_takes_the_fast_way():
    for name, cls in (("transformer default", TransformerStepper), ("ngram 4", CountStepper), ("gru fused", Stepper)):
        model = build(name).requires_grad_(False)
        assert type(model.stepper(model.read(some_tokens(2)).state)) is cls


STEPPED = ["transformer", "transformer default", "transformer alibi", "transformer hashed window", "transformer mixed"]
every_stepped = pytest.mark.parametrize("name", [*STEPPED, "gru fused", "ngram 4"])
MODES = {"plain": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}


@functools.cache
def expected(name: str) -> torch.Tensor:
    model = build(name).requires_grad_(False)
    return model.read(some_tokens(TOKENS)).logits


@every_stepped
@pytest.mark.parametrize("made", MODES)
@pytest.mark.parametrize("stepped", MODES)
@pytest.mark.parametrize("trains", [True, False])
def test_a_stepper_works_whether_or_not_gradients_are_on_where_it_is_made_and_used(name, made, stepped, trains):
    model, tokens = build(name).requires_grad_(trains), some_tokens(TOKENS)
    with MODES[made]():
        step = model.stepper(model.read_last(tokens[:, :3])[1])
        logits = [step(tokens[:, 3])]
    with MODES[stepped]():
        logits += [step(token) for token in tokens[:, 4:8].unbind(1)]
    with MODES[made]():
        logits += [step(token) for token in tokens[:, 8:].unbind(1)]
    assert close(torch.stack([part.detach() for part in logits], 1), expected(name)[:, 3:])


@pytest.mark.parametrize("name", STEPPED)
def test_where_a_gradient_is_wanted_it_is_that_of_reading_all_at_once(name):
    model, tokens = build(name), some_tokens(10)
    weights = torch.randn(3, 8, VOCAB, dtype=torch.float64)
    found = []
    for logits in (decoded(model, tokens, 3), model.read(tokens).logits[:, 2:]):
        model.zero_grad()
        (logits * weights).sum().backward()
        found.append([p.grad.to_dense().clone() for p in model.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 0 and all(map(close, *found))


@pytest.mark.parametrize("name", ["transformer default", "transformer mixed"])
def test_a_stepper_made_without_gradients_has_none(name):
    model, tokens = build(name), some_tokens(4)
    with torch.no_grad():
        step = model.stepper(model.read(tokens).state)
    assert not step(tokens[:, 0]).requires_grad
