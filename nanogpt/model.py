"""The Transformer: GPT-2's blocks, with the parts that came later as options.

Radford et al., "Language Models are Unsupervised Multitask Learners", 2019: pre-norm blocks of attention and a
four-times wider MLP. Options: RoPE, sinusoidal or ALiBi positions; RMS norm; GELU, ReLU² or SwiGLU (Shazeer 2020);
grouped heads, sliding window, QK-norm, value residual and embeddings (Zhou et al. 2024), tied head, biases,
soft-capped logits (Gemma Team 2024). The names of the weights are GPT-2's.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.batches import IGNORE
from data.tokenizers import Special
from kernels import Attention
from kernels.dispatch import use_triton
from makemore.base import OURS, PART, LanguageModel, Output, State, make_head, make_ngrams
from makemore.exact import has_methods_of, note
from makemore.layers import make_norm, not_padding
from makemore.rows import ApartRows, Rows
from makemore.segments import Take, read_in_order
from nanogpt.attention import alibi_slopes, rotary_cos_sin, sinusoids
from nanogpt.block import Block, attends_as_it_says, has_keys_of_its_own
from nanogpt.building import check, initialise_weights, value_embeddings
from nanogpt.checkpointing import read, recomputed
from nanogpt.config import TransformerConfig
from nanogpt.packing import Packing, leave_padding_out, longest_row, positions_in_rows
from nanogpt.slots import make_slots
from nanogpt.stepper import WINDOWS
from nanogpt.steppers import make_stepper


class Transformer(LanguageModel):
    """tokens (B, T) -> n_layer blocks of width n_embd -> logits (B, T, V).

    The state holds the tokens read and each layer's keys and values. `forward` takes at most `context` tokens, those
    in the state included; with a sliding window and relative positions it is unbounded. Past its context `read` keeps
    the last half of it and encodes that anew from position 0: each token costs the same on average."""

    def __init__(self, vocab_size: int, config: TransformerConfig, special: Special = OURS):
        super().__init__(vocab_size, config, special)
        check(config)
        C, positions, window = config.n_embd, config.positions, config.window
        unbounded = window is not None and positions != "learned"
        self.context, self.positions = None if unbounded else config.context, positions
        self.window: Any = window  # a number wherever there is no context
        self.n_embd, self.head_size = C, C // config.n_head
        self.logit_cap, self.mixes_values = config.logit_cap, config.value_residual
        self.recomputes = config.activation_checkpointing
        self.wte = nn.Embedding(vocab_size, C)
        self.ngrams = make_ngrams(config)
        self.wpe = nn.Embedding(config.context, C) if positions == "learned" else None  # type: ignore[arg-type]  # is set
        slopes = alibi_slopes(config.n_head) if positions == "alibi" else None
        self.drop = nn.Dropout(config.dropout)
        self.vte: Any = value_embeddings(config, vocab_size)
        self.h: Any = nn.ModuleList(
            Block(config, slopes, f"{i}" in self.vte, config.value_residual and i > 0) for i in range(config.n_layer)
        )
        self.ln_f = make_norm(config, C, config.bias)
        self.lm_head = None if config.tie_head else make_head(C, vocab_size, special, config.bias)
        initialise_weights(self, config.weight_init, config.activation, config.zero_init)
        if config.fills:
            self.see_ahead(config.context if window is None else window - 1)  # type: ignore[arg-type]  # is set

    def see_ahead(self, tokens: int) -> None:
        """Let every layer see so many later tokens besides the earlier ones, for reading whole texts. What such a model
        says of a next token means nothing: it has seen it."""
        before = None if self.window is None else self.window - 1
        for block in self.h:
            block.attn.attend.causal, block.attn.attend.window = False, (before, tokens)
        self.causal = False

    @property
    def held(self) -> int:
        return self.context or WINDOWS * self.window

    def hidden(
        self, tokens: Tensor, state: State | None, valid: Tensor | None, *, want_features: bool = True
    ) -> tuple[Any, State]:
        """As the base class says. Without `want_features` None and the state: the last block ends at its keys. Where
        activations are computed again, nothing is left for a next call."""
        B, T = tokens.shape
        past = self._length(state)
        if self.context is not None and past + T > self.context:
            raise ValueError(f"{past + T} tokens are more than the context of {self.context}; use read()")
        position = torch.arange(past, past + T, device=tokens.device)
        x, last = self.embed(tokens, state)  # (B, T, C)
        x = self.add_positions(x, position)
        key_mask = not_padding(valid) if not self.causal and valid is not None else None
        packing = self._packing(valid)
        if packing is not None and valid is not None:
            x, valid = packing.pack(x), packing.pack(valid)
        x, cos_sin = self.drop(x), self.rotary(position)
        after = last | self._remember(tokens, state, past)
        y = first = None
        for i, block in enumerate(self.h):
            cache = None if state is None else (state[f"k{i}"], state[f"v{i}"])
            given = self._values_given(i, tokens, first)
            if self._recomputes_now():
                x, y, v = recomputed(block, x, y, cos_sin, cache, valid, packing, key_mask, **given)
                first, after = v if first is None else first, {}
                continue
            if want_features or block is not self.h[-1] or not has_keys_of_its_own(block):
                x, y, (k, v) = block(x, y, cos_sin, cache, valid, packing, key_mask, **given)
            else:
                k, v = block.keys(x, y, cos_sin, **given)
            first = v[:, :, -T:] if first is None else first
            after[f"k{i}"], after[f"v{i}"] = self._in_window(k), self._in_window(v)
        if not want_features:
            return None, after
        x = self.ln_f(y, valid, residual=x)[0]
        return x if packing is None else packing.unpack(x), after

    def takes_packed(self, device: torch.device) -> bool:
        """As the base class says: where Triton's attention runs, which alone computes on rows end to end, and nothing
        was changed that would see them as one row."""
        attend = getattr(getattr(self.h[0], "attn", None), "attend", None)
        if not isinstance(attend, Attention) or not use_triton(attend.backend, device):
            return False
        if not self.causal or self.ngrams is not None:
            return False
        return has_methods_of(self, Transformer, but=("forward",)) and all(map(attends_as_it_says, self.h))

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        state: State | None = None,
        *,
        weight: Tensor | None = None,
        want_logits: bool = True,
        starts: Tensor | None = None,
    ) -> Output:
        """As the base class says. With `starts` (N + 1,) int32, on the CPU, `tokens` (1, R) are N rows laid end to end:
        where each begins, and where the last ends; what follows is padding. They have no state before them and leave
        none."""
        if starts is None:
            return super().forward(tokens, targets, state, weight=weight, want_logits=want_logits)
        if state is not None:
            raise ValueError("rows laid end to end begin anew: they have no state before them")
        hidden = self._packed_hidden(tokens, starts, None if targets is None else targets != IGNORE)
        return self._output(hidden, targets, {}, weight, want_logits)

    def _packed_hidden(self, tokens: Tensor, starts: Tensor, valid: Tensor | None) -> Tensor:
        """The features (1, R, C) of rows laid end to end. Attention's dropout draws by row, head, query and key, as for
        a padded batch; the other layers' by position in the whole, so that a seed drops others than with padding."""
        longest = 0 if torch.compiler.is_compiling() else longest_row(starts)  # a compiler knows no values
        if self.context is not None and longest > self.context:
            raise ValueError(f"a row of {longest} tokens is longer than the context of {self.context}")
        position = positions_in_rows(starts, tokens.shape[1], tokens.device)
        x = self.drop(self.add_positions(self.embed(tokens, None)[0], position))  # (1, R, C)
        y, first, cos_sin = None, None, self.rotary(position)
        run = recomputed if self._recomputes_now() else read
        for i, block in enumerate(self.h):
            given = self._values_given(i, tokens, first)
            x, y, v = run(block, x, y, cos_sin, None, valid, None, starts=starts, **given)
            first = v if first is None else first
        return self.ln_f(y, valid, residual=x)[0]

    def head(self, hidden: Tensor) -> Tensor:
        logits = F.linear(hidden, self.wte.weight) if self.lm_head is None else self.lm_head(hidden)
        return logits if self.logit_cap is None else self.logit_cap * torch.tanh(logits / self.logit_cap)

    def head_weights(self) -> tuple[Tensor, Tensor | None] | None:
        return (self.wte.weight, None) if self.lm_head is None else super().head_weights()

    def read_hidden(self, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
        if self.context is None:
            return self.hidden(tokens, state, None)
        pieces, done = [], 0
        while done < tokens.shape[1]:
            if state is not None and self._length(state) == self.context:
                state = self.keep_half(state["tokens"])
            free = self.context - self._length(state)
            piece, state = self.hidden(tokens[:, done : done + free], state, None)
            pieces.append(piece)
            done += free
        assert state is not None  # there is a token
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1), state

    def read_parts(self, tokens: Tensor, state: State | None, take: Take) -> State:
        """As the base class says. With a context, how a text is encoded anew follows from its tokens alone: many times
        are encoded side by side."""
        if self.context is None:
            return read_in_order(self.read_hidden, tokens, state, take, 0, max(self.window, 128))
        before = tokens[:0] if state is None else state["tokens"][0]
        free, step = self.context - len(before), self.context - self.context // 2
        whole = max(0, len(tokens) - free - 1) // step  # times that what follows is `step` tokens, and not the last
        first = min(free, len(tokens))
        if first:
            state = read_in_order(self.read_hidden, tokens[:first], state, take, 0, first)
        rows = torch.cat([before, tokens])[self.context - self.context // 2 :]
        done = first
        for some in rows.unfold(0, self.context, step)[:whole].split(max(1, PART // self.context)) if whole else ():
            count = some.numel() // self.context * step
            index = done + torch.arange(count, device=tokens.device).view(len(some), step)
            kept = some[:, : self.context - step]
            anew = self.hidden(kept, None, None, want_features=False)[1] if kept.shape[1] else None
            hidden, state = self.hidden(some[:, -step:], anew, None)
            take(index, hidden)
            done += count
        assert state is not None  # there is a token
        last = {name: part[-1:] for name, part in state.items()}
        return read_in_order(self.read_hidden, tokens, last, take, done, step)

    def keep_half(self, tokens: Tensor) -> State | None:
        """The state that a full context of `tokens` leaves: their last half, encoded anew from position 0."""
        kept = self.last_half(tokens)
        return self.hidden(kept, None, None, want_features=False)[1] if kept.shape[1] else None

    def last_half(self, tokens: Tensor) -> Tensor:
        """What is kept of a full context of `tokens`."""
        assert self.context is not None
        return tokens[:, self.context - self.context // 2 :]

    def last_hidden(self, tokens: Tensor) -> tuple[Tensor, State]:
        """As the base class says: with a context from where it was last encoded anew, without one as far back as the
        windows of all layers reach, at its true position."""
        length = tokens.shape[1]
        if self.context is not None:
            return super().last_hidden(tokens[:, self.window_start(length - 1) :])
        first = length - 1 - len(self.h) * (self.window - 1) - (self.ngrams.n - 1 if self.ngrams else 0)
        if first <= 0:
            return super().last_hidden(tokens)
        hidden, state = self.hidden(tokens[:, first:], self._nothing_before(first, tokens), None)
        return hidden[:, -1], state

    def _nothing_before(self, position: int, tokens: Tensor) -> State:
        """The state, without a context, of rows that begin at a later position of which nothing was read before."""
        rows, weight, attn = len(tokens), self.wte.weight, self.h[0].attn
        empty = weight.new_empty(rows, attn.n_kv_head, 0, self.head_size)
        state = {f"{name}{i}": empty for i in range(len(self.h)) for name in "kv"}
        if self.ngrams is not None:
            state["history"] = tokens.new_full((rows, self.ngrams.n - 1), self.special.pad)
        return state | {"position": tokens.new_full((rows,), position)}

    def stepper(self, state: State) -> Callable[[Tensor], Tensor]:
        """As the base class says: the fast one where it is known to compute the same. `forward` is not what steps."""
        fast = make_stepper(self, state) if has_methods_of(self, Transformer, but=("forward",)) else None
        return fast or super().stepper(state)

    def rows(self) -> Rows:
        slots = make_slots(self) if has_methods_of(self, Transformer, but=("forward",)) else None
        return ApartRows(self) if slots is None else slots

    def window_start(self, position: int) -> int:
        if self.context is None or position < self.context:
            return 0
        dropped = self.context - self.context // 2
        return dropped * (1 + (position - self.context) // dropped)

    def add_positions(self, x: Tensor, position: Tensor) -> Tensor:
        """x (B, T, C) with the embeddings of `position` (T,) added, if there are such."""
        if self.wpe is not None:
            return x + self.wpe(position)
        return x + sinusoids(position, self.n_embd).type_as(x) if self.positions == "sinusoidal" else x

    def added_values(self, layer: int, tokens: Tensor) -> Tensor | None:
        """What the values of `tokens` (B, T) get besides in this layer, (B, T, n_kv_head * head size), if anything."""
        return self.vte[f"{layer}"](tokens) if f"{layer}" in self.vte else None

    def _values_given(self, layer: int, tokens: Tensor, first: Tensor | None) -> dict[str, Tensor]:
        """What a layer gets for its values besides x, where it does: `added` and `first` of its attention."""
        given = {"added": self.added_values(layer, tokens), "first": first if self.mixes_values else None}
        return {name: values for name, values in given.items() if values is not None}

    def value_table(self, layer: int) -> Tensor | None:
        """The weight (V, n_kv_head * head size) of the table that `added_values` reads, for what does without it."""
        return self.vte[f"{layer}"].weight.detach() if f"{layer}" in self.vte else None

    def rotary(self, position: Tensor) -> tuple[Tensor, Tensor] | None:
        """RoPE's cos and sin of `position` (T,), as `rotary_cos_sin` gives them, if there are such."""
        return rotary_cos_sin(position, self.head_size) if self.positions == "rope" else None

    def _recomputes_now(self) -> bool:
        """Whether the blocks compute their activations again: where gradients are wanted of a training."""
        return self.recomputes and self.training and torch.is_grad_enabled()

    def _packing(self, valid: Tensor | None) -> Packing | None:
        """In training on CPU; on a GPU the number of positions would have to come back first, and a compiler would meet
        a new size in every batch. Where it is known, `forward` gets rows laid end to end instead."""
        if valid is None or not self.training or valid.device.type != "cpu" or torch.compiler.is_compiling():
            return None
        return leave_padding_out(valid)

    def _length(self, state: State | None) -> int:
        if state is None:
            return 0
        return int(state["position"][0]) if self.context is None else state["tokens"].shape[1]

    def _remember(self, tokens: Tensor, state: State | None, past: int) -> State:
        """The tokens themselves, to encode half of them anew some day; unbounded, only how many there were."""
        if self.context is None:
            return {"position": torch.full((tokens.shape[0],), past + tokens.shape[1], device=tokens.device)}
        return {"tokens": tokens if state is None else torch.cat([state["tokens"], tokens], 1)}

    def _in_window(self, cached: Tensor) -> Tensor:
        return cached if self.context is not None else cached[:, :, max(0, cached.shape[2] - self.window + 1) :]


note(Transformer)
