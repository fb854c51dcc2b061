"""GPT-2's published weights: a folder in the Hub's layout becomes this project's Transformer.

Radford et al. 2019; any size of it. The folder holds `config.json` and `model.safetensors`, or its shards with
`model.safetensors.index.json`. Nothing is unpickled. Torch is imported when weights are read: settings need none.
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import UserError
from data.tokenizers import N_SPECIALS
from makemore.constants import NORM_EPS

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "gpt2:"
GPT2_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}
# The Hub's layers of these names hold their matrices the other way round; one is square, so shapes do not tell.
TRANSPOSED = re.compile(r"\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight$")
# Masks, which some files hold besides.
SKIPPED = re.compile(r"\.attn\.(bias|masked_bias)$")
MAX_JSON = 64 << 20  # bytes


def folder_of(init: str) -> Path | None:
    """PATH of 'gpt2:PATH', None for anything else."""
    return Path(init.removeprefix(PREFIX)).expanduser() if init.startswith(PREFIX) else None


def read_settings(folder: Path) -> dict[str, Any]:
    """What the folder's `config.json` says, as flags of this project. Raises UserError for what is not a GPT-2, or not
    one that this Transformer can be."""
    path = folder / "config.json"
    config = _read_json(path)
    try:
        found = {"n_layer": config["n_layer"], "n_head": config["n_head"], "n_embd": config["n_embd"]}
        found["context"] = config.get("n_positions") or config["n_ctx"]
        vocab_size, activation = config["vocab_size"], config.get("activation_function", "gelu_new")
    except KeyError as error:
        raise UserError(f"{path} is not a GPT-2's: it does not say {error}") from error
    if wrong := [name for name, value in {**found, "vocab_size": vocab_size}.items() if type(value) is not int]:
        raise UserError(f"{path} is damaged: {wrong[0]} is {config.get(wrong[0])!r}, not a number")
    unlike = {
        "activation_function": not isinstance(activation, str) or activation not in GPT2_ACTIVATIONS,
        "layer_norm_epsilon": config.get("layer_norm_epsilon", NORM_EPS) != NORM_EPS,
        "n_inner": config.get("n_inner") not in (None, 4 * found["n_embd"]),
        "scale_attn_weights": config.get("scale_attn_weights", True) is not True,
        "scale_attn_by_inverse_layer_idx": bool(config.get("scale_attn_by_inverse_layer_idx")),
        "add_cross_attention": bool(config.get("add_cross_attention")),
        "tie_word_embeddings": config.get("tie_word_embeddings", True) is not True,
    }
    if wrong := [name for name, is_unlike in unlike.items() if is_unlike]:
        raise UserError(f"{path}: {wrong[0]} is {config.get(wrong[0])!r}, which this Transformer does not have")
    return found | {
        "model": "transformer", "n_kv_head": None, "activation": GPT2_ACTIVATIONS[activation], "norm": "layer",
        "positions": "learned", "window": None, "attention_cap": None, "qk_norm": False,
        "tie_head": True, "bias": True, "logit_cap": None, "tokenizer": "gpt2", "kind": "stream",
    }  # fmt: skip


def vocab_size(folder: Path) -> int:
    """How many ids the folder's model knows, without the specials that are appended here."""
    return _read_json(folder / "config.json")["vocab_size"]


def read_weights(folder: Path, context: int) -> "dict[str, Tensor]":
    """The weights in the names and shapes of `nanogpt.model.Transformer`, float32, positions cropped to `context`. Five
    rows for the appended specials follow in the embedding, each the mean of the others.

    Raises UserError listing what is missing or does not belong."""
    import torch

    settings = read_settings(folder)
    if context > settings["context"]:
        raise UserError(
            f"--context {context} is more than the {settings['context']} positions that {folder} has learned"
        )
    found = {}
    for name, tensor in _tensors(folder).items():
        name = name.removeprefix("transformer.")
        if not SKIPPED.search(name):
            found[name] = (tensor.t() if TRANSPOSED.search(name) else tensor).float().contiguous()
    head = found.pop("lm_head.weight", None)
    _check(found, settings, vocab_size(folder), folder)
    if head is not None and not torch.equal(head, found["wte.weight"]):
        raise UserError(f"{folder}: lm_head.weight is not the embedding table, as it is in a GPT-2")
    wte = found["wte.weight"]
    found["wte.weight"] = torch.cat([wte, wte.mean(0, keepdim=True).expand(N_SPECIALS - 1, -1)])
    found["wpe.weight"] = found["wpe.weight"][:context].contiguous()
    return found


def _check(found: "dict[str, Tensor]", settings: dict[str, Any], rows: int, folder: Path) -> None:
    """Raise UserError unless there is every tensor of such a GPT-2 in its shape, and no other."""
    C = settings["n_embd"]
    wanted = {"wte.weight": (rows, C), "wpe.weight": (settings["context"], C), "ln_f.weight": (C,), "ln_f.bias": (C,)}
    for n in range(settings["n_layer"]):
        for layer, out, into in (
            ("attn.c_attn", 3 * C, C), ("attn.c_proj", C, C), ("mlp.c_fc", 4 * C, C), ("mlp.c_proj", C, 4 * C),
        ):  # fmt: skip
            wanted |= {f"h.{n}.{layer}.weight": (out, into), f"h.{n}.{layer}.bias": (out,)}
        wanted |= {f"h.{n}.{norm}.{part}": (C,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
    if missing := sorted(set(wanted) - set(found)):
        raise UserError(f"{folder} lacks {len(missing)} of a GPT-2's weights: {_some(missing)}")
    if unexpected := sorted(set(found) - set(wanted)):
        raise UserError(f"{folder} has {len(unexpected)} weights that a GPT-2 has not: {_some(unexpected)}")
    if wrong := [name for name, shape in wanted.items() if tuple(found[name].shape) != shape]:
        shape = tuple(found[wrong[0]].shape)
        raise UserError(f"{folder}: {wrong[0]} has the shape {shape}, config.json asks for {wanted[wrong[0]]}")


def _tensors(folder: Path) -> "dict[str, Tensor]":
    import safetensors
    import safetensors.torch

    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        files = [whole]
    elif index.is_file():
        places = _read_json(index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise UserError(f"{index} is damaged: it has no weight_map")
        if foreign := sorted({name for name in places.values() if Path(name).name != name}):
            raise UserError(f"{index} names a file outside its folder: {foreign[0]}")
        files = [folder / name for name in sorted(set(places.values()))]
    else:
        pickled = " (pytorch_model.bin is a pickle: not read)" if (folder / "pytorch_model.bin").exists() else ""
        raise UserError(f"{folder} has neither model.safetensors nor model.safetensors.index.json{pickled}")
    found: dict[str, Tensor] = {}
    for file in files:
        try:
            found |= safetensors.torch.load_file(file)
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"cannot read {file}: {error}") from error
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON:
            raise UserError(f"{path} is too large to be the JSON of a model")
        read = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; gpt2:PATH names a folder in the Hub's layout"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(read, dict):
        raise UserError(f"{path} is not a JSON object")
    return read


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")
