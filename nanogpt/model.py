"""The Transformer: GPT-2 by default, with the parts that came later as options.

Radford et al., "Language Models are Unsupervised Multitask Learners", 2019: pre-norm blocks of attention and a
four-times wider MLP. Options: RoPE, sinusoidal or ALiBi positions; RMS norm; GELU, ReLU² or SwiGLU (Shazeer 2020);
grouped heads, sliding window, QK-norm, tied head, biases. The names of the weights are GPT-2's.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from makemore.base import LanguageModel, Output, State, make_head
from makemore.layers import ACTIVATIONS, initialise, make_norm
from nanogpt.attention import CausalSelfAttention, Where, alibi_slopes, rotation, sinusoids, visible


class MLP(nn.Module):
    """(B, T, C) -> four times as wide -> (B, T, C). SwiGLU has two inner matrices, two thirds as wide: as many
    weights."""

    def __init__(self, n_embd: int, activation: str, bias: bool, dropout: float):
        super().__init__()
        self.gated = activation == "swiglu"
        inner = -(-8 * n_embd // 24) * 8 if self.gated else 4 * n_embd  # two thirds of 4C, rounded up to 8
        self.activation = F.silu if self.gated else ACTIVATIONS[activation]
        self.c_fc = nn.Linear(n_embd, 2 * inner if self.gated else inner, bias)
        self.c_proj = nn.Linear(inner, n_embd, bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)
        if self.gated:
            x, gate = x.chunk(2, -1)
            x = x * self.activation(gate)
        else:
            x = self.activation(x)
        return self.dropout(self.c_proj(x))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        n_kv_head: int,
        norm: str,
        activation: str,
        bias: bool,
        dropout: float,
        qk_norm: bool,
    ):
        super().__init__()
        self.ln_1 = make_norm(norm, n_embd, bias)
        self.attn = CausalSelfAttention(n_embd, n_head, n_kv_head, bias, dropout, qk_norm)
        self.ln_2 = make_norm(norm, n_embd, bias)
        self.mlp = MLP(n_embd, activation, bias, dropout)

    def forward(self, x: Tensor, where: Where, cache: tuple[Tensor, Tensor] | None, valid: Tensor | None):
        y, cache = self.attn(self.ln_1(x, valid), where, cache)
        x = x + y
        return x + self.mlp(self.ln_2(x, valid)), cache


class Transformer(LanguageModel):
    """tokens (B, T) -> n_layer blocks of width n_embd -> logits (B, T, V).

    The state holds the tokens read and each layer's keys and values. `forward` takes at most `context` tokens, those
    in the state included; with a sliding window and relative positions it is unbounded. Past its context `read` keeps
    the last half of it and encodes that anew from position 0: each token costs the same on average."""

    def __init__(
        self,
        vocab_size: int,
        *,
        context: int,
        n_layer: int,
        n_head: int,
        n_embd: int,
        n_kv_head: int | None,
        positions: str,
        window: int | None,
        qk_norm: bool,
        tie_head: bool,
        bias: bool,
        activation: str,
        norm: str,
        dropout: float,
        weight_init: str,
        label_smoothing: float = 0.0,
    ):
        super().__init__(vocab_size, label_smoothing=label_smoothing)
        n_kv_head = n_kv_head or n_head
        if n_embd % n_head:
            raise ValueError(f"n_embd {n_embd} is not divisible by n_head {n_head}")
        if n_head % n_kv_head:
            raise ValueError(f"n_head {n_head} is not divisible by n_kv_head {n_kv_head}")
        if positions == "rope" and n_embd // n_head % 2:
            raise ValueError(f"RoPE turns pairs: the head size n_embd / n_head = {n_embd // n_head} has to be even")
        unbounded = window is not None and positions != "learned"
        self.context, self.window, self.positions = None if unbounded else context, window, positions
        self.n_embd, self.head_size = n_embd, n_embd // n_head
        self.wte = nn.Embedding(vocab_size, n_embd)
        self.wpe = nn.Embedding(context, n_embd) if positions == "learned" else None
        self.slopes = alibi_slopes(n_head) if positions == "alibi" else None
        self.drop = nn.Dropout(dropout)
        self.h = nn.ModuleList(
            Block(n_embd, n_head, n_kv_head, norm, activation, bias, dropout, qk_norm) for _ in range(n_layer)
        )
        self.ln_f = make_norm(norm, n_embd, bias)
        self.lm_head = None if tie_head else make_head(n_embd, vocab_size, bias)
        self._initialise(weight_init, activation)

    def hidden(self, tokens: Tensor, state: State | None, valid: Tensor | None) -> tuple[Tensor, State]:
        B, T = tokens.shape
        past = self._length(state)
        if self.context is not None and past + T > self.context:
            raise ValueError(f"{past + T} tokens are more than the context of {self.context}; use read()")
        position = torch.arange(past, past + T, device=tokens.device)
        x = self.wte(tokens)  # (B, T, C)
        if self.wpe is not None:
            x = x + self.wpe(position)
        elif self.positions == "sinusoidal":
            x = x + sinusoids(position, self.n_embd).type_as(x)
        x = self.drop(x)
        where = self._where(position, state, past)
        after = self._remember(tokens, state, past)
        for i, block in enumerate(self.h):
            cache = None if state is None else (state[f"k{i}"], state[f"v{i}"])
            x, (k, v) = block(x, where, cache, valid)
            after[f"k{i}"], after[f"v{i}"] = self._in_window(k), self._in_window(v)
        return self.ln_f(x, valid), after

    def head(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.wte.weight) if self.lm_head is None else self.lm_head(hidden)

    def read(self, tokens: Tensor, state: State | None = None) -> Output:
        if self.context is None:
            return self(tokens, state=state)
        pieces, done = [], 0
        while done < tokens.shape[1]:
            if self._length(state) == self.context:
                kept = state["tokens"][:, self.context - self.context // 2 :]
                state = self(kept, want_logits=False).state if kept.shape[1] else None
            room = self.context - self._length(state)
            out = self(tokens[:, done : done + room], state=state)
            pieces.append(out.logits)
            state, done = out.state, done + room
        return Output(pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1), None, None, state)

    def window_start(self, position: int) -> int:
        if self.context is None or position < self.context:
            return 0
        dropped = self.context - self.context // 2
        return dropped * (1 + (position - self.context) // dropped)

    def _length(self, state: State | None) -> int:
        if state is None:
            return 0
        return int(state["position"][0]) if self.context is None else state["tokens"].shape[1]

    def _remember(self, tokens: Tensor, state: State | None, past: int) -> State:
        """The tokens themselves, to encode half of them anew some day; unbounded, only how many there were."""
        if self.context is None:
            return {"position": torch.full((len(tokens),), past + tokens.shape[1], device=tokens.device)}
        return {"tokens": tokens if state is None else torch.cat([state["tokens"], tokens], 1)}

    def _in_window(self, cached: Tensor) -> Tensor:
        return cached if self.context is not None else cached[:, :, max(0, cached.shape[2] - self.window + 1) :]

    def _where(self, position: Tensor, state: State | None, past: int) -> Where:
        cached = 0 if state is None else state["k0"].shape[2]
        mask, causal = visible(past, cached, len(position), self.window, self.slopes, position.device)
        turned = rotation(position, self.head_size) if self.positions == "rope" else None
        return Where(turned, mask, causal)

    def _initialise(self, weight_init: str, activation: str) -> None:
        """By default GPT-2's: normal of std 0.02, residual projections smaller with depth, biases zero."""
        if weight_init == "default":
            for name, parameter in self.named_parameters():
                if name.endswith(".bias") and not name.startswith("lm_head"):
                    nn.init.zeros_(parameter)
            weight_init = "normal"
        if weight_init != "torch" or self.lm_head is None:  # a table that is also the head must start small
            for table in filter(None, (self.wte, self.wpe)):
                nn.init.normal_(table.weight, std=0.02)
        initialise(self, weight_init, activation)
        if weight_init == "normal":
            for block in self.h:
                for projection in (block.attn.c_proj, block.mlp.c_proj):
                    nn.init.normal_(projection.weight, std=0.02 / math.sqrt(2 * len(self.h)))
