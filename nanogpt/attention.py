"""Causal self-attention with a key-value cache, and the ways to tell it where a token stands.

Vaswani et al. 2017; positions: learned (GPT-2), sinusoidal (Vaswani et al. 2017), RoPE (Su et al. 2021), ALiBi (Press
et al. 2022). Value residual: Zhou et al. 2024, "Value Residual Learning"; value embeddings: after the same, gated as
in nanochat. Grouped heads: Ainslie et al. 2023; sliding window: Beltagy et al. 2020; QK-norm: Henry et al. 2020.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import Attention
from makemore.constants import ROPE_BASE
from nanogpt.config import TransformerConfig
from nanogpt.fused import fused_turn
from nanogpt.packing import Packing

GATE_INPUTS = 32  # of the features, which say how much of a value embedding each head takes


class CausalSelfAttention(nn.Module):
    """x (B, T, C), RoPE's cos and sin of its positions and the cached keys and values (B, n_kv_head, past, head size)
    -> (B, T, C) and all keys and values. With a packing, x and the result are (N, C): only attention is padded.
    `key_mask` (B, T): which positions are no padding, where later ones are seen. `starts`: B is 1, of rows laid end to
    end, as `kernels.attention_packed` takes them. `added` (B, T, n_kv_head * head size), never packed: the
    value embeddings, of a layer that has some; of each head the values get it times a gate from 0 to 2, at first 1.
    `first` (B, n_kv_head, T, head size): the first layer's values of the same tokens, which a later one mixes with its
    own, half and half at first, under --value-residual."""

    fused = True  # see `LanguageModel`

    def __init__(
        self, config: TransformerConfig, slopes: Tensor | None, has_value_embeddings: bool, mixes_values: bool
    ):
        super().__init__()
        n_embd, n_head, n_kv_head = config.n_embd, config.n_head, config.n_kv_head or config.n_head
        self.n_head, self.n_kv_head, self.head_size = n_head, n_kv_head, n_embd // n_head
        self.qk_norm = config.qk_norm
        self.c_attn = nn.Linear(n_embd, (n_head + 2 * n_kv_head) * self.head_size, config.bias)
        self.value_gate = nn.Linear(min(GATE_INPUTS, n_embd), n_kv_head, False) if has_value_embeddings else None
        self.value_mix = nn.Parameter(torch.full((2,), 0.5)) if mixes_values else None  # of its own and the first's
        self.c_proj = nn.Linear(n_embd, n_embd, config.bias)
        self.attend = Attention(
            window=config.window, slopes=slopes, softcap=config.attention_cap, dropout=config.dropout,
            backend=config.attention,
        )  # fmt: skip
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        cos_sin: tuple[Tensor, Tensor] | None,
        cache: tuple[Tensor, Tensor] | None,
        packing: Packing | None = None,
        key_mask: Tensor | None = None,
        starts: Tensor | None = None,
        added: Tensor | None = None,
        first: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        q, k, v = self.heads(x, cos_sin, packing, added, first)
        if cache is not None:
            k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
        # (B, n_head, T, hs); the last of q and of k stand at the same position
        y = self.attend(q, k, v, key_mask) if starts is None else self.attend.packed(q, k, v, starts)
        y = y.transpose(1, 2).flatten(2)  # (B, T, C)
        return self.resid_dropout(self.c_proj(y if packing is None else packing.pack(y))), (k, v)

    def heads(
        self,
        x: Tensor,
        cos_sin: tuple[Tensor, Tensor] | None,
        packing: Packing | None = None,
        added: Tensor | None = None,
        first: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, n_head, T, hs), keys and values (B, n_kv_head, T, hs) of x."""
        qkv = self.c_attn(x) if packing is None else packing.unpack(self.c_attn(x))
        B, T, _ = qkv.shape
        heads = qkv.view(B, T, -1, self.head_size)  # those of q, then of k, then of v
        qk, v = heads.split([self.n_head + self.n_kv_head, self.n_kv_head], 2)
        if added is not None:
            gate = self.gate(x) if packing is None else packing.unpack(self.gate(x))
            v = v + (gate[..., None] * added.view_as(v)).type_as(v)
        if (turned := fused_turn(self, qk, cos_sin)) is not None:  # the same in one pass, in training
            qk = turned
        else:
            qk = F.rms_norm(qk, (self.head_size,)) if self.qk_norm else qk
            qk = qk if cos_sin is None else rotate(qk, *cos_sin)
        q, k = qk.split([self.n_head, self.n_kv_head], 2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if self.value_mix is not None and first is not None:
            v = (self.value_mix[0] * v + self.value_mix[1] * first).type_as(v)
        return q, k, v

    def gate(self, x: Tensor) -> Tensor:
        """How much of its value embedding each head takes: x (..., C) -> (..., n_kv_head), from 0 to 2."""
        assert self.value_gate is not None  # of a layer with value embeddings
        return 2 * torch.sigmoid(self.value_gate(x[..., :GATE_INPUTS]))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE: rotate each pair (i, i + hs/2) of x (B, T, H, hs) by its angle; cos and sin (T, hs / 2)."""
    a, b = x.chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).type_as(x)


def rotary_cos_sin(positions: Tensor, head_size: int) -> tuple[Tensor, Tensor]:
    """cos and sin of the RoPE angles at `positions` (T,): (T, head_size / 2) each, float32."""
    frequency = ROPE_BASE ** (-torch.arange(0, head_size, 2, device=positions.device).float() / head_size)
    angle = positions.float()[:, None] * frequency
    return angle.cos(), angle.sin()


def sinusoids(positions: Tensor, n_embd: int) -> Tensor:
    """The fixed embeddings of `positions` (T,): sines in the first half of (T, n_embd), cosines in the second."""
    half = (n_embd + 1) // 2
    frequency = ROPE_BASE ** (-torch.arange(half, device=positions.device).float() / half)
    angle = positions.float()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)[:, :n_embd]


def alibi_slopes(n_head: int) -> Tensor:
    """How fast each head forgets with distance, (n_head,): powers of 2^(-8 / n_head)."""
    return torch.tensor([2 ** (-8 * (i + 1) / n_head) for i in range(n_head)])
