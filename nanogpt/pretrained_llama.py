"""Llama and Qwen3 folders of the shapes that `export` writes, back as this project's Transformer.

`export/hub_weights.py` says which of our parts these have in another form. Here each form goes back: an RMS norm with
layer norm's epsilon is layer norm of what has mean zero, a gate of ReLU whose two matrices are one is ReLU², and
queries and keys are as long as QK-norm's own epsilon wants them.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import UserError
from makemore.constants import NORM_EPS, ROPE_BASE
from nanogpt.hub_folder import check_weights

if TYPE_CHECKING:
    from torch import Tensor

KINDS = {"llama": False, "qwen3": True}  # whether it has QK-norm
ACTIVATIONS = {"silu": "swiglu", "relu": "relu2"}
FLOAT32_EPS = 2.0**-23  # of our RMS norm and QK-norm
SAME = 1e-4  # of the size of the weights: what float32, or bfloat16 made of it, leaves of a mean that was taken away


def settings(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What config.json says, as flags. Raises UserError for what this Transformer does not have."""
    whole = {
        "n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "n_kv_head": "num_key_value_heads",
        "n_embd": "hidden_size", "context": "max_position_embeddings",
    }  # fmt: skip
    found: dict[str, Any] = {name: config.get(theirs) for name, theirs in whole.items()}
    if wrong := [theirs for name, theirs in whole.items() if type(found[name]) is not int]:
        raise UserError(f"{path} is damaged: {wrong[0]} is {config.get(wrong[0])!r}, not a number")
    theta = (config.get("rope_parameters") or {}).get("rope_theta", config.get("rope_theta", ROPE_BASE))
    eps, qk_norm, bias = config.get("rms_norm_eps"), KINDS[config["model_type"]], config.get("attention_bias", False)
    unlike = {
        "hidden_act": config.get("hidden_act") not in ACTIVATIONS,
        "rope_parameters": theta != ROPE_BASE or (config.get("rope_parameters") or {}).get("rope_type") != "default",
        "rope_scaling": bool(config.get("rope_scaling")),
        "rms_norm_eps": eps not in (NORM_EPS, FLOAT32_EPS),
        "head_dim": config.get("head_dim") != found["n_embd"] // found["n_head"],
        "attention_bias": bias is not config.get("mlp_bias", False) or (bias and (qk_norm or eps == NORM_EPS)),
        "use_sliding_window": bool(config.get("use_sliding_window")),
    }
    if wrong := [name for name, is_unlike in unlike.items() if is_unlike]:
        raise UserError(f"{path}: {wrong[0]} is {config.get(wrong[0])!r}, which this Transformer does not have")
    return found | {
        "model": "transformer", "activation": ACTIVATIONS[config["hidden_act"]], "positions": "rope", "window": None,
        "norm": "layer" if eps == NORM_EPS else "rms", "attention_cap": None, "qk_norm": qk_norm, "bias": bias,
        "tie_head": config.get("tie_word_embeddings", False), "logit_cap": None,
        "value_embeddings": False, "value_residual": False,
    }  # fmt: skip


