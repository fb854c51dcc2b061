"""A model's step as a list of operations for step.c.

A `Program` is built once for so many rows: each operation reads rows of floats and writes others. Everything is float32
and contiguous.
"""

import ctypes
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.step.draws import Draws
from kernels.step.library import Library

EMBED, PRODUCT, LAYER_NORM, RMS_NORM, SCALE, ACTIVATE, GATE, ATTEND, RNN, LSTM, GRU, CAP, LOOKUP, MIX = range(14)
ACTIVATIONS = ("sigmoid", "tanh", "relu", "leaky_relu", "gelu", "gelu_tanh", "silu", "relu2")  # by their numbers
PANEL = 64  # columns of weights that are stored together
_WHOLE = ("kind", "width_in", "width_out", "variant", "heads", "kv_heads", "capacity", "window")
_POINTERS = ("x", "weight", "bias", "out", "state", "state2", "turns", "slopes", "tokens", "scratch")


class Op(ctypes.Structure):
    """An operation, as step.c has it."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _WHOLE),
        *((name, ctypes.c_double) for name in ("eps", "cap")),
        *((name, ctypes.c_void_p) for name in _POINTERS),
    ]


class Decoded(NamedTuple):
    """What was drawn."""

    tokens: Tensor  # (steps, B)
    logits: Tensor  # (B, V): what the last of them were drawn from


class Program:
    """The operations of a step of up to `rows` rows. `call` runs those added so far; a tensor that an operation was
    given is kept, and `point` gives it another."""

    def __init__(self, library: Library, rows: int):
        self.library, self.rows = library, rows
        self.ops: list[Op] = []
        self.at = np.zeros(rows, np.int64)  # the place of each row's token, where operations need it
        self.slots = np.arange(rows)  # the row of the tables that is each row's
        self._pointers = self.at.ctypes.data, self.slots.ctypes.data  # asking numpy for them takes microseconds
        self._kept: list[dict[str, Tensor]] = []
        self._all: Any = None  # the operations as one array

    def buffer(self, width: int) -> Tensor:
        """Rows of floats, (rows, width)."""
        return torch.zeros(self.rows, width)

    def add(self, kind: int, width_in: int, width_out: int, *, variant: int = 0, **given: Any) -> int:
        """An operation from rows of `width_in` to rows of `width_out`; its number. Without `out` it gives the result of
        the step."""
        op = Op(kind=kind, width_in=width_in, width_out=width_out, variant=variant)
        self.ops.append(op)
        self._kept.append({})
        for name, value in given.items():
            if isinstance(value, Tensor):
                self._point(len(self.ops) - 1, name, value)
            elif value is not None:
                setattr(op, name, value)
        self._all = None
        return len(self.ops) - 1

    def product(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None, adds: bool = False
    ) -> Tensor | None:
        """x (rows, K) times weight (N, K), plus the bias (N,): written to `out` (rows, N), or, with `adds`, added."""
        N, K = weight.shape
        self.add(PRODUCT, K, N, variant=int(adds), x=x, weight=in_panels(weight), bias=padded(bias), out=out)
        return out

    def point(self, number: int, capacity: int | None = None, **tensors: Tensor) -> None:
        """Give operation `number` other tensors."""
        for name, tensor in tensors.items():
            if self._kept[number].get(name) is not tensor:
                self._point(number, name, tensor)
                if capacity is not None:
                    self.ops[number].capacity = capacity
                self._all = None

    def call(self, token: Tensor, result: Tensor | None, count: int | None = None) -> None:
        """Run the first `count` operations (None: all) for `token` (B,) int64; the result goes to `result`."""
        token = token.contiguous()
        self.library.step(
            self._operations(), len(self.ops) if count is None else count, len(token), token.data_ptr(),
            *self._pointers, None if result is None else result.data_ptr(),
        )  # fmt: skip

    def decode(self, token: Tensor, vocab_size: int, draws: Draws, steps: int) -> Decoded:
        """Read `token` (B,) int64, draw the next one of each row, read that, and so on, `steps` times, or less often,
        as `draws` says."""
        result = torch.empty(len(token), vocab_size)
        tokens = token.new_empty(steps + 1, len(token))
        tokens[0] = token
        done = self.library.decode(
            self._operations(), len(self.ops), *result.shape, steps, tokens.data_ptr(), *self._pointers,
            result.data_ptr(), draws.pointer,
        )  # fmt: skip
        return Decoded(tokens[1 : done + 1], result)

    def _operations(self) -> Any:
        if self._all is None:
            self._all = (Op * len(self.ops))(*self.ops)
        return self._all

    def _point(self, number: int, name: str, tensor: Tensor) -> None:
        if not tensor.is_contiguous() or tensor.dtype != (torch.int64 if name == "tokens" else torch.float32):
            raise ValueError(f"{name} has to be contiguous and of float32 (tokens: int64), not {tensor.dtype}")
        self._kept[number][name] = tensor
        setattr(self.ops[number], name, tensor.data_ptr())


def in_panels(weight: Tensor) -> Tensor:
    """weight (N, K) as panels (ceil(N / 64), K, 64), with zeros at the end: read from front to back by a product."""
    N, K = weight.shape
    panels = -(-N // PANEL)
    return F.pad(weight.detach(), (0, 0, 0, panels * PANEL - N)).view(panels, PANEL, K).transpose(1, 2).contiguous()


def padded(bias: Tensor | None) -> Tensor | None:
    """bias (N,) with zeros up to whole panels."""
    return None if bias is None else F.pad(bias.detach(), (0, -len(bias) % PANEL))
