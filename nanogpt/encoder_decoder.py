"""The Transformer as it was at first: an encoder sees all of the source, a decoder looks at it in every layer.

Vaswani et al., "Attention Is All You Need", 2017; one vocabulary and one table for source and target, and a norm before
each part, as in Raffel et al., "Exploring the Limits of Transfer Learning", 2020 (T5). The blocks are those of the
language model. The source stands before each row of a batch; what the encoder makes of it, as keys and values of each
layer, is part of the state.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.tokenizers import Special
from kernels import Attention
from makemore.base import OURS, LanguageModel, State, make_head
from makemore.constants import INIT_STD
from makemore.layers import make_norm
from nanogpt.attention import CausalSelfAttention, rotary_cos_sin, sinusoids
from nanogpt.block import MLP, Block
from nanogpt.building import check, initialise_weights
from nanogpt.config import TransformerConfig


class CrossAttention(nn.Module):
    """x (B, T, C), the keys and values of the source (B, n_head, S, hs) and which of them are no padding (B, S) ->
    (B, T, C)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        C, bias = config.n_embd, config.bias
        self.n_head, self.qk_norm = config.n_head, config.qk_norm
        self.c_q, self.c_kv = nn.Linear(C, C, bias), nn.Linear(C, 2 * C, bias)
        self.c_proj = nn.Linear(C, C, bias)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.attend = Attention(causal=False, dropout=config.dropout, backend=config.attention)

    def keys(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the encoder's features (B, S, C), computed once a source."""
        k, v = self.c_kv(memory).chunk(2, -1)
        return self._normed(self._heads(k)), self._heads(v)

    def forward(self, x: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
        y = self.attend(self._queries(x), k, v, there)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).flatten(2)))

    def weights(self, x: Tensor, k: Tensor, there: Tensor) -> Tensor:
        """How much each position looks at each token of the source, the mean over the heads, (B, T, S)."""
        scores = self._queries(x) @ k.transpose(2, 3) / math.sqrt(k.shape[3])
        return scores.masked_fill(~there[:, None, None], -torch.inf).softmax(-1).mean(1)

    def _queries(self, x: Tensor) -> Tensor:
        return self._normed(self._heads(self.c_q(x)))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_head, -1)).transpose(1, 2)

    def _normed(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],)) if self.qk_norm else x