def weights(folder: Path, settings: dict[str, Any], size: int, tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """The weights in our names and shapes, of `size` ids. Raises UserError for what is missing, or is another model."""
    import torch

    found = {name: tensor.float() for name, tensor in tensors.items()}
    if settings["tie_head"]:
        found.pop("lm_head.weight", None)
    check_weights(found, _shapes(settings, size), folder, "such a model")
    by_layer = settings["norm"] == "layer"
    ours = {"wte.weight": found["model.embed_tokens.weight"], "ln_f.weight": found["model.norm.weight"]}
    if not settings["tie_head"]:
        ours["lm_head.weight"] = found["lm_head.weight"]
        if settings["bias"]:
            ours["lm_head.bias"] = torch.zeros(size)
    if by_layer:
        _check_mean(ours["wte.weight"], -1, folder, "model.embed_tokens.weight")
    longer = math.sqrt((NORM_EPS if by_layer else FLOAT32_EPS) / FLOAT32_EPS)
    for n in range(settings["n_layer"]):
        prefix = f"model.layers.{n}."
        theirs = {name.removeprefix(prefix): each for name, each in found.items() if name.startswith(prefix)}
        if by_layer:
            for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
                _check_mean(theirs[name], 0, folder, f"model.layers.{n}.{name}")
        ours |= {f"h.{n}.{name}": tensor for name, tensor in _layer(theirs, settings, longer, folder).items()}
    return ours


def _layer(theirs: "dict[str, Tensor]", settings: dict[str, Any], longer: float, folder: Path) -> "dict[str, Tensor]":
    """One block's weights."""
    import torch

    ours = {
        "ln_1.weight": theirs["input_layernorm.weight"], "ln_2.weight": theirs["post_attention_layernorm.weight"],
    }  # fmt: skip
    if settings["qk_norm"] and any(bool((theirs[f"self_attn.{name}_norm.weight"] != 1).any()) for name in "qk"):
        raise UserError(f"{folder} has learned weights of QK-norm, which this Transformer does not have")
    for part in ("weight", "bias"):
        if f"self_attn.q_proj.{part}" not in theirs:
            continue
        q, k, v = (theirs[f"self_attn.{name}_proj.{part}"] for name in "qkv")
        if settings["qk_norm"]:
            q, k = q / longer, k / longer
        up, gate = (theirs[f"mlp.{name}_proj.{part}"] for name in ("up", "gate"))
        if settings["activation"] == "relu2" and not torch.equal(up, gate):
            raise UserError(f"{folder} has gates of ReLU, which this Transformer does not have")
        ours |= {
            f"attn.c_attn.{part}": torch.cat([q, k, v]), f"attn.c_proj.{part}": theirs[f"self_attn.o_proj.{part}"],
            f"mlp.c_fc.{part}": up if settings["activation"] == "relu2" else torch.cat([up, gate]),
            f"mlp.c_proj.{part}": theirs[f"mlp.down_proj.{part}"],
        }  # fmt: skip
    return ours


def _shapes(settings: dict[str, Any], size: int) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor there."""
    C, n_head = settings["n_embd"], settings["n_head"]
    kv = settings["n_kv_head"] * (C // n_head)
    inner = -(-8 * C // 24) * 8 if settings["activation"] == "swiglu" else 4 * C  # as in nanogpt/block.py
    wanted: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (size, C), "model.norm.weight": (C,)}
    if not settings["tie_head"]:
        wanted["lm_head.weight"] = (size, C)
    for n in range(settings["n_layer"]):
        at = f"model.layers.{n}"
        products = {
            "self_attn.q_proj": (C, C), "self_attn.k_proj": (kv, C), "self_attn.v_proj": (kv, C),
            "self_attn.o_proj": (C, C), "mlp.up_proj": (inner, C), "mlp.gate_proj": (inner, C),
            "mlp.down_proj": (C, inner),
        }  # fmt: skip
        wanted |= {f"{at}.{name}.weight": shape for name, shape in products.items()}
        if settings["bias"]:
            wanted |= {f"{at}.{name}.bias": shape[:1] for name, shape in products.items()}
        wanted |= {f"{at}.{name}_layernorm.weight": (C,) for name in ("input", "post_attention")}
        if settings["qk_norm"]:
            wanted |= {f"{at}.self_attn.{name}_norm.weight": (C // n_head,) for name in "qk"}
    return wanted


def _check_mean(weight: "Tensor", dim: int, folder: Path, name: str) -> None:
    """Raise UserError where what this adds to the stream has a mean: then RMS norm is no layer norm."""
    if weight.mean(dim).abs().max() > SAME * weight.abs().max():
        raise UserError(
            f"{folder}: {name} is not free of its mean, so its RMS norm with the epsilon {NORM_EPS} is none that this "
            "Transformer has; folders that `export` wrote come back"
        )
