"""How compiled code draws the tokens of some rows: what draw.c is told."""

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Sampling(ctypes.Structure):
    """The settings of a row, as draw.c has them."""

    _fields_ = [
        *((name, ctypes.c_double) for name in ("temperature", "top_p", "min_p", "penalty")),
        ("top_k", ctypes.c_int64),
    ]  # fmt: skip


class _Draws(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("sampling", "bias", "race", "stride", "ended", "seen")),
        *((name, ctypes.c_void_p) for name in ("hurry", "values", "entries")),
        *((name, ctypes.c_int64) for name in ("eos", "ends_with_one")),
    ]  # fmt: skip


class Draws:
    """How tokens of B rows are drawn, several steps of them in one call.

    `sampling`: the settings of each row. `seen` (B, V) bool: the tokens that a repetition penalty applies to; what is
    drawn is marked in it. A row ends with `eos` (None: no row ends), and from then on only repeats it; `ended` (B,)
    bool: which rows have. A call returns once one row has ended, if `ends_with_one`, or once all have, and after the
    step in which another thread sets `hurry` (1,) int64."""

    def __init__(
        self,
        sampling: Sequence[Sampling],
        seen: Tensor,
        ended: Tensor,
        eos: int | None,
        ends_with_one: bool,
        hurry: np.ndarray | None = None,
    ):
        B, V = seen.shape
        self.sampling, self.seen, self.ended = (Sampling * B)(*sampling), seen, ended
        self._hurry = np.zeros(1, np.int64) if hurry is None else hurry
        self._bias, self._race, self._stride = (np.zeros(B, np.int64) for _ in range(3))
        self._kept: dict[str, Sequence[Tensor]] = {}  # whose addresses are there
        self._scratch = torch.empty(3, V, dtype=torch.float64)
        self._struct = _Draws(
            ctypes.addressof(self.sampling), self._bias.ctypes.data, self._race.ctypes.data, self._stride.ctypes.data,
            ended.data_ptr(), seen.data_ptr(), self._hurry.ctypes.data, self._scratch.data_ptr(),
            self._scratch[1].data_ptr(), -1 if eos is None else eos, ends_with_one,
        )  # fmt: skip
        self.pointer = ctypes.addressof(self._struct)

    def forbid(self, bias: Sequence[Tensor]) -> None:
        """What each row may not draw: (V,) float64, -inf for it."""
        self._kept["bias"] = bias
        self._bias[:] = [each.data_ptr() for each in bias]

    def race(self, numbers: Sequence[Tensor]) -> None:
        """The exponential random numbers of each row, (steps, V) float64."""
        self._kept["race"] = numbers
        self._race[:] = [each.data_ptr() for each in numbers]
        self._stride[:] = [each.stride(0) for each in numbers]


def settings(
    temperature: float, top_k: int | None, top_p: float | None, min_p: float | None, penalty: float
) -> Sampling:
    """The settings of a row; None: nothing is left out."""
    return Sampling(temperature, top_p or 1.0, min_p or 0.0, penalty, top_k or 2**62)
