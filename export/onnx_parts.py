"""What a graph cannot hold, as it can: Python that picks kernels by looking at shapes, and loops over tokens.

`plain` changes a copy of a model, or of a classifier, so that it computes the same with these.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan

from finetune.classify.classifier import BUCKETS, Classifier, NGramBag
from kernels import Attention
from kernels.attention.reference import sdpa_mask
from makemore.base import Output, State
from makemore.cells import WrittenCell
from makemore.counts.ngram import FLOOR, NGram
from makemore.hashing import longer, row_of
from makemore.layers import not_padding
from makemore.recurrent import Recurrent
from nanogpt.attention import CausalSelfAttention
from nanogpt.model import Transformer

UNSEEN = -1e30  # the score of a key that is not seen; finite, since padding may see none, and its softmax is to be one


def plain(model: nn.Module) -> Any:
    """`model`, changed: with everything replaced that a graph cannot hold."""
    if isinstance(model, Classifier):
        model.body = plain(model.body)
        model.label_sets = None  # of the loss, which is no part of a graph
        if model.bag is not None:
            model.bag = Bag(model.bag)  # type: ignore[assignment]  # computes the same
        return model
    if isinstance(model, NGram):
        return Counts(model)
    if isinstance(model, Transformer):
        return PlainTransformer(model)
    if isinstance(model, Recurrent):
        model.layers = nn.ModuleList(ScannedLayer(model, layer) for layer in model.layers)
        model.written = True
    return model


class PlainTransformer(nn.Module):
    """What `Transformer.hidden` computes. The keys and values in the state have the width of the past, or where there
    is no context always that of the window, zeros before the beginning. A position past the context is an error of
    the graph: no other operator than an index that is out of bounds has one."""

    within_context: Tensor

    def __init__(self, model: Transformer):
        super().__init__()
        self.model, self.context, self.vocab_size = model, model.context, model.vocab_size
        for block in model.h:
            assert isinstance(block.attn, CausalSelfAttention)
            block.attn.register_module("attend", PlainAttention(block.attn.attend))
        self.register_buffer("within_context", torch.zeros(model.context or 0, dtype=torch.int64))

    def hidden(self, tokens: Tensor, state: State | None, valid: Tensor | None) -> tuple[Tensor, State]:
        model, T = self.model, tokens.shape[1]
        past = 0 if state is None else state["k0"].shape[2]
        key_mask = not_padding(valid) if not model.causal and valid is not None else None
        if self.context is not None:
            position = past + torch.arange(T)
            zero = self.within_context.index_select(0, position)
            tokens, position = tokens + zero, position + zero
        elif state is None:
            position = torch.arange(T)
        else:
            position = state["position"] + torch.arange(T)
            key_mask = (state["position"] - past + torch.arange(past + T) >= 0)[None]
        x, after = model.embed(tokens, state)
        x, y, cos_sin, first = model.add_positions(x, position), None, model.rotary(position), None
        for i, block in enumerate(model.h):
            cache = None if state is None else (state[f"k{i}"], state[f"v{i}"])
            x, y, (k, v) = block(
                x, y, cos_sin, cache, valid, None, key_mask, added=model.added_values(i, tokens), first=first
            )
            first = v[:, :, past:] if first is None else first
            if self.context is None:
                k, v = k[:, :, T:], v[:, :, T:]
            after[f"k{i}"], after[f"v{i}"] = k, v
        return model.ln_f(y, valid, residual=x)[0], after

    def head(self, hidden: Tensor) -> Tensor:
        return self.model.head(hidden)


class PlainAttention(nn.Module):
    """What `kernels.attention` computes, written out."""

    slopes: Tensor | None

    def __init__(self, attend: Attention):
        super().__init__()
        self.causal, self.window, self.softcap = attend.causal, attend.window, attend.softcap
        self.register_buffer("slopes", attend.slopes)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        Tq, Tk, scores = q.shape[2], k.shape[2], q @ k.mT / math.sqrt(q.shape[-1])  # (B, H, Tq, Tk)
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        mask = sdpa_mask(Tq, Tk, self.causal, self.window, self.slopes, q.device, q.dtype, key_mask)
        scores = scores.masked_fill(~mask, UNSEEN) if self.slopes is None else scores + mask.clamp_min(UNSEEN)
        return scores.softmax(-1) @ v


class ScannedLayer(nn.Module):
    """A recurrent layer as the graph's own loop, of any number of tokens: x (B, T, C) and hidden vectors (1, B, H) each
    -> y (B, T, H) and the last hidden vectors."""

    def __init__(self, model: Recurrent, layer: nn.Module):
        super().__init__()
        if not isinstance(layer, WrittenCell):
            written, model.written = model.written, True
            cell = model.make_layer(layer.get_parameter("weight_ih_l0").shape[1])
            model.written = written
            cell.load_state_dict(layer.state_dict())
            layer = cell
        self.cell: Any = layer

    def forward(self, x: Tensor, hidden: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        gates = F.linear(x, self.cell.weight_ih_l0, self.cell.bias_ih_l0).transpose(0, 1)  # (T, B, gates * H)

        def step(before: tuple[Tensor, ...], gates_t: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
            after = self.cell.step(gates_t, before)
            return after, after[0].clone()  # a scan returns no tensor twice

        final, outputs = scan(step, tuple(h[0] for h in hidden), gates)
        return outputs.transpose(0, 1), tuple(h[None] for h in final)


class Bag(nn.Module):
    """What `NGramBag` computes, for texts of any length."""

    def __init__(self, bag: NGramBag):
        super().__init__()
        self.n, self.table = bag.n, bag.table

    def forward(self, tokens: Tensor, read: Tensor) -> Tensor:
        T, hashed = tokens.shape[1], torch.zeros_like(tokens)
        buckets, there = [], []
        for n in range(self.n):
            hashed = longer(hashed, F.pad(tokens, (n, 0))[:, :T])
            buckets.append(row_of(hashed, n, BUCKETS))
            there.append(read & (torch.arange(T) >= n))
        counted = torch.cat(there, 1).type_as(self.table.weight)  # (B, n T)
        total = (self.table(torch.cat(buckets, 1)) * counted[..., None]).sum(1)
        return total * counted.sum(1, keepdim=True).rsqrt()  # a text has at least one token


class Counts(nn.Module):
    """What NGram.forward computes, every token of the vocabulary searched for in each context."""

    context = None

    def __init__(self, model: NGram):
        super().__init__()
        self.model, self.order, self.vocab_size = model, model.order, model.vocab_size

    def forward(self, tokens: Tensor) -> Output:
        model, (B, T) = self.model, tokens.shape
        read = torch.cat([tokens.new_full((B, model.history), model.special.bos), tokens], 1)
        vocabulary = torch.arange(self.vocab_size)
        node, alive = torch.zeros_like(tokens), torch.ones_like(tokens, dtype=torch.bool)  # (B, T)
        p = model.uniform.expand(B, T, -1)  # (B, T, V)
        for k in range(self.order):
            if k:
                context_token = read[:, model.history - k + 1 : model.history - k + 1 + T]
                node, found = _search(getattr(model, f"contexts_{k}"), node * self.vocab_size + context_token)
                alive = alive & found
            index, found = _search(getattr(model, f"grams_{k}"), node[..., None] * self.vocab_size + vocabulary)
            discounted = torch.where(found, getattr(model, f"discounted_{k}")[index], 0.0)
            backoff_weight = getattr(model, f"backoff_weight_{k}")[node][..., None]
            p = torch.where(alive[..., None], discounted + backoff_weight * p, p)
        return Output(p.clamp_min(FLOOR).log(), None, None, {})


def _search(keys: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """The index of each of `queries` in the sorted `keys`, and whether it is there: ONNX has no search, so the steps of
    a bisection are unrolled."""
    index = torch.zeros_like(queries)
    for step in reversed(range(len(keys).bit_length())):
        candidate = index + (1 << step)
        inside = candidate < len(keys)
        index = torch.where(inside & (keys[torch.where(inside, candidate, 0)] <= queries), candidate, index)
    return index, keys[index] == queries
