"""One step of a Transformer, a token of each row: what decoding runs, thousands of times.

A token of a small model is some hundred operations of a few microseconds, so that what surrounds them costs more than
they do: calls of modules, checks, masks, dropout that drops nothing, a cache that is copied to grow. Here is the same
sum as in `Transformer.hidden` without them, for one token; tests hold both equal. Where it is taken, steppers.py says.
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
from nanogpt.stepper_layer import CacheIndex, StaticCacheIndex, layers_of, norm_of

Transformer = Any  # its module imports this one
WINDOWS = 4  # An unbounded model's cache holds 4 windows; when it is full, the last window is copied to the front.
INITIAL_CAPACITY = 64  # tokens; doubled as needed, so that short answers of a large model take little memory


class TransformerStepper:
    """token (B,) -> logits (B, V) after `state`, which `Transformer.read` gave for the rows so far, and all tokens
    since.

    Its tables of keys, values and tokens have room for `capacity` tokens, hold `length` and grow up to `max_len`. The
    first of these tokens stands at `position` of the text."""

    def __init__(self, model: Transformer, state: State):
        self.model, self.context = model, model.context
        self.max_len = model.context or WINDOWS * model.window
        self.window = model.window or self.max_len  # how many keys a query sees, its own included
        self.layers = layers_of(model)
        self.ln_f = norm_of(model.ln_f)
        slopes = model.h[0].attn.attend.slopes
        self.slopes = None if slopes is None else slopes.view(1, self.layers[0].n_kv_head, -1, 1)
        self.capacity, self.length = 0, 0
        self.position: int | None = None
        self.tokens: Tensor | None = None
        self.position_embeddings: Tensor | None = None
        self.cos_sin: Tensor | None = None
        self.alibi_bias: Tensor | None = None
        self.history: State = {}  # the last tokens, where hashed n-grams read them
        self._load(state)
        self.compiled = self._compiled()

    @without_gradients
    def __call__(self, token: Tensor) -> Tensor:
        return self._take(token, True)

    @without_gradients
    def features(self, token: Tensor) -> Tensor:
        """The features (B, C) that the head reads, instead of its logits; good until the next token."""
        return self._take(token, False)

    def _take(self, token: Tensor, want_logits: bool) -> Tensor:
        self._prepare()
        if self.compiled is not None:
            assert self.tokens is not None  # of a model with a context
            tables = [layer.kv for layer in self.layers]
            x = self.compiled(token, self.length, tables, self.tokens, want_logits)
        else:
            with for_small_work(len(token)):
                x = self._step(token)
                x = self.model.head(x) if want_logits else x
        self.length += 1
        return x

    @without_gradients
    def decode(self, token: Tensor, draws: Draws, steps: int) -> Decoded | None:
        """Read `token` (B,) and draw up to `steps` tokens of each row, as `draws` says: fewer where a table is full.
        None where torch takes the step."""
        self._prepare()
        if self.compiled is None:
            return None
        assert self.tokens is not None  # of a model with a context
        tables = [layer.kv for layer in self.layers]
        steps = min(steps, self.capacity - self.length)
        decoded = self.compiled.decode(token, self.length, tables, self.tokens, draws, steps)
        self.length += len(decoded.tokens)
        return decoded

    def _compiled(self) -> CompiledStep | None:
        """The step as compiled code, where that is the faster way."""
        slopes = None if self.slopes is None else self.slopes.flatten()
        return compiled_step(self.model, len(self.layers[0].kv), self.cos_sin, slopes)

    def _prepare(self) -> None:
        """See to room for one more token."""
        if self.layers[0].kv.is_inference() and not torch.is_inference_mode_enabled():
            self._leave_inference_mode()
        if self.length == self.capacity:
            self._make_room()

    def _step(self, token: Tensor) -> Tensor:
        index, first = self.length, max(0, self.length + 1 - self.window)
        bias = None if self.alibi_bias is None else self.alibi_bias[..., self.max_len - (index + 1 - first) :]
        return self._read(token, CacheIndex(index, first, bias))

    def _read(self, token: Tensor, cache_index: CacheIndex | StaticCacheIndex) -> Tensor:
        x = self._embed(token, cache_index)  # (B, C)
        cos_sin = None
        if self.cos_sin is not None:
            cos, sin = cache_index.row(self.cos_sin).unbind(-2)
            cos_sin = cos, sin
        for layer in self.layers:
            x = layer(x, cache_index, cos_sin, token)
        return self.ln_f(x)

    def _embed(self, token: Tensor, cache_index: CacheIndex | StaticCacheIndex) -> Tensor:
        if self.model.ngrams is None:
            x = F.embedding(token, self.model.wte.weight)
        else:
            x, after = self.model.embed(token[:, None], self.history)
            x, self.history = x[:, 0], {name: into(self.history[name], part) for name, part in after.items()}
        if self.tokens is not None:
            cache_index.write(self.tokens, 1, token)
        return x if self.position_embeddings is None else x + cache_index.row(self.position_embeddings)

    def _make_room(self) -> None:
        """Double the capacity, up to `max_len`. Once that is full, with a context its last half is encoded anew from
        position 0, as `Transformer.read` does; without, what the window still sees moves to the front."""
        if self.capacity < self.max_len:
            self.capacity = min(2 * self.capacity, self.max_len)
            for layer in self.layers:
                layer.grow(self.capacity)
        elif self.compiled is not None:
            assert self.tokens is not None  # of a model with a context
            kept = self.model.last_half(self.tokens).clone()
            rows = [*range(len(kept))]
            self.compiled.encode(rows, kept, [layer.kv for layer in self.layers], self.tokens)
            self.length = kept.shape[1]
        elif self.context is not None:
            self._load(self.model.keep_half(self.tokens))
        else:
            for layer in self.layers:
                layer.keep_last(self.window - 1)
            assert self.position is not None  # since the first `_load`
            self._begin_at(self.position + self.length - (self.window - 1), self.window - 1)

    def _load(self, state: State | None) -> None:
        """Go on after `state`; None: from the beginning."""
        if state is None:
            for part in self.history.values():
                part.fill_(self.model.special.pad)
            self.length = 0
            return
        length = state["k0"].shape[2]
        self.capacity = max(self.capacity, min(max(INITIAL_CAPACITY, 2 * length), self.max_len))
        if "history" in state:
            self.history = {"history": into(self.history.get("history"), state["history"].clone())}
        for i, layer in enumerate(self.layers):
            layer.load(state[f"k{i}"], state[f"v{i}"], self.capacity)
        if self.context is not None:
            self.tokens = into(self.tokens, F.pad(state["tokens"], (0, self.max_len - length)))
        self._begin_at(0 if self.context is not None else int(state["position"][0]) - length, length)

    def _leave_inference_mode(self) -> None:
        """Copy the tables: those that were made in inference mode cannot be written to outside of it."""
        self.tokens, self.cos_sin, self.position_embeddings = (
            None if table is None else table.clone() for table in (self.tokens, self.cos_sin, self.position_embeddings)
        )
        self.history = {name: part.clone() for name, part in self.history.items()}
        for layer in self.layers:
            layer.copy()

    def _begin_at(self, position: int, length: int) -> None:
        """The tables hold `length` tokens, of which the first stands at `position` of the text."""
        self.length = length
        if position == self.position:
            return
        self.position = position
        model, weight = self.model, self.model.wte.weight
        positions = torch.arange(position, position + self.max_len, device=weight.device)
        if model.wpe is not None:
            self.position_embeddings = model.wpe.weight
        elif model.positions == "sinusoidal":
            self.position_embeddings = into(
                self.position_embeddings, sinusoids(positions, model.n_embd).type_as(weight)
            )
        elif model.positions == "rope":
            cos, sin = rotary_cos_sin(positions, model.head_size)
            table = torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)], 1)
            self.cos_sin = into(self.cos_sin, table)  # (max_len, 2, hs)
        else:
            assert self.slopes is not None
            distance = torch.arange(1 - self.max_len, 1, device=weight.device)
            self.alibi_bias = (self.slopes * distance).type_as(weight)  # (1, n_kv_head, group, max_len)


def into(old: Tensor | None, new: Tensor) -> Tensor:
    """`new` in the memory of `old`, which a captured graph reads."""
    return new if old is None or old.shape != new.shape else old.copy_(new)
