"""A trained Transformer and its tokenizer as a folder of the Hub: files that `transformers` loads with no custom code.

One with learned positions, layer norm and plain activations goes out as a GPT-2, one with RoPE, RMS norm and SwiGLU as
a Llama (Touvron et al. 2023). All files are written by hand; nothing here needs `transformers`.
"""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from data import gpt2
from data.bpe import BPETokenizer
from data.errors import UserError
from data.gpt2 import WRITTEN, GPT2Tokenizer
from data.tokenizers import SPECIALS, ByteTokenizer, CharTokenizer, Tokenizer
from nanogpt.model import Transformer
from nanogpt.pretrained import TRANSPOSED

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu", "tanh": "tanh"}
ROPE_BASE = 10000.0
GPT2_END = "<|endoftext|>"  # what GPT-2 calls its <eos>
_NAMED = ("bos", "eos", "pad", "unk")


def save(model: Transformer, tokenizer: Tokenizer, settings: dict[str, Any], folder: Path, starts: str) -> str:
    """Write the folder; returns what it holds, 'gpt2' or 'llama'. `settings` are the flags the model was made with,
    `starts` the special that a text begins with, or ''.

    Raises UserError for what neither of the two can be."""
    as_gpt2 = settings["positions"] == "learned"
    config, weights = (_gpt2 if as_gpt2 else _llama)(model, settings)
    specials, table = tokenizer.specials, model.wte.weight
    if isinstance(tokenizer, GPT2Tokenizer) and not starts and _are_untouched(table[gpt2.VOCAB_SIZE :]):
        specials, table = {GPT2_END: tokenizer.special.eos}, table[: gpt2.VOCAB_SIZE]
        weights = {name: w[: len(table)] if len(w) == model.vocab_size else w for name, w in weights.items()}
    names = {"bos": GPT2_END, "eos": GPT2_END} if GPT2_END in specials else {n: f"<{n}>" for n in _NAMED}
    ids = {f"{name}_token_id": specials[special] for name, special in names.items() if name != "unk"}
    tied = model.lm_head is None
    config |= {"vocab_size": len(table), "tie_word_embeddings": tied, "torch_dtype": "float32", **ids}
    folder.mkdir(parents=True, exist_ok=True)
    never = [id_ for id_ in specials.values() if id_ != tokenizer.special.eos]
    generation = ids | {"do_sample": True} | ({"suppress_tokens": never} if never else {})
    weights = {name: tensor.detach().float().cpu().contiguous() for name, tensor in weights.items()}
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    for name, content in {
        "config.json": config,
        "generation_config.json": generation,
        "tokenizer.json": tokenizer_json(tokenizer, specials, starts),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            # What a user types is text, also where it spells a special.
            "split_special_tokens": True,
            "clean_up_tokenization_spaces": False,
            "model_max_length": settings["context"],
            **{f"{name}_token": special for name, special in names.items()},
        },
    }.items():
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return config["model_type"]


