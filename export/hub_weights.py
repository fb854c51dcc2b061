"""The class of `transformers` that computes what a Transformer does, and the weights under its names.

With learned positions that is GPT-2, with RoPE Llama (Touvron et al. 2023), with QK-norm besides Qwen3 (Yang et al.
2025). Some parts these have only in another form, which is exact:

- Layer norm without a bias is RMS norm of what has mean zero. The residual stream has it when all that is added to it
  has, so the mean leaves the embeddings and the two projections of each block.
- ReLU² is a gate: relu(x) * x.
- One epsilon serves all norms. QK-norm forgets how long queries and keys are, so these grow until it is small enough.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import UserError
from makemore.constants import ROPE_BASE
from nanogpt.block import Block
from nanogpt.model import Transformer
from nanogpt.pretrained import TRANSPOSED

OF_GPT2 = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu", "tanh": "tanh"}
OF_GATES = {"swiglu": "silu", "relu2": "relu"}
WAY_OUT = "--preset modern and --preset gpt2 train what can"
QK_EPS = torch.finfo(torch.float32).eps

Counterpart = tuple[dict[str, Any], dict[str, Tensor]]


def counterpart(model: Transformer, settings: dict[str, Any], way_out: str = WAY_OUT) -> Counterpart:
    """config.json, but for what the tokenizer says, and the weights. UserError, with the `way_out`, where no class
    computes the same."""
    return (_gpt2 if settings["positions"] == "learned" else _llama)(model, settings, way_out)


def _gpt2(model: Transformer, settings: dict[str, Any], way_out: str) -> Counterpart:
    _refuse(
        {
            "--norm": settings["norm"] != "layer",
            "--activation": settings["activation"] not in OF_GPT2,
            "--n-kv-head": (settings["n_kv_head"] or settings["n_head"]) != settings["n_head"],
            "--qk-norm": settings["qk_norm"],
            **_never(model, settings),
        },
        settings,
        "a GPT-2 (learned positions)",
        way_out,
    )
    weights = {}
    for name, tensor in model.state_dict().items():
        weights[_prefixed(name)] = tensor.t() if TRANSPOSED.search(f".{name}") else tensor
    if not settings["bias"]:  # a GPT-2 has biases: ours are zero
        for name in [name for name in weights if ".h." in name or "ln_f" in name]:
            beside = name.removesuffix("weight") + "bias"
            weights.setdefault(beside, weights[name].new_zeros(weights[name].shape[-1]))
    return {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": settings["n_layer"],
        "n_head": settings["n_head"], "n_embd": settings["n_embd"], "n_positions": settings["context"],
        "n_ctx": settings["context"],
        "activation_function": OF_GPT2[settings["activation"]], "layer_norm_epsilon": model.ln_f.eps,
        "tie_word_embeddings": model.lm_head is None,
        "resid_pdrop": settings["dropout"], "embd_pdrop": settings["dropout"], "attn_pdrop": settings["dropout"],
    }, weights  # fmt: skip


def _prefixed(name: str) -> str:
    return name if name.startswith("lm_head.") else f"transformer.{name}"


def _llama(model: Transformer, settings: dict[str, Any], way_out: str) -> Counterpart:
    qk_norm, bias, by_layer = settings["qk_norm"], settings["bias"], settings["norm"] == "layer"
    _refuse(
        {
            "--positions": settings["positions"] != "rope",
            "--norm": settings["norm"] not in ("layer", "rms"),
            "--activation": settings["activation"] not in OF_GATES,
            "--bias": bias and (by_layer or qk_norm),
            **_never(model, settings),
        },
        settings,
        "a GPT-2 (learned positions), a Llama or a Qwen3 (RoPE; SwiGLU or ReLU²; --bias with RMS norm and no QK-norm)",
        way_out,
    )
    n_head, tied = settings["n_head"], model.lm_head is None and not by_layer
    norm: Any = model.ln_f  # layer or RMS norm
    eps = norm.eps or QK_EPS
    embedding = model.wte.weight.detach()
    weights = {
        "model.embed_tokens.weight": _without_mean(embedding, -1) if by_layer else embedding,
        "model.norm.weight": norm.weight,
    }
    if not tied:
        weights["lm_head.weight"] = model.wte.weight if model.lm_head is None else model.lm_head.weight
    for n, block in enumerate(model.h):
        layer = _llama_layer(block, by_layer, math.sqrt(eps / QK_EPS) if qk_norm else None)
        weights |= {f"model.layers.{n}.{name}": weight for name, weight in layer.items()}
    name = "Qwen3" if qk_norm else "Llama"
    return {
        "model_type": name.lower(), "architectures": [f"{name}ForCausalLM"], "num_hidden_layers": settings["n_layer"],
        "num_attention_heads": n_head, "num_key_value_heads": settings["n_kv_head"] or n_head,
        "hidden_size": settings["n_embd"], "intermediate_size": model.h[0].mlp.c_proj.in_features,
        "head_dim": model.head_size, "max_position_embeddings": settings["context"],
        "hidden_act": OF_GATES[settings["activation"]], "rms_norm_eps": eps, "rope_theta": ROPE_BASE,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_BASE}, "tie_word_embeddings": tied,
        "attention_bias": bias, "mlp_bias": bias, "attention_dropout": settings["dropout"],
    }, weights  # fmt: skip


def _llama_layer(block: Block, by_layer: bool, longer: float | None) -> dict[str, Tensor]:
    """One block's weights. `longer`: how much queries and keys grow under QK-norm; None without."""
    attn, mlp = block.attn, block.mlp
    weights: dict[str, Any] = {
        "input_layernorm.weight": block.ln_1.weight,
        "post_attention_layernorm.weight": block.ln_2.weight,
    }
    if longer is not None:
        for name in ("q_norm", "k_norm"):
            weights[f"self_attn.{name}.weight"] = torch.ones(attn.head_size)
    widths = [attn.n_head * attn.head_size] + 2 * [attn.n_kv_head * attn.head_size]
    for part in ("weight", "bias"):
        if (inner := _part(mlp.c_fc, part)) is None:
            continue
        q, k, v = _part(attn.c_attn, part).split(widths)
        up, gate = inner.chunk(2) if mlp.gated else (inner, inner.clone())
        out, down = _part(attn.c_proj, part), _part(mlp.c_proj, part)
        if by_layer:
            out, down = _without_mean(out, 0), _without_mean(down, 0)
        if longer is not None:
            q, k = longer * q, longer * k
        weights |= {
            f"self_attn.q_proj.{part}": q, f"self_attn.k_proj.{part}": k, f"self_attn.v_proj.{part}": v,
            f"self_attn.o_proj.{part}": out,
            f"mlp.up_proj.{part}": up, f"mlp.gate_proj.{part}": gate, f"mlp.down_proj.{part}": down,
        }  # fmt: skip
    return weights


