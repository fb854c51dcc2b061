"""Published weights, and our own exports: a folder in the Hub's layout becomes this project's Transformer.

GPT-2 (Radford et al. 2019), any size, vocabulary and activation of it; and of Llama (Touvron et al. 2023) and Qwen3
(Yang et al. 2025) the shapes that `export` writes (pretrained_llama.py).
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data import hub_tokenizer
from data.errors import UserError
from data.hub_tokenizer import HubVocabulary
from makemore.constants import NORM_EPS
from nanogpt import pretrained_llama
from nanogpt.hub_folder import check_weights, folder_of, moved_rows, read_config, read_tensors

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["folder_of", "read_settings", "read_vocabulary", "read_weights", "with_ids"]

ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"} | {
    name: name for name in ("relu", "silu", "tanh")
}
# The Hub's layers of these names hold their matrices the other way round; one is square, so shapes do not tell.
TRANSPOSED = re.compile(r"\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight$")
# Masks, which some files hold besides.
SKIPPED = re.compile(r"\.attn\.(bias|masked_bias)$")


class _Sizes(NamedTuple):
    """What all kinds say."""

    vocab_size: int
    eos: int | None


def read_settings(folder: Path) -> dict[str, Any]:
    """What the folder says, as flags of this project. Raises UserError for what is none of these models, or not one
    that this Transformer can be."""
    name, begins = hub_tokenizer.name_of(folder, *_sizes(folder))
    return _model_settings(folder) | {"tokenizer": name, "kind": "lines" if begins else "stream"}


def read_vocabulary(folder: Path) -> HubVocabulary:
    """The tokenizer of the folder, and where its ids are in the model there."""
    return hub_tokenizer.read(folder, *_sizes(folder))


def read_weights(folder: Path, context: int) -> "dict[str, Tensor]":
    """The weights in the names and shapes of `nanogpt.model.Transformer`, float32, positions cropped to `context`. The
    ids are those of the folder; `with_ids` makes them ours.

    Raises UserError listing what is missing or does not belong."""
    settings, size = _model_settings(folder), _sizes(folder).vocab_size
    if context > settings["context"]:
        raise UserError(
            f"--context {context} is more than the {settings['context']} positions that {folder} has learned"
        )
    read = _gpt2_weights if settings["positions"] == "learned" else pretrained_llama.weights
    found = read(folder, settings, size, read_tensors(folder))
    if "wpe.weight" in found:
        found["wpe.weight"] = found["wpe.weight"][:context].contiguous()
    return found


def with_ids(weights: "dict[str, Tensor]", rows: list[int]) -> "dict[str, Tensor]":
    """The weights for another order of the vocabulary: each of its ids has the row `rows` says, where that is negative
    the mean of all."""
    tables = ("wte.weight", "lm_head.weight", "lm_head.bias")
    return {name: moved_rows(each, rows) if name in tables else each for name, each in weights.items()}


def _model_settings(folder: Path) -> dict[str, Any]:
    """What `config.json` says: all but the tokenizer."""
    config = read_config(folder / "config.json")
    read = pretrained_llama.settings if config.get("model_type") in pretrained_llama.KINDS else _gpt2_settings
    return read(folder / "config.json", config)


def _sizes(folder: Path) -> _Sizes:
    path = folder / "config.json"
    config = read_config(path)
    size, eos = config.get("vocab_size"), config.get("eos_token_id")
    if type(size) is not int:
        raise UserError(f"{path} is damaged: vocab_size is {size!r}, not a number")
    return _Sizes(size, eos if type(eos) is int else None)


def _gpt2_settings(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    try:
        found = {"n_layer": config["n_layer"], "n_head": config["n_head"], "n_embd": config["n_embd"]}
        found["context"] = config.get("n_positions") or config["n_ctx"]
        size, activation = config["vocab_size"], config.get("activation_function", "gelu_new")
    except KeyError as error:
        raise UserError(f"{path} is not a GPT-2's, a Llama's or a Qwen3's: it does not say {error}") from error
    if wrong := [name for name, value in {**found, "vocab_size": size}.items() if type(value) is not int]:
        raise UserError(f"{path} is damaged: {wrong[0]} is {config.get(wrong[0])!r}, not a number")
    unlike = {
        "activation_function": not isinstance(activation, str) or activation not in ACTIVATIONS,
        "layer_norm_epsilon": config.get("layer_norm_epsilon", NORM_EPS) != NORM_EPS,
        "n_inner": config.get("n_inner") not in (None, 4 * found["n_embd"]),
        "scale_attn_weights": config.get("scale_attn_weights", True) is not True,
        "scale_attn_by_inverse_layer_idx": bool(config.get("scale_attn_by_inverse_layer_idx")),
        "add_cross_attention": bool(config.get("add_cross_attention")),
        "tie_word_embeddings": type(config.get("tie_word_embeddings", True)) is not bool,
    }
    if wrong := [name for name, is_unlike in unlike.items() if is_unlike]:
        raise UserError(f"{path}: {wrong[0]} is {config.get(wrong[0])!r}, which this Transformer does not have")
    return found | {
        "model": "transformer", "n_kv_head": None, "activation": ACTIVATIONS[activation], "norm": "layer",
        "positions": "learned", "window": None, "attention_cap": None, "qk_norm": False, "value_embeddings": False,
        "value_residual": False,
        "tie_head": config.get("tie_word_embeddings", True), "bias": True, "logit_cap": None,
    }  # fmt: skip


def _gpt2_weights(
    folder: Path, settings: dict[str, Any], size: int, tensors: "dict[str, Tensor]"
) -> "dict[str, Tensor]":
    import torch

    found = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("transformer.")
        if not SKIPPED.search(name):
            found[name] = (tensor.t() if TRANSPOSED.search(name) else tensor).float().contiguous()
    head = found.pop("lm_head.weight", None)
    check_weights(found, _gpt2_shapes(settings, size), folder, "a GPT-2")
    if settings["tie_head"]:
        if head is not None and not torch.equal(head, found["wte.weight"]):
            raise UserError(f"{folder}: lm_head.weight is not the embedding table, as config.json says that it is")
    elif head is None or head.shape != found["wte.weight"].shape:
        raise UserError(
            f"{folder} has no lm_head.weight of the embedding's shape, and config.json says that it has one"
        )
    else:
        found |= {"lm_head.weight": head, "lm_head.bias": torch.zeros(size)}
    return found


def _gpt2_shapes(settings: dict[str, Any], size: int) -> dict[str, tuple[int, ...]]:
    C = settings["n_embd"]
    wanted: dict[str, tuple[int, ...]] = {
        "wte.weight": (size, C), "wpe.weight": (settings["context"], C), "ln_f.weight": (C,), "ln_f.bias": (C,),
    }  # fmt: skip
    for n in range(settings["n_layer"]):
        for layer, out, into in (
            ("attn.c_attn", 3 * C, C), ("attn.c_proj", C, C), ("mlp.c_fc", 4 * C, C), ("mlp.c_proj", C, 4 * C),
        ):  # fmt: skip
            wanted |= {f"h.{n}.{layer}.weight": (out, into), f"h.{n}.{layer}.bias": (out,)}
        wanted |= {f"h.{n}.{norm}.{part}": (C,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
    return wanted
