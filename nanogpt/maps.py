"""Attention maps: how much each position of a text looks at each one before, by layer and head."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from kernels.attention import reference
from nanogpt.model import Transformer


def attention_maps(model: Transformer, tokens: Tensor) -> Tensor:
    """The weights (L, H, T, T) float32 of every layer and head over `tokens` (T,), at most the context: row i is what
    position i looks at, and sums to 1. `model` itself is left alone, also while others compute with it."""
    tensors = [*model.parameters(), *model.buffers()]
    watched: Any = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors}).eval()  # the same weights
    maps: list[Tensor] = []

    def keep(attend: Any, inputs: tuple[Tensor, ...]) -> None:
        q, k = (part.float() for part in inputs[:2])
        each = torch.eye(k.shape[2], device=k.device).expand(*k.shape[:2], -1, -1)  # values: they come out as weights
        how = {"causal": attend.causal, "window": attend.window, "slopes": attend.slopes}
        maps.append(reference.attention(q, k, each, scale=attend.scale, softcap=attend.softcap, **how)[0][0])

    for block in watched.h:
        attend: nn.Module = block.attn.attend
        attend.register_forward_pre_hook(keep)
    with torch.inference_mode():
        watched.hidden(tokens[None], None, None)
    return torch.stack(maps)