def _part(linear: nn.Linear, part: str) -> Any:
    """The weight, or the bias where there is one."""
    tensor = getattr(linear, part)
    return None if tensor is None else tensor.detach()


def _without_mean(weight: Tensor, dim: int) -> Tensor:
    return weight - weight.mean(dim, keepdim=True)


def _never(model: Transformer, settings: dict[str, Any]) -> dict[str, bool]:
    """The flags that none of them has."""
    return {
        "--window": settings["window"] is not None,
        "--attention-cap": settings["attention_cap"] is not None,
        "--hash-ngrams": settings["hash_ngrams"] > 0,
        "--value-residual": settings["value_residual"],
        "--value-embeddings": settings["value_embeddings"],
        "--logit-cap": settings["logit_cap"] is not None,
        "--no-tie-head with biases": model.lm_head is not None and model.lm_head.bias is not None,
    }


def _refuse(unlike: dict[str, bool], settings: dict[str, Any], what: str, way_out: str) -> None:
    if wrong := [name for name, is_unlike in unlike.items() if is_unlike]:
        value = settings.get(wrong[0].removeprefix("--").replace("-", "_"), "")
        told = "" if isinstance(value, bool) or value == "" else f" {value}"
        raise UserError(f"{wrong[0]}{told} is no part of {what}, so the run cannot go out as one; {way_out}")
