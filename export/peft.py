"""A run of `--train lora` as an adapter of PEFT, beside the model that it adapts.

The adapter is W + (alpha / r) B A on the Hub's layers. These are rows of ours, split or scaled, so B is rewritten as
the rows of W are (`hub_weights`), and A stays as it is.
"""

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.disk import write_parts
from data.errors import UserError
from engine.run import checkpoint
from engine.run.tensor_files import files_of
from export.hub_check import check_equal, example
from export.hub_weights import counterpart
from nanogpt.model import Transformer

OURS = {  # which of our layers a Llama's layer is made of; a GPT-2's have our names
    "q_proj": "attn.c_attn", "k_proj": "attn.c_attn", "v_proj": "attn.c_attn", "o_proj": "attn.c_proj",
    "up_proj": "mlp.c_fc", "gate_proj": "mlp.c_fc", "down_proj": "mlp.c_proj",
}  # fmt: skip
LAYERS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
Adapters = dict[str, tuple[Tensor, Tensor, float]]  # A (r, in), B (out, r) and alpha / r by our layer's name


def read(model: Transformer, folder: Path, which: str) -> tuple[Transformer, Adapters]:
    """The model of a run before its adapters were added, and these. Raises UserError for a run that has none."""
    weights = checkpoint.load(folder / which, ("model",))[0]["model"]
    names = sorted(name.removesuffix(".lora_a") for name in weights if name.endswith(".lora_a"))
    if not names:
        raise UserError(f"{folder} has no adapters: --to peft is for runs of --train lora; --to hf takes whole models")
    weights = checkpoint.load(folder / "base", ("model",))[0]["model"] | weights
    adapters = {}
    for name in names:
        a, b, scale = (weights.pop(f"{name}.{part}") for part in ("lora_a", "lora_b", "lora_scale"))
        adapters[name] = a, b, float(scale)
        for part in ("weight", "bias"):
            if f"{name}.base.{part}" in weights:
                weights[f"{name}.{part}"] = weights.pop(f"{name}.base.{part}")
    base = copy.deepcopy(model)
    base.load_state_dict(weights)
    return base, adapters


def save(model: Transformer, adapters: Adapters, settings: dict[str, Any], folder: Path, base: Path) -> None:
    """Write the adapter into `folder`; `base` is where the model that it adapts was written. `settings` are the flags
    that `model` was made with."""
    config, rows = counterpart(_of_rows(model, adapters), settings)
    is_gpt2 = config["model_type"] == "gpt2"
    weights, modules = {}, []
    for name, b in rows.items():
        layer = _layer_of(name, is_gpt2)
        if layer in adapters and name.endswith(".weight"):
            module = name.removesuffix(".weight")
            modules.append(module)
            weights[f"base_model.model.{module}.lora_A.weight"] = adapters[layer][0]
            weights[f"base_model.model.{module}.lora_B.weight"] = b.t() if is_gpt2 else b
    weights = {name: tensor.detach().float().cpu().contiguous() for name, tensor in weights.items()}
    a, _, scale = next(iter(adapters.values()))
    about = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": len(a),
        "lora_alpha": scale * len(a), "lora_dropout": 0.0, "target_modules": _targets(modules, settings["n_layer"]),
        "fan_in_fan_out": is_gpt2, "bias": "none", "inference_mode": True,
    }  # fmt: skip
    for file, parts in files_of("adapter_model", weights, {"format": "pt"}):
        write_parts(folder / file, parts)
    (folder / "adapter_config.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")


@torch.no_grad()
def check(model: Transformer, folder: Path, base: Path) -> str:
    """How the adapter was checked, in words. Raises RuntimeError where PEFT computes something else than `model`."""
    if any(importlib.util.find_spec(package) is None for package in ("peft", "transformers")):
        return "not checked: with peft and transformers installed its logits are compared"
    import peft
    import transformers

    theirs: Any = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), folder)
    n_ids = theirs.config.vocab_size
    tokens = example(model, n_ids)
    check_equal(theirs.eval()(tokens).logits, model(tokens).logits[..., :n_ids], folder)
    return f"checked: its logits in peft {peft.__version__} are ours"


def _of_rows(model: Transformer, adapters: Adapters) -> Transformer:
    """The model with B (out, r) for the weight of each adapted layer, and one column of zeros for that of the others:
    what is done to the rows of weights is then done to those of B."""
    rows = copy.deepcopy(model)
    for n, block in enumerate(rows.h):
        for name in LAYERS:
            layer = block.get_submodule(name)
            b = (
                adapters[f"h.{n}.{name}"][1]
                if f"h.{n}.{name}" in adapters
                else layer.weight.new_zeros(len(layer.weight), 1)
            )
            layer.weight = nn.Parameter(b.clone(), requires_grad=False)
    return rows


def _layer_of(name: str, is_gpt2: bool) -> str:
    """Our name of the layer that a weight of the Hub's is made of, '' for none."""
    parts = name.split(".")
    if is_gpt2:
        return ".".join(parts[1:-1])
    return f"h.{parts[2]}.{OURS.get(parts[-2], '')}" if parts[1] == "layers" else ""


def _targets(modules: list[str], n_layer: int) -> list[str]:
    """The modules by their last two names where every block has them, else by their whole names."""
    short = [".".join(module.split(".")[-2:]) for module in modules]
    return sorted(set(short) if all(short.count(name) == n_layer for name in short) else modules)
