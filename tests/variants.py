"""Every family with every option, small: what the contract is held against."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import settings

from engine.config.presets import FAMILY
from engine.registry import build_model
from makemore.layers import ACTIVATIONS
from tests.helpers import configure
from tests.matrices import matrix

FIXED = settings(max_examples=8, deadline=None, derandomize=True)
VOCAB, CONTEXT, B = 13, 12, 3
NORMS = ("none", "batch", "layer", "rms")
POSITIONS = ("learned", "sinusoidal", "rope", "alibi")
SMALL = {"context": CONTEXT, "n_layer": 2, "n_head": 4, "n_embd": 16, "n_hidden": 12, "order": 3, "activation": "tanh"}

READ = {"count_inputs": True}
VARIANTS: dict[str, dict] = {
    "bigram": {},
    "bigram counted": {"counts": True},
    **{f"ngram {order}": {"order": order} for order in (1, 2, 4)},
    "mlp": {},
    "mlp reach 1": {"order": 1},
    "cnn": {},
    "cnn deep": {"n_layer": 5},
    **{f"{model} {cells}": {"cells": cells} for model in ("rnn", "lstm", "gru") for cells in ("fused", "written")},
    **{f"{model} {norm}": {"norm": norm} for model in ("mlp", "cnn", "rnn", "lstm", "transformer") for norm in NORMS},
    **{f"{model} {act}": {"activation": act} for model in ("mlp", "cnn") for act in ACTIVATIONS},
    **{f"rnn {act}": {"activation": act, "cells": "written"} for act in ACTIVATIONS},
    **{f"transformer {act}": {"activation": act} for act in (*ACTIVATIONS, "swiglu")},
    **{f"transformer {where}": {"positions": where} for where in POSITIONS},
    **{f"transformer {where} window": {"positions": where, "window": 4} for where in POSITIONS},
    **{f"transformer window {w}": {"positions": "rope", "window": w} for w in (1, 40)},
    "transformer grouped": {"n_kv_head": 2},
    "transformer one kv head": {"n_kv_head": 1, "positions": "alibi"},
    "transformer qk-norm": {"qk_norm": True, "positions": "rope"},
    "transformer cap": {"attention_cap": 0.5, "positions": "alibi", "n_kv_head": 2},
    "transformer untied": {"tie_head": False},
    "transformer untied plain": {"tie_head": False, "bias": False, "norm": "rms"},
    **{f"{model} hashed": {"hash_ngrams": 3, "hash_rows": 50} for model in ("mlp", "cnn", "rnn", "lstm", "gru")},
    "mlp hashed reach 1": {"order": 1, "hash_ngrams": 4, "hash_rows": 50},
    "transformer hashed": {"hash_ngrams": 4, "hash_rows": 50},
    "transformer hashed window": {"hash_ngrams": 2, "hash_rows": 9, "positions": "rope", "window": 4},
    **{f"{model} mixed": {"mix_ngram": 3} for model in ("bigram", "mlp", "cnn", "gru", "transformer")},
    "lstm mixed order 1": {"mix_ngram": 1, "hash_ngrams": 3, "hash_rows": 50},
    "transformer mixed window": {"mix_ngram": 4, "positions": "rope", "window": 4},
    **{f"{model} counts read": {"mix_ngram": 3, **READ} for model in ("mlp", "cnn", "gru", "transformer")},
    **{f"{model} counts read order {order}": {"mix_ngram": order, **READ} for model, order in [("rnn", 1), ("mlp", 2)]},
    "transformer counts read order 2": {"mix_ngram": 2, **READ},
    "transformer counts read window": {"mix_ngram": 4, "positions": "rope", "window": 4, **READ},
    "gru counts read hashed": {"mix_ngram": 2, "hash_ngrams": 3, "hash_rows": 50, **READ},
    "transformer counts read hashed": {"mix_ngram": 4, "hash_ngrams": 3, "hash_rows": 50, **READ},
    "transformer capped": {"logit_cap": 2.0, "tie_head": False},
    "transformer value embeddings": {"value_embeddings": True, "n_layer": 3, "n_kv_head": 2, "positions": "rope"},
    "transformer value embeddings window": {"value_embeddings": True, "positions": "alibi", "window": 4},
    "transformer value residual": {"value_residual": True, "n_layer": 3, "n_kv_head": 2, "positions": "rope"},
    "transformer value residual window": {
        "value_residual": True, "value_embeddings": True, "n_layer": 3, "positions": "alibi", "window": 4,
    },
    "transformer zero init": {"zero_init": True},
    "transformer context 1": {"context": 1},
    "transformer odd context": {"context": 7},
    "transformer default": {k: v for k, v in FAMILY["transformer"].items() if k not in ("lr", "optimizer")},
    "transformer llama": {
        "positions": "rope", "norm": "rms", "activation": "swiglu", "bias": False, "n_kv_head": 2, "qk_norm": True,
        "window": 5, "tie_head": False,
    },
}  # fmt: skip
# Each family, and each part that has a state, a shape or statistics of its own.
EVERYDAY = {
    "bigram", "bigram counted", "ngram 1", "ngram 4", "mlp", "mlp batch", "mlp hashed reach 1", "cnn", "cnn batch",
    "rnn fused", "lstm fused", "gru written", "gru hashed", "gru mixed", "lstm mixed order 1", "transformer batch",
    "transformer learned", "transformer sinusoidal window", "transformer rope window", "transformer alibi window",
    "transformer one kv head", "transformer cap", "transformer capped", "transformer hashed",
    "transformer mixed window", "transformer context 1", "transformer odd context", "transformer default",
    "transformer value embeddings",
    "transformer value residual", "transformer value residual window",
    "transformer llama", "gru counts read hashed", "transformer counts read", "transformer counts read window",
}  # fmt: skip


NEURAL = [name for name in VARIANTS if not name.startswith(("ngram", "bigram counted"))]
every_variant = pytest.mark.parametrize("name", matrix(VARIANTS, EVERYDAY.__contains__))
every_neural = pytest.mark.parametrize("name", matrix(NEURAL, EVERYDAY.__contains__))
every_transformer = pytest.mark.parametrize(
    "name", matrix([name for name in VARIANTS if name.startswith("transformer")], EVERYDAY.__contains__)
)


def build(name: str, vocab_size: int = VOCAB, **options):
    """A variant in evaluation mode, in float64 where it can be, its weights large enough that every part matters."""
    config = configure(**{**SMALL, "model": name.split()[0], "norm": "none", **VARIANTS.get(name, {}), **options})
    torch.manual_seed(0)
    model = build_model(config, vocab_size)
    ids = np.random.default_rng(0).integers(6, vocab_size, 300)
    if config.net.is_counted:
        model.fit(ids[:-1], ids[1:], np.arange(299))
        return model.eval()
    if config.net.mix_ngram:
        model.count(ids[:-1], ids[1:], np.arange(299))
    if getattr(config.net, "norm", "none") != "batch":
        model.double()
    for weight in model.parameters():
        weight.data += (0.1 if getattr(config.net, "activation", "") == "relu2" else 0.3) * torch.randn_like(weight)
    model.train()
    for _ in range(3 if getattr(config.net, "norm", "none") == "batch" else 0):
        model(some_tokens(8)[:, : min(8, model.context or 8)])  # batch norm has seen something
    return model.eval()


@functools.cache
def ready(name: str):
    """The same, for tests that only read it."""
    return build(name).requires_grad_(False)


def some_tokens(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(6, VOCAB, (B, length), generator=torch.Generator().manual_seed(seed))


def longest(model) -> int:
    """A length that the model takes in one forward."""
    return min(10, model.context or 10)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    tolerance = 1e-6 if a.dtype == b.dtype == torch.float64 else 1e-4
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance)
