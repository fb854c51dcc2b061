"""LoRA: a frozen linear layer and a trained update of low rank beside it.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021: y = W x + (alpha / r) B A x, with A (r, in)
random and B (out, r) zero, so that training starts from the model as it is.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.errors import UserError

HEAD = "lm_head"  # never adapted: its weight may be tied to the embedding table, which an update would change too


class LoRALinear(nn.Module):
    """A linear layer `base`, which is frozen, with a trained update of low rank: x (..., in) -> (..., out)."""

    lora_scale: Tensor

    def __init__(self, base: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.base, self.merged = base.requires_grad_(False), False
        self.lora_a = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))
        self.register_buffer("lora_scale", torch.tensor(alpha / rank))  # so that a stored adapter is whole
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return y if self.merged else y + self.lora_scale * F.linear(F.linear(x, self.lora_a), self.lora_b)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the update to the weight, so that the layer costs no more than a plain one."""
        if not self.merged:
            self.base.weight += _update(self.lora_a, self.lora_b, self.lora_scale)
        self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Subtract the update from the weight again."""
        if self.merged:
            self.base.weight -= _update(self.lora_a, self.lora_b, self.lora_scale)
        self.merged = False


def add_lora(model: nn.Module, rank: int, alpha: float, layers: str = "all") -> None:
    """Freeze `model` and replace its linear layers, except for the head, by a LoRALinear: all of them, or those whose
    dotted names contain one of the parts that `layers` lists ('attn,mlp.c_fc'). UserError where there is none."""
    model.requires_grad_(False)
    linear = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] != HEAD
    }
    if not linear:
        raise UserError(f"--train lora: a {type(model).__name__} has no linear layers to adapt; use another --train")
    parts = None if layers == "all" else [part.strip() for part in layers.split(",")]
    for part in parts or ():
        if not any(_has(name, part) for name in linear):
            raise UserError(f"--lora-layers: no linear layer has '{part}' in its name; there are: {', '.join(linear)}")
    for name, layer in linear.items():
        if parts is None or any(_has(name, part) for part in parts):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, LoRALinear(layer, rank, alpha))


def fold(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a model with LoRALinear layers as that of the plain model: each update added to its weight."""
    adapted = {name.removesuffix(".lora_a") for name in weights if name.endswith(".lora_a")}
    plain = {}
    for name, tensor in weights.items():
        layer, _, rest = name.rpartition(".base.")
        if layer in adapted:
            if rest == "weight":
                tensor = tensor + _update(*(weights[f"{layer}.{part}"] for part in ("lora_a", "lora_b", "lora_scale")))
            plain[f"{layer}.{rest}"] = tensor
        elif name.rpartition(".")[0] not in adapted:
            plain[name] = tensor
    return plain


def _update(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    return scale * b @ a


def _has(name: str, part: str) -> bool:
    return bool(part) and f".{part}." in f".{name}."
