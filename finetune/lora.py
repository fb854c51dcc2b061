"""LoRA: a frozen linear layer and a trained update of low rank beside it.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021: y = W x + (alpha / r) B A x, with A (r, in)
random and B (out, r) zero, so that training starts from the model as it is.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LoRALinear(nn.Module):
    """In the place of `base`, an nn.Linear, whose parameters it freezes. Takes and gives what that does."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.base, self.scale, self.merged = base.requires_grad_(False), alpha / rank, False
        self.lora_a = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return y if self.merged else y + self.scale * F.linear(F.linear(x, self.lora_a), self.lora_b)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the update to the weight: from now on a plain linear layer's cost."""
        if not self.merged:
            self.base.weight += self.scale * self.lora_b @ self.lora_a
        self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take it out again."""
        if self.merged:
            self.base.weight -= self.scale * self.lora_b @ self.lora_a
        self.merged = False


def add_lora(model: nn.Module, rank: int, alpha: float, leave: tuple[str, ...] = ("lm_head",)) -> int:
    """Freeze `model` and put a LoRALinear in the place of each of its linear layers, but for those named in `leave`.
    Returns how many there are."""
    model.requires_grad_(False)
    places = [
        (parent, name, layer)
        for parent in list(model.modules())
        for name, layer in parent.named_children()
        if isinstance(layer, nn.Linear) and name not in leave
    ]
    for parent, name, layer in places:
        setattr(parent, name, LoRALinear(layer, rank, alpha))
    return len(places)
