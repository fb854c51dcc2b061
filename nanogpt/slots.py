"""The rows of a batch of a Transformer, each of a length of its own: what a server decodes with.

A row is a slot of the tables of keys and values. Where all rows are of one length, a step is that of
`TransformerStepper`, so that one text alone is decoded as fast as ever; else each row writes at its own place, and what
it has not is masked. A row whose table is full is encoded anew when it would be alone.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.step.draws import Draws
from kernels.step.program import Decoded
from makemore.base import State
from makemore.small_work import for_small_work, without_gradients
from nanogpt.attention import rotary_cos_sin, sinusoids
from nanogpt.compiled_step import CompiledStep, compiled_step
from nanogpt.stepper import INITIAL_CAPACITY, WINDOWS
from nanogpt.stepper_layer import CacheIndex, RowsCacheIndex, layers_of, norm_of
from nanogpt.steppers import knows

Transformer = Any  # its module imports this one


def make_slots(model: Transformer) -> "Slots | None":
    """The rows of `model`; None where its parts are not those that a `TransformerStepper` computes."""
    return Slots(model) if knows(model) else None


class Slots:
    """Rows of a Transformer, as `makemore.rows.Rows` says."""

    def __init__(self, model: Transformer):
        self.model, self.context = model, model.context
        self.max_len = model.context or WINDOWS * model.window
        self.window = model.window or self.max_len
        self.layers = layers_of(model)
        self.ln_f = norm_of(model.ln_f)
        slopes = model.h[0].attn.attend.slopes
        self.slopes = None if slopes is None else slopes.view(1, self.layers[0].n_kv_head, -1, 1)
        self.cos_sin: Tensor | None = None  # of RoPE at every position of a context, (max_len, 2, hs)
        if model.positions == "rope" and self.context is not None:
            self.cos_sin = _cos_sin(torch.arange(self.max_len, device=model.wte.weight.device), model.head_size)
        self.lengths: list[int] = []  # tokens in the table of each row
        self.firsts: list[int] = []  # the position in its text of the first of them
        self.tokens: Tensor | None = None  # (slots, max_len), where a full context is encoded anew
        self.history: Tensor | None = None  # (B, n - 1), where hashed n-grams read them
        self.tables: list[Tensor] = []  # (slots, 2 n_kv_head, capacity, hs) of each layer
        self.compiled: CompiledStep | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def add(self, state: State) -> None:
        length = state["k0"].shape[2]
        self.lengths.append(length)
        self.firsts.append(0 if self.context is not None else int(state["position"][0]) - length)
        self._make_room(len(self), min(length + 1, self.max_len), state["k0"].dtype)
        self._put(len(self) - 1, state)
        if "history" in state:
            self.history = state["history"] if self.history is None else torch.cat([self.history, state["history"]])

    def remove(self, row: int) -> None:
        last = len(self) - 1
        if row != last:
            length = self.lengths[last]
            for table in self.tables:
                table[row, :, :length] = table[last, :, :length]
            if self.tokens is not None:
                self.tokens[row] = self.tokens[last]
            if self.history is not None:
                self.history[row] = self.history[last]
        for numbers in (self.lengths, self.firsts):
            numbers[row] = numbers[last]
            numbers.pop()
        if self.history is not None:
            self.history = self.history[:last]

    @without_gradients
    def step(self, token: Tensor) -> Tensor:
        return self._take(token, True)

    @without_gradients
    def features(self, token: Tensor) -> Tensor:
        """The features (B, C) that the head reads, instead of its logits; good until the next token."""
        return self._take(token, False)

    @without_gradients
    def decode(self, token: Tensor, draws: Draws, steps: int) -> Decoded | None:
        """Read `token` (B,) and draw up to `steps` tokens of each row, as `draws` says: fewer where a row is full. None
        where torch takes the step."""
        self._prepare()
        if self.compiled is None:
            return None
        assert self.tokens is not None  # of a model with a context
        steps = min(steps, self.tables[0].shape[2] - max(self.lengths))
        decoded = self.compiled.decode(token, self.lengths, self.tables, self.tokens, draws, steps)
        self.lengths = [length + len(decoded.tokens) for length in self.lengths]
        return decoded

    def _take(self, token: Tensor, want_logits: bool) -> Tensor:
        self._prepare()
        if self.compiled is not None:
            assert self.tokens is not None  # of a model with a context
            x = self.compiled(token, self.lengths, self.tables, self.tokens, want_logits)
        else:
            with for_small_work(len(token)):
                x = self._read(token)
                x = self.model.head(x) if want_logits else x
        self.lengths = [length + 1 for length in self.lengths]
        return x

    def _prepare(self) -> None:
        """See to room for one more token of each row."""
        if full := [row for row, length in enumerate(self.lengths) if length == self.max_len]:
            self._shorten(full)
        self._make_room(len(self), max(self.lengths) + 1, self.tables[0].dtype)

    def _read(self, token: Tensor) -> Tensor:
        B = len(self)
        for layer, table in zip(self.layers, self.tables, strict=True):
            layer.use(table[:B])
        place = self._place(token.device)
        x = self._embed(token, place)
        turns = self._turns(place)
        for layer in self.layers:
            x = layer(x, place, turns, token)
        return self.ln_f(x)

    def _place(self, device: torch.device) -> "CacheIndex | RowsCacheIndex":
        """Where the rows write, and what they see."""
        longest, fewest = max(self.lengths), min(self.lengths)
        if longest == fewest:
            first = max(0, longest + 1 - self.window)
            bias = None
            if self.slopes is not None:
                bias = (self.slopes * torch.arange(first - longest, 1, device=device)).type_as(self.model.wte.weight)
            return CacheIndex(longest, first, bias)
        index = torch.tensor(self.lengths, device=device)
        back = index[:, None] - torch.arange(longest + 1, device=device)  # (B, L)
        unseen = (back < 0) | (back >= self.window)
        bias = torch.zeros(back.shape, dtype=self.model.wte.weight.dtype, device=device)
        back, unseen, bias = (x[:, None, None] for x in (back, unseen, bias))
        if self.slopes is not None:
            bias = (-self.slopes * back).type_as(bias)
        rows = torch.arange(len(self), device=device)
        return RowsCacheIndex(index, rows, longest + 1, bias.masked_fill(unseen, -torch.inf))

    def _positions(self, device: torch.device) -> Tensor:
        """The position in its text of each row's new token, (B,)."""
        numbers = [first + length for first, length in zip(self.firsts, self.lengths, strict=True)]
        return torch.tensor(numbers, device=device)

    def _embed(self, token: Tensor, place: "CacheIndex | RowsCacheIndex") -> Tensor:
        model = self.model
        if model.ngrams is None:
            x = F.embedding(token, model.wte.weight)
        else:
            x, after = model.embed(token[:, None], {"history": self.history})
            x, self.history = x[:, 0], after["history"]
        if self.tokens is not None:
            place.write(self.tokens[: len(self)], 1, token)
        if model.wpe is not None:  # a model with a context: its positions are the places in the table
            return x + model.wpe.weight[place.index]
        if model.positions == "sinusoidal":
            return x + sinusoids(self._positions(token.device), model.n_embd).type_as(x)
        return x

    def _turns(self, place: "CacheIndex | RowsCacheIndex") -> tuple[Tensor, Tensor] | None:
        """Those of RoPE in the form that a Layer takes: (hs,) of rows that are alike, else (B, 1, hs)."""
        if self.cos_sin is not None:
            turns = self.cos_sin[place.index]
            cos, sin = turns.unbind(-2)
            return (cos, sin) if isinstance(place, CacheIndex) else (cos[:, None], sin[:, None])
        if self.model.positions != "rope":
            return None
        cos, sin = _cos_sin(self._positions(self.model.wte.weight.device), self.model.head_size).unbind(1)
        return cos[:, None], sin[:, None]

    def _make_room(self, rows: int, length: int, dtype: torch.dtype) -> None:
        """See to tables for so many rows and tokens: they double."""
        slots, capacity = (self.tables[0].shape[0], self.tables[0].shape[2]) if self.tables else (0, INITIAL_CAPACITY)
        if rows <= slots and length <= capacity:
            return
        more = max(slots, 1)
        while more < rows:
            more *= 2
        while capacity < length:
            capacity *= 2
        capacity = min(capacity, self.max_len)
        device = self.model.wte.weight.device
        for n, layer in enumerate(self.layers):
            old = self.tables[n] if slots else None
            table = torch.zeros(more, 2 * layer.n_kv_head, capacity, layer.head_size, dtype=dtype, device=device)
            if old is not None:
                table[:slots, :, : old.shape[2]] = old
            self.tables[n : n + 1] = [table]
        if self.context is not None:
            tokens = torch.zeros(more, self.max_len, dtype=torch.int64, device=device)
            if self.tokens is not None:
                tokens[:slots] = self.tokens
            self.tokens = tokens
        if more > slots and (self.compiled is None or more > self.compiled.rows):
            slopes = None if self.slopes is None else self.slopes.flatten()
            self.compiled = compiled_step(self.model, more, self.cos_sin, slopes)

    def _put(self, row: int, state: State, number: int = 0) -> None:
        """Write the keys, values and tokens of a text, row `number` of `state`, into its slot."""
        length = state["k0"].shape[2]
        for n, table in enumerate(self.tables):
            table[row, :, :length] = torch.cat([state[f"k{n}"][number], state[f"v{n}"][number]])
        if self.tokens is not None:
            self.tokens[row, :length] = state["tokens"][number]

    def _shorten(self, full: list[int]) -> None:
        """Make room in full rows, as `Transformer.read` does: with a context the last half of each is encoded anew,
        all of them together; without, what the window still sees moves to the front."""
        if self.context is None:
            kept = self.window - 1
            for row in full:
                for table in self.tables:
                    table[row, :, :kept] = table[row, :, self.max_len - kept : self.max_len].clone()
                self.firsts[row] += self.max_len - kept
                self.lengths[row] = kept
            return
        assert self.tokens is not None  # of a model with a context
        texts = self.tokens[torch.tensor(full, device=self.tokens.device)]
        if self.compiled is not None:
            kept = self.model.last_half(texts)
            self.compiled.encode(full, kept, self.tables, self.tokens)
            for row in full:
                self.lengths[row] = kept.shape[1]
            return
        state = self.model.keep_half(texts)
        for number, row in enumerate(full):
            self.lengths[row] = 0 if state is None else state["k0"].shape[2]
            if state is not None:
                self._put(row, state, number)
            if self.history is not None:
                self.history[row] = self.model.special.pad if state is None else state["history"][number]


def _cos_sin(positions: Tensor, head_size: int) -> Tensor:
    """cos and sin at `positions` (T,), (T, 2, hs), as a Layer turns queries and keys with them."""
    cos, sin = rotary_cos_sin(positions, head_size)
    return torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)], 1)
