"""Defaults that follow the model, the kind of text and the optimizer, and the presets by name. Imports no torch."""

from typing import Any

from data.errors import UserError

Defaults = dict[str, Any]

_PLAIN = {"norm": "none", "activation": "tanh"}
_GPT2: Defaults = {
    "positions": "learned", "activation": "gelu_tanh", "norm": "layer", "bias": True, "qk_norm": False,
    "zero_init": False, "tie_head": True, "optimizer": "adamw",
}  # fmt: skip
_MODERN: Defaults = {
    "positions": "rope", "activation": "swiglu", "norm": "layer", "bias": False, "qk_norm": True, "zero_init": True,
    "tie_head": True, "optimizer": "muon",
}  # fmt: skip
FAMILY: dict[str, Defaults] = {
    "bigram": {"lr": 0.1, "weight_decay": 0.0},
    "ngram": {},
    "mlp": {"order": 8, "n_layer": 1, "n_embd": 32, "n_hidden": 256, "lr": 2e-3, **_PLAIN},
    "cnn": {"n_layer": 6, "n_embd": 64, "activation": "tanh", "norm": "none", "lr": 2e-3},
    "rnn": {"n_layer": 1, "n_hidden": 128, "lr": 2e-3, **_PLAIN},
    "lstm": {"n_layer": 1, "n_hidden": 128, "lr": 4e-3, "norm": "none"},
    "gru": {"n_layer": 1, "n_hidden": 128, "lr": 4e-3, "norm": "none"},
    "transformer": {"lr": 3e-3, **_MODERN},
}
LINES: Defaults = {"steps": 2000, "batch_size": 64}
STREAM: dict[str, Defaults] = {  # on top of the family's: a stream has more to learn from than a list of names
    "bigram": {},
    "ngram": {},
    "mlp": {"order": 10, "n_hidden": 512},
    "cnn": {"n_embd": 128},
    "rnn": {"n_embd": 128, "n_hidden": 256},
    "lstm": {"n_embd": 128, "n_hidden": 256},
    "gru": {"n_embd": 128, "n_hidden": 256},
    "transformer": {"n_embd": 128, "lr": 2e-3},
}
SERIES: Defaults = {  # few tokens, seen often: small and with dropout; the context has two weeks of hours
    "context": 384, "steps": 1500, "eval_interval": 100, "batch_size": 8, "n_embd": 32, "dropout": 0.1,
}  # fmt: skip
SERIES_FAMILY: dict[str, Defaults] = {
    "gru": {"n_hidden": 96, "lr": 8e-3},
    "transformer": {"n_layer": 2, "n_head": 4, "n_embd": 64, "dropout": 0.0, "steps": 400},
}
STREAM_CONTEXT = 64  # of documents too, unless all are shorter: longer ones are cut
LINES_CONTEXT = 256  # longer lines are cut
OPTIMIZER: dict[str, Defaults] = {
    "sgd": {"lr": 0.3, "weight_decay": 0.0},
    "momentum": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.0},
    "adagrad": {"lr": 0.02, "weight_decay": 0.0},
    "rmsprop": {"lr": 1e-3, "weight_decay": 0.0},
    "adam": {"weight_decay": 0.0},
    "adamw": {},
    "muon": {"momentum": 0.95, "weight_decay": 0.01},
}

