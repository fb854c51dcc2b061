"""A Transformer's step on a CPU as one call of compiled code: the sum of stepper.py for a small model in float32."""

import operator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.step.draws import Draws
from kernels.step.library import Library
from kernels.step.program import ACTIVATE, ATTEND, CAP, EMBED, GATE, LOOKUP, MIX, Decoded, Program
from makemore.compiled import add_norm, compiled_functions, number_of
from nanogpt.attention import sinusoids
from nanogpt.block import Block

Transformer = Any  # its module imports this one
FEWEST_ROWS = 32  # that there is room for: also those of one text that is encoded anew


def compiled_step(model: Transformer, rows: int, turns: Tensor | None, slopes: Tensor | None) -> "CompiledStep | None":
    """The step of `rows` rows of `model` in one call; None where torch takes it. `turns`: RoPE's (context, 2, hs);
    `slopes`: ALiBi's."""
    if model.context is None or model.ngrams is not None:
        return None
    functions = compiled_functions(model, rows)
    return None if functions is None else CompiledStep(model, functions, max(rows, FEWEST_ROWS), turns, slopes)


class CompiledStep:
    """token (B,) of up to `rows` rows of a model with a context -> logits (B, V) or features (B, C). The tables of
    keys, values and tokens, which it writes to, are handed in."""

    def __init__(self, model: Transformer, functions: Library, rows: int, turns: Tensor | None, slopes: Tensor | None):
        self.model, self.program, self.rows = model, Program(functions, rows), rows
        C, program = model.n_embd, self.program
        x, self.hidden = program.buffer(C), program.buffer(C)
        positions = None if model.wpe is None else model.wpe.weight.detach()
        if model.positions == "sinusoidal":
            positions = sinusoids(torch.arange(model.context), C)
        program.add(EMBED, C, C, weight=model.wte.weight.detach(), bias=positions, capacity=model.context, out=x)
        self.first_heads = x  # from the first block on, its queries, keys and values
        self.attends = [self._add_block(i, x, turns, slopes) for i in range(len(model.h))]
        add_norm(program, model.ln_f, x, self.hidden)
        self.features_end = len(program.ops)
        self._given: list[Tensor] = []  # the tables of the last call
        weight, bias = (model.wte.weight, None) if model.lm_head is None else (model.lm_head.weight, model.lm_head.bias)
        program.product(self.hidden, weight, bias)
        if model.logit_cap is not None:
            program.add(CAP, len(weight), len(weight), cap=model.logit_cap)

    def __call__(
        self, token: Tensor, lengths: int | list[int], tables: list[Tensor], tokens: Tensor, want_logits: bool
    ) -> Tensor:
        """The logits (B, V) after one more token of each row, or the features (B, C) that the head reads. Each of
        `tables` is (rows, 2 n_kv_head, capacity, hs) of a block and has `lengths` of them; `tokens` (rows, context)."""
        self._point(token, lengths, tables, tokens)
        if not want_logits:
            self.program.call(token, None, self.features_end)
            return self.hidden[: len(token)].clone()
        result = torch.empty(len(token), self.model.vocab_size)
        self.program.call(token, result)
        return result

    def decode(
        self, token: Tensor, lengths: int | list[int], tables: list[Tensor], tokens: Tensor, draws: Draws, steps: int
    ) -> Decoded:
        """Several tokens of each row, one after another: the tables have room for them."""
        self._point(token, lengths, tables, tokens)
        return self.program.decode(token, self.model.vocab_size, draws, steps)

    def encode(self, rows: list[int], texts: Tensor, tables: list[Tensor], tokens: Tensor) -> None:
        """Fill these rows of the tables with `texts` (len(rows), T), from position 0."""
        T, program = texts.shape[1], self.program
        self._point_at(tables, tokens)
        slots, places = np.repeat(rows, T), np.tile(np.arange(T), len(rows))
        for start in range(0, len(slots), self.rows):  # a text's tokens in their order: each sees those before it
            part = slice(start, start + self.rows)
            token = texts.flatten()[part]
            program.slots[: len(token)], program.at[: len(token)] = slots[part], places[part]
            program.call(token, None, self.attends[-1] + 1)  # behind the last keys and values nothing is kept
        program.slots[:] = np.arange(self.rows)

    def _point(self, token: Tensor, lengths: int | list[int], tables: list[Tensor], tokens: Tensor) -> None:
        self.program.at[: len(token)] = lengths
        self._point_at(tables, tokens)

    def _point_at(self, tables: list[Tensor], tokens: Tensor) -> None:
        given = [tokens, *tables]
        if self._given and all(map(operator.is_, given, self._given)):
            return
        self._given = given
        self.program.point(0, tokens=tokens)
        for number, table in zip(self.attends, tables, strict=True):
            self.program.point(number, state=table, capacity=table.shape[2])

    def _add_block(self, layer: int, x: Tensor, turns: Tensor | None, slopes: Tensor | None) -> int:
        block: Block = self.model.h[layer]
        program, attn, mlp = self.program, block.attn, block.mlp
        C, n_head, n_kv_head = x.shape[1], attn.n_head, attn.n_kv_head
        normed, heads, y = (program.buffer(n) for n in (C, attn.c_attn.out_features, C))
        add_norm(program, block.ln_1, x, normed)
        program.product(normed, attn.c_attn.weight, attn.c_attn.bias, heads)
        table, gate = self.model.value_table(layer), attn.value_gate
        if table is not None and gate is not None:
            gates, weight = program.buffer(n_kv_head), F.pad(gate.weight, (0, C - gate.in_features))
            program.product(normed, weight, None, gates)
            program.add(ACTIVATE, n_kv_head, n_kv_head, variant=number_of(torch.sigmoid), x=gates, out=gates)
            program.add(
                LOOKUP, n_kv_head, heads.shape[1], x=gates, weight=table, kv_heads=n_kv_head, capacity=table.shape[1],
                out=heads,
            )  # fmt: skip
        if attn.value_mix is not None:
            (own, first), width = attn.value_mix.tolist(), heads.shape[1]
            program.add(
                MIX, width, width, x=self.first_heads, out=heads, capacity=n_kv_head * attn.head_size, eps=own,
                cap=first,
            )  # fmt: skip
        if layer == 0:
            self.first_heads = heads
        window = self.model.window or self.model.context
        number = program.add(
            ATTEND, heads.shape[1], C, variant=int(attn.qk_norm), x=heads, out=y, heads=n_head, kv_heads=n_kv_head,
            window=window, eps=torch.finfo(torch.float32).eps, cap=float(attn.attend.softcap or 0), turns=turns,
            slopes=slopes, scratch=torch.zeros(self.model.context),
        )  # fmt: skip
        program.product(y, attn.c_proj.weight, attn.c_proj.bias, x, adds=True)
        add_norm(program, block.ln_2, x, normed)
        inner = program.buffer(mlp.c_fc.out_features)
        program.product(normed, mlp.c_fc.weight, mlp.c_fc.bias, inner)
        variant = number_of(mlp.activation)
        if mlp.gated:
            width = inner.shape[1] // 2
            acted = program.buffer(width)
            program.add(GATE, 2 * width, width, variant=variant, x=inner, out=acted)
        else:
            acted = inner
            program.add(ACTIVATE, inner.shape[1], inner.shape[1], variant=variant, x=inner, out=inner)
        program.product(acted, mlp.c_proj.weight, mlp.c_proj.bias, x, adds=True)
        return number