def _gpt2(model: Transformer, settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    _refuse(
        {
            "--norm": settings["norm"] != "layer",
            "--activation": settings["activation"] not in ACTIVATIONS,
            "--n-kv-head": (settings["n_kv_head"] or settings["n_head"]) != settings["n_head"],
            **_never(model, settings),
        },
        settings,
        "a GPT-2 (learned positions)",
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
        "activation_function": ACTIVATIONS[settings["activation"]], "layer_norm_epsilon": 1e-5,
        "resid_pdrop": settings["dropout"], "embd_pdrop": settings["dropout"], "attn_pdrop": settings["dropout"],
    }, weights  # fmt: skip


def _prefixed(name: str) -> str:
    return name if name.startswith("lm_head.") else f"transformer.{name}"


def _llama(model: Transformer, settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    _refuse(
        {
            "--positions": settings["positions"] != "rope",
            "--norm": settings["norm"] != "rms",
            "--activation": settings["activation"] != "swiglu",
            **_never(model, settings),
        },
        settings,
        "a GPT-2 (learned positions) or a Llama (RoPE, RMS norm, SwiGLU)",
    )
    n_kv_head = settings["n_kv_head"] or settings["n_head"]
    head_size = settings["n_embd"] // settings["n_head"]
    weights = {"model.embed_tokens.weight": model.wte.weight, "model.norm.weight": model.ln_f.weight}
    if model.lm_head is not None:
        weights["lm_head.weight"] = model.lm_head.weight
    for n, block in enumerate(model.h):
        place = f"model.layers.{n}."
        weights[f"{place}input_layernorm.weight"] = block.ln_1.weight
        weights[f"{place}post_attention_layernorm.weight"] = block.ln_2.weight
        widths = [settings["n_head"] * head_size] + 2 * [n_kv_head * head_size]
        for part in ("weight", "bias") if settings["bias"] else ("weight",):
            q, k, v = getattr(block.attn.c_attn, part).split(widths)
            up, gate = getattr(block.mlp.c_fc, part).chunk(2)
            weights |= {
                f"{place}self_attn.q_proj.{part}": q, f"{place}self_attn.k_proj.{part}": k,
                f"{place}self_attn.v_proj.{part}": v,
                f"{place}self_attn.o_proj.{part}": getattr(block.attn.c_proj, part),
                f"{place}mlp.up_proj.{part}": up, f"{place}mlp.gate_proj.{part}": gate,
                f"{place}mlp.down_proj.{part}": getattr(block.mlp.c_proj, part),
            }  # fmt: skip
    return {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": settings["n_layer"],
        "num_attention_heads": settings["n_head"], "num_key_value_heads": n_kv_head,
        "hidden_size": settings["n_embd"], "intermediate_size": model.h[0].mlp.c_proj.in_features,
        "head_dim": head_size, "max_position_embeddings": settings["context"], "hidden_act": "silu",
        "rms_norm_eps": torch.finfo(torch.float32).eps, "rope_theta": ROPE_BASE,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_BASE},
        "attention_bias": settings["bias"], "mlp_bias": settings["bias"], "attention_dropout": settings["dropout"],
    }, weights  # fmt: skip


def _never(model: Transformer, settings: dict[str, Any]) -> dict[str, bool]:
    """The flags that neither of the two has."""
    return {
        "--window": settings["window"] is not None,
        "--qk-norm": settings["qk_norm"],
        "--hash-ngrams": settings["hash_ngrams"] > 0,
        "--no-tie-head with biases": model.lm_head is not None and model.lm_head.bias is not None,
    }


def _refuse(unlike: dict[str, bool], settings: dict[str, Any], what: str) -> None:
    if wrong := [name for name, is_unlike in unlike.items() if is_unlike]:
        value = settings.get(wrong[0].removeprefix("--").replace("-", "_"), "")
        told = "" if isinstance(value, bool) or value == "" else f" {value}"
        raise UserError(
            f"{wrong[0]}{told} is no part of {what}, so the run cannot go out as one; --preset gpt2 trains one that can"
        )


def _are_untouched(rows: Tensor) -> bool:
    """Whether the rows appended to GPT-2's are still what they were made as: all one. A loss in which they are never
    targets moves them alike."""
    return bool((rows == rows[0]).all())


def tokenizer_json(tokenizer: Tokenizer, special: dict[str, int], starts: str) -> dict[str, Any]:
    """What the `tokenizers` library reads: the same ids for any text, and `special` by name; a text begins with the one
    called `starts` ('' for none)."""
    added = [
        {"id": id_, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for name, id_ in sorted(special.items(), key=lambda item: item[1])
    ]  # fmt: skip
    found = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "post_processor": None,
    }  # fmt: skip
    if starts:
        pieces = [{"SpecialToken": {"id": starts, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        found["post_processor"] = {
            "type": "TemplateProcessing", "single": pieces,
            "pair": [*pieces, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {starts: {"id": starts, "ids": [special[starts]], "tokens": [starts]}},
        }  # fmt: skip
    if isinstance(tokenizer, CharTokenizer):
        vocabulary = special | {c: len(SPECIALS) + n for n, c in enumerate(tokenizer.alphabet)}
        return found | {
            "pre_tokenizer": {
                "type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False,
            },
            "decoder": {"type": "Fuse"},
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
        }  # fmt: skip
    if isinstance(tokenizer, ByteTokenizer):
        tokens, first, regex = [bytes([byte]) for byte in range(256)], len(SPECIALS), False
    elif isinstance(tokenizer, BPETokenizer):
        tokens, first, regex = tokenizer.tokens, tokenizer.first_id, True
    else:
        raise UserError(f"a tokenizer '{tokenizer.name}' has no counterpart on the Hub")
    vocabulary = special | {_written(token): first + rank for rank, token in enumerate(tokens)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": regex}
    return found | {
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": vocabulary, "merges": [[_written(a), _written(b)] for a, b in merges(tokens)],
        },
    }  # fmt: skip


def merges(tokens: list[bytes]) -> list[tuple[bytes, bytes]]:
    """The pair that each token of more than one byte is merged from, by rank: what it falls into when only tokens of
    lower rank are known."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    found = []
    for rank, token in enumerate(tokens):
        if len(token) == 1:
            continue
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(a + b, len(tokens)) for a, b in zip(parts, parts[1:], strict=False)]
            i = min(range(len(pairs)), key=pairs.__getitem__)
            if pairs[i] >= rank:
                raise UserError(f"token {rank} of the tokenizer ({token!r}) is no merge of two earlier ones")
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        found.append((parts[0], parts[1]))
    return found


def _written(token: bytes) -> str:
    return "".join(WRITTEN[byte] for byte in token)