_MAKEMORE: Defaults = {
    "n_embd": 64, "n_hidden": 64, "batch_size": 32, "steps": 5000, "eval_interval": 500, "optimizer": "adamw",
    "lr": 5e-4, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.01, "schedule": "constant", "warmup": 0,
    "grad_clip": 0.0,
}  # fmt: skip
_MAKEMORE_FAMILY: dict[str, Defaults] = {
    "mlp": {"order": 8, "n_layer": 1, **_PLAIN},
    "rnn": {"n_layer": 1, **_PLAIN},
    "lstm": {"n_layer": 1, "norm": "none"},
    "gru": {"n_layer": 1, "norm": "none"},
    "cnn": {"n_layer": 4},
    "transformer": {"n_layer": 4, "n_head": 4, "tie_head": False, "weight_init": "torch"},
}
_NANOGPT_CPU: Defaults = {
    "n_layer": 4, "n_head": 4, "n_embd": 128, "n_hidden": 128, "context": 64, "batch_size": 12, "steps": 2000,
    "eval_interval": 250, "optimizer": "adamw", "lr": 1e-3, "lr_floor": 0.1, "beta1": 0.9, "beta2": 0.99,
    "weight_decay": 0.1, "schedule": "cosine", "warmup": 100, "grad_clip": 1.0, "dropout": 0.0, "bias": False,
}  # fmt: skip
_NANOGPT: Defaults = _NANOGPT_CPU | {  # its config/train_shakespeare_char.py, the "baby GPT"
    "n_layer": 6, "n_head": 6, "n_embd": 384, "n_hidden": 384, "context": 256, "batch_size": 64, "steps": 5000,
    "dropout": 0.2,
}  # fmt: skip
_124M: Defaults = {
    "data": "openwebtext", "tokenizer": "gpt2", "n_layer": 12, "n_embd": 768, "context": 1024, "dropout": 0.0,
    "beta1": 0.9, "beta2": 0.95, "grad_clip": 1.0,
}  # fmt: skip
# nanoGPT's config/train_gpt2.py and the defaults of its train.py: 12 x 40 x 1,024 = 491,520 tokens a step, as its
# batch of 12, accumulation of 5 and 8 processes make; 3 x 10^11 tokens in all.
_GPT2_124M: Defaults = _GPT2 | _124M | {
    "activation": "gelu", "bias": False, "n_head": 12, "batch_size": 12, "grad_accum": 40, "steps": 600_000,
    "eval_interval": 1000, "lr": 6e-4, "lr_floor": 0.1, "weight_decay": 0.1, "schedule": "cosine", "warmup": 2000,
}  # fmt: skip
# The parts and the optimizer of the default Transformer, heads of 128 and RMS norm: 32 x 16 x 1,024 = 524,288 tokens
# a step, 3.1 x 10^9 in all. Jordan et al. 2024 (modded-nanogpt) took the same batch and learning rates.
_GPT2_124M_FAST: Defaults = _MODERN | _124M | {
    "norm": "rms", "n_head": 6, "batch_size": 32, "grad_accum": 16, "steps": 6000, "eval_interval": 250, "lr": 3.6e-3,
    "muon_lr": 0.02, "lr_floor": 0.0, "schedule": "wsd", "warmup": 250,
}  # fmt: skip
_PEERS = {"makemore": _MAKEMORE, "nanogpt-cpu": _NANOGPT_CPU, "nanogpt": _NANOGPT}
TRANSFORMERS = {
    "gpt2": _GPT2, "modern": _MODERN, "gpt2-124m": _GPT2_124M, "gpt2-124m-fast": _GPT2_124M_FAST,
}  # fmt: skip
PRESETS = (*_PEERS, *TRANSFORMERS)


def of_kind(kind: str, model: str) -> list[Defaults]:
    """The defaults of `model` on a text of this kind, from the general to the particular."""
    if kind == "lines":
        return [LINES]
    if kind == "series":
        return [SERIES, SERIES_FAMILY.get(model, {})]
    return [{"steps": 2000} | ({"context": STREAM_CONTEXT} if kind == "stream" else {}), STREAM[model]]


def preset(name: str, model: str) -> Defaults:
    """The defaults that `--preset name` fills in for `model`. UserError where it has none."""
    if name in TRANSFORMERS and model != "transformer":
        raise UserError(f"--preset {name} is a Transformer; --model {model} has others")
    if name in TRANSFORMERS:
        return dict(TRANSFORMERS[name])
    parts = _GPT2 | {"activation": "gelu"} if model == "transformer" else {}  # on CPU the exact GELU is the faster one
    return parts | _PEERS[name] | (_MAKEMORE_FAMILY.get(model, {}) if name == "makemore" else {})
