"""Causal self-attention with a key-value cache, and the ways to tell it where a token stands.

Vaswani et al. 2017; positions: learned (GPT-2), sinusoidal (Vaswani et al. 2017), RoPE (Su et al. 2021), ALiBi (Press
et al. 2022). Grouped heads: Ainslie et al. 2023; sliding window: Beltagy et al. 2020; QK-norm: Henry et al. 2020.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POSITIONS = ("learned", "sinusoidal", "rope", "alibi")


class Where(NamedTuple):
    """What all layers share about one forward: the rotation of each new position and what it may attend to."""

    rotation: tuple[Tensor, Tensor] | None  # cos and sin, (T, head size / 2) each; None without RoPE
    mask: Tensor | None  # (T, past + T) bool, or (n_head, T, past + T) to add (ALiBi); None: all, or causal when fresh
    causal: bool  # plain causal attention from the beginning: the fast path


class CausalSelfAttention(nn.Module):
    """x (B, T, C) and the cached keys and values (B, n_kv_head, past, head size) -> (B, T, C) and all keys and
    values."""

    def __init__(self, n_embd: int, n_head: int, n_kv_head: int, bias: bool, dropout: float, qk_norm: bool):
        super().__init__()
        self.n_head, self.n_kv_head, self.head_size = n_head, n_kv_head, n_embd // n_head
        self.dropout, self.qk_norm = dropout, qk_norm
        self.c_attn = nn.Linear(n_embd, (n_head + 2 * n_kv_head) * self.head_size, bias)
        self.c_proj = nn.Linear(n_embd, n_embd, bias)
        self.resid_dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, where: Where, cache: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        B, T, C = x.shape
        widths = [self.n_head * self.head_size] + 2 * [self.n_kv_head * self.head_size]
        q, k, v = (
            part.view(B, T, -1, self.head_size).transpose(1, 2) for part in self.c_attn(x).split(widths, 2)
        )  # (B, n_head or n_kv_head, T, hs)
        if self.qk_norm:
            q, k = F.rms_norm(q, (self.head_size,)), F.rms_norm(k, (self.head_size,))
        if where.rotation is not None:
            q, k = rotate(q, *where.rotation), rotate(k, *where.rotation)
        if cache is not None:
            k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
        cache = (k, v)
        if self.n_kv_head < self.n_head:
            k, v = (part.repeat_interleave(self.n_head // self.n_kv_head, 1) for part in (k, v))
        y = F.scaled_dot_product_attention(
            q, k, v, where.mask, self.dropout if self.training else 0.0, is_causal=where.causal
        )  # (B, n_head, T, hs)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).reshape(B, T, C))), cache


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE: turn each pair (i, i + hs/2) of x (B, H, T, hs) by its angle."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).type_as(x)


def rotation(positions: Tensor, head_size: int, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    """cos and sin of the RoPE angles at `positions` (T,): (T, head_size / 2) each, float32."""
    frequency = base ** (-torch.arange(0, head_size, 2, device=positions.device).float() / head_size)
    angle = positions.float()[:, None] * frequency
    return angle.cos(), angle.sin()


def sinusoids(positions: Tensor, n_embd: int, base: float = 10000.0) -> Tensor:
    """The fixed embeddings of `positions` (T,): sines in the first half of (T, n_embd), cosines in the second."""
    half = (n_embd + 1) // 2
    frequency = base ** (-torch.arange(half, device=positions.device).float() / half)
    angle = positions.float()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)[:, :n_embd]


def alibi_slopes(n_head: int) -> Tensor:
    """How fast each head forgets with distance, (n_head,): powers of 2^(-8 / n_head)."""
    return torch.tensor([2 ** (-8 * (i + 1) / n_head) for i in range(n_head)])


def visible(
    past: int, cached: int, T: int, window: int | None, slopes: Tensor | None, device
) -> tuple[Tensor | None, bool]:
    """The mask of T new tokens at positions past.. over `cached` earlier keys and themselves, and whether plain causal
    attention says the same."""
    if window is None and slopes is None and (cached == 0 or T == 1):
        return None, cached == 0 and T > 1
    queries = torch.arange(past, past + T, device=device)[:, None]
    keys = torch.arange(past - cached, past + T, device=device)[None, :]
    seen = keys <= queries
    if window is not None:
        seen = seen & (keys > queries - window)
    if slopes is None:
        return seen, False
    bias = -(queries - keys) * slopes.to(device)[:, None, None]  # (n_head, T, cached + T)
    return bias.masked_fill(~seen, -math.inf), False
