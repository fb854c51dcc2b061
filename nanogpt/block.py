"""A block of the Transformer: attention, then an MLP four times as wide, a norm before each.

Radford et al., "Language Models are Unsupervised Multitask Learners", 2019; SwiGLU: Shazeer 2020.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from kernels import Attention
from makemore.exact import is_exact, note
from makemore.layers import activation_of, make_norm
from nanogpt.attention import CausalSelfAttention
from nanogpt.config import TransformerConfig
from nanogpt.fused import fused_activation
from nanogpt.packing import Packing


class MLP(nn.Module):
    """(B, T, C) -> four times as wide -> (B, T, C). SwiGLU has two inner matrices, two thirds as wide: as many
    weights."""

    fused = True  # see `LanguageModel`

    def __init__(self, config: TransformerConfig):
        super().__init__()
        n_embd, bias = config.n_embd, config.bias
        self.gated = config.activation == "swiglu"
        inner = -(-8 * n_embd // 24) * 8 if self.gated else 4 * n_embd  # two thirds of 4C, rounded up to 8
        self.activation = F.silu if self.gated else activation_of(config.activation)
        self.c_fc = nn.Linear(n_embd, 2 * inner if self.gated else inner, bias)
        self.c_proj = nn.Linear(inner, n_embd, bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)
        if (activated := fused_activation(self, x)) is not None:  # the same in one pass, in training
            x = activated
        elif self.gated:
            x, gate = x.chunk(2, -1)
            x = x * self.activation(gate)
        else:
            x = self.activation(x)
        return self.dropout(self.c_proj(x))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Takes and returns the residual stream x (B, T, C) and the branch output y (B, T, C) that is not yet added to it
    (None at first): the next norm adds it in the same pass. (N, C) when packed."""

    def __init__(
        self, config: TransformerConfig, slopes: Tensor | None, has_value_embeddings: bool, mixes_values: bool
    ):
        super().__init__()
        self.ln_1 = make_norm(config, config.n_embd, config.bias)
        self.attn = CausalSelfAttention(config, slopes, has_value_embeddings, mixes_values)
        self.ln_2 = make_norm(config, config.n_embd, config.bias)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        y: Tensor | None,
        cos_sin: tuple[Tensor, Tensor] | None,
        cache: tuple[Tensor, Tensor] | None,
        valid: Tensor | None,
        packing: Packing | None,
        key_mask: Tensor | None = None,
        starts: Tensor | None = None,
        added: Tensor | None = None,
        first: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        normed, x = self._first(x, y, valid)
        y, cache = self.attn(normed, cos_sin, cache, packing, key_mask, starts, added, first)
        normed, x = self.ln_2(y, valid, residual=x)
        return x, self.mlp(normed), cache

    def keys(
        self,
        x: Tensor,
        y: Tensor | None,
        cos_sin: tuple[Tensor, Tensor] | None,
        added: Tensor | None = None,
        first: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The keys and values alone."""
        return self.attn.heads(self._first(x, y, None)[0], cos_sin, None, added, first)[1:]

    def _first(self, x: Tensor, y: Tensor | None, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        return (self.ln_1(x, valid), x) if y is None else self.ln_1(y, valid, residual=x)


note(Block, CausalSelfAttention, Attention)


def has_keys_of_its_own(block: nn.Module) -> bool:
    """Whether `keys` of `block` gives the keys and values that its `forward` returns: nobody changed either."""
    return is_exact(block, Block) and is_exact(block.attn, CausalSelfAttention)


def attends_as_it_says(block: nn.Module) -> bool:
    """Whether `block` looks across positions nowhere but in the attention of kernels/: nobody changed what does."""
    return has_keys_of_its_own(block) and is_exact(getattr(block.attn, "attend", None), Attention)