class DecoderBlock(nn.Module):
    """As `Block`, with a look at the source between attention and MLP."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.ln_1, self.ln_cross, self.ln_2 = (make_norm(config, config.n_embd, config.bias) for _ in range(3))
        self.attn = CausalSelfAttention(config, None, False, False)
        self.cross = CrossAttention(config)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        y: Tensor | None,
        cos_sin: tuple[Tensor, Tensor] | None,
        cache: tuple[Tensor, Tensor],
        valid: Tensor | None,
        source: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], Tensor]:
        """The residual stream and what is still to be added to it, the cache, and what looks at the source."""
        normed, x = (self.ln_1(x, valid), x) if y is None else self.ln_1(y, valid, residual=x)
        y, cache = self.attn(normed, cos_sin, cache)
        looking, x = self.ln_cross(y, valid, residual=x)
        normed, x = self.ln_2(self.cross(looking, *source), valid, residual=x)
        return x, self.mlp(normed), cache, looking


class EncoderDecoder(LanguageModel):
    """source (B, S) and target tokens (B, T) -> n_layer blocks each, of width n_embd -> logits (B, T, V).

    Both take at most `context` tokens; ValueError for more. The state holds the decoder's keys and values of what was
    read, and those that the source gives each of its layers."""

    def __init__(self, vocab_size: int, config: TransformerConfig, special: Special = OURS):
        super().__init__(vocab_size, config, special)
        check(config)
        if config.positions == "alibi":
            raise ValueError("--positions alibi counts back from a token, and an encoder sees both ways; use another")
        C, longest = config.n_embd, config.context
        self.context, self.positions, self.head_size = longest, config.positions, C // config.n_head
        self.n_kv_head = config.n_kv_head or config.n_head
        self.wte = nn.Embedding(vocab_size, C)
        self.wpe = nn.Embedding(longest, C) if config.positions == "learned" else None  # type: ignore[arg-type]  # is set
        self.vte: Any = nn.ModuleDict()
        self.drop = nn.Dropout(config.dropout)
        self.encoder: Any = nn.ModuleList(Block(config, None, False, False) for _ in range(config.n_layer))
        for attention in (block.attn for block in [*self.encoder]):
            attention.attend.causal = False
        self.decoder: Any = nn.ModuleList(DecoderBlock(config) for _ in range(config.n_layer))
        self.ln_source, self.ln_f = (make_norm(config, C, config.bias) for _ in range(2))
        self.lm_head = None if config.tie_head else make_head(C, vocab_size, special, config.bias)
        initialise_weights(self, config.weight_init, config.activation, config.zero_init)
        for projection in (block.cross.c_proj for block in [*self.decoder]):
            if config.weight_init in ("default", "normal"):
                nn.init.normal_(projection.weight, std=INIT_STD / math.sqrt(2 * len(self.h)))
            if config.zero_init:
                nn.init.zeros_(projection.weight)

    @property
    def h(self) -> list[Any]:
        """The blocks of both."""
        return [*self.encoder, *self.decoder]

    def start(self, prefix: Tensor | None, position: Tensor | None) -> State:
        """The state before the first token of the target, after the sources `prefix` (B, S), padded on the right: of
        each layer empty keys and values k0, v0, ... and the source's, source_k0, source_v0, ... (B, n_head, S, hs), and
        `there` (B, S), which is False for padding."""
        assert prefix is not None  # every row has a source
        there = prefix != self.special.pad
        x, cos_sin = self._embedded(prefix, 0)
        y: Tensor | None = None
        for block in self.encoder:
            x, y, _ = block(x, y, cos_sin, None, there, None, there)
        memory = self.ln_source(y, there, residual=x)[0]
        state: State = {"there": there}
        for i, block in enumerate(self.decoder):
            state[f"source_k{i}"], state[f"source_v{i}"] = block.cross.keys(memory)
            state[f"k{i}"] = state[f"v{i}"] = memory.new_zeros(len(prefix), self.n_kv_head, 0, self.head_size)
        return state

    def hidden(self, tokens: Tensor, state: State | None, valid: Tensor | None) -> tuple[Tensor, State]:
        features, state, _ = self._decoded(tokens, state, valid)
        return features, state

    def aligned(self, tokens: Tensor, state: State | None) -> tuple[Tensor, State, Tensor]:
        """`hidden`, and how much each step looks at each token of the source in the last layer, the mean over its
        heads, (B, T, S)."""
        features, after, looking = self._decoded(tokens, state, None)
        last = len(self.decoder) - 1
        return features, after, self.decoder[last].cross.weights(looking, after[f"source_k{last}"], after["there"])

    def head(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.wte.weight) if self.lm_head is None else self.lm_head(hidden)

    def head_weights(self) -> tuple[Tensor, Tensor | None]:
        return (self.wte.weight, None) if self.lm_head is None else (self.lm_head.weight, self.lm_head.bias)

    def _decoded(self, tokens: Tensor, state: State | None, valid: Tensor | None) -> tuple[Tensor, State, Tensor]:
        if state is None:  # no source at all
            state = self.start(tokens.new_full((len(tokens), 1), self.special.eos), None)
        x, cos_sin = self._embedded(tokens, state["k0"].shape[2])
        y: Tensor | None = None
        after, looking = dict(state), x
        for i, block in enumerate(self.decoder):
            cache = state[f"k{i}"], state[f"v{i}"]
            source = state[f"source_k{i}"], state[f"source_v{i}"], state["there"]
            x, y, (after[f"k{i}"], after[f"v{i}"]), looking = block(x, y, cos_sin, cache, valid, source)
        return self.ln_f(y, valid, residual=x)[0], after, looking

    def _embedded(self, tokens: Tensor, past: int) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """The embeddings (B, T, C) of `tokens` after `past` others, and RoPE's cos and sin."""
        T = tokens.shape[1]
        if self.context is not None and past + T > self.context:
            raise ValueError(f"{past + T} tokens are more than the context of {self.context}")
        position = torch.arange(past, past + T, device=tokens.device)
        x = self.wte(tokens)
        if self.wpe is not None:
            x = x + self.wpe(position)
        if self.positions == "sinusoidal":
            x = x + sinusoids(position, x.shape[-1]).type_as(x)
        return self.drop(x), rotary_cos_sin(position, self.head_size) if self.positions == "rope" else None
