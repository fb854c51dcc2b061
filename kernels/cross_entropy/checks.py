"""The options of the losses, and what their arguments have to satisfy. Imports no triton."""

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.dtypes import DTYPES, check_alike
from kernels.transforms import is_transformed

IGNORE = -1
REDUCTIONS = ("sum", "mean", "none")


class Options(NamedTuple):
    """The numbers that the loss of a row depends on, in the order in which the operators and the kernels take them."""

    ignore: int
    smoothing: float
    z_loss: float  # 0.0: none
    softcap: float  # 0.0: none


def make_options(ignore_index: int, label_smoothing: float, z_loss: float, softcap: float | None) -> Options:
    """Raises ValueError for a number that cannot be."""
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; it may be 0 or more, below 1")
    if not 0 <= z_loss < math.inf:
        raise ValueError(f"z_loss is {z_loss}; it may be 0 or more, and finite")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap is {softcap}; it has to be positive and finite, or None")
    return Options(ignore_index, float(label_smoothing), float(z_loss), float(softcap or 0.0))


def check_logits(logits: Tensor) -> None:
    """Raise ValueError for logits that are not (..., V), V at least 1, of a dtype that is computed with."""
    if logits.ndim < 1 or logits.shape[-1] < 1:
        raise ValueError(f"logits has shape {tuple(logits.shape)}; it has to be (..., vocabulary)")
    if logits.dtype not in DTYPES:
        raise ValueError(f"logits is {logits.dtype}; it may be float32, float16 or bfloat16")
    if logits.stride(-1) != 1 and logits.shape[-1] > 1 and logits.numel() > 0:
        raise ValueError(f"logits' last dimension has stride {logits.stride(-1)}; it has to be 1: use contiguous()")


def check_linear(hidden: Tensor, weight: Tensor, bias: Tensor | None, chunk_rows: int | None) -> None:
    """Raise ValueError for what is no linear layer (V, C) on hidden (..., C), or for chunks of no rows."""
    if hidden.ndim < 1:
        raise ValueError(f"hidden has shape {tuple(hidden.shape)}; it has to be (..., width)")
    width = hidden.shape[-1]
    if weight.ndim != 2 or weight.shape[1] != width or weight.shape[0] < 1:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; it has to be (vocabulary, {width})")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"bias has shape {tuple(bias.shape)}; it has to be ({weight.shape[0]},)")
    for name, x in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if x is not None:
            check_alike(name, x, "hidden", hidden)
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows is {chunk_rows}; it may be 1 or more")


def check_rows(rows: Tensor, targets: Tensor, weights: Tensor | None, reduction: str) -> None:
    """Raise ValueError for targets or weights that are not one a row of `rows` (..., C), or an unknown reduction."""
    shape = tuple(rows.shape[:-1])
    if tuple(targets.shape) != shape:
        raise ValueError(f"targets has shape {tuple(targets.shape)}; it has to be one a row, {shape}")
    if targets.dtype != torch.int64:
        raise ValueError(f"targets is {targets.dtype}; it has to be int64")
    if weights is not None and tuple(weights.shape) != shape:
        raise ValueError(f"weights has shape {tuple(weights.shape)}; it has to be one a row, {shape}")
    if weights is not None and not weights.is_floating_point():
        raise ValueError(f"weights is {weights.dtype}; it has to be of a floating-point dtype")
    for name, x in (("targets", targets), ("weights", weights)):
        if x is not None and x.device != rows.device:
            raise ValueError(f"{name} is on {x.device} and the rows on {rows.device}; they have to be together")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; it may be {', '.join(REDUCTIONS)}")


def check_targets(targets: Tensor, vocabulary: int, ignore: int) -> None:
    """Raise ValueError for a target outside of the vocabulary. On the CPU only: reading a GPU's targets would wait for
    it; there the loss of such a row is NaN."""
    if targets.device.type != "cpu":
        return
    wrong = ((targets < 0) | (targets >= vocabulary)) & (targets != ignore)
    if wrong.any():
        at = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"targets{at or ''} is {int(targets[tuple(at)])}; it may be 0 to {vocabulary - 1}, or {ignore} to ignore"
        )


def check_in_place(logits: Tensor) -> None:
    """Raise ValueError for logits (..., V) that a gradient cannot be written over."""
    owner = logits if logits._base is None else logits._base
    if owner.is_leaf and owner.requires_grad:
        kind = "a leaf" if owner is logits else "a view of a leaf"
        raise ValueError(f"in_place is True and logits is {kind}, whose values would be lost; it may be a result only")
    if is_transformed():
        raise ValueError(
            "in_place is True inside a transform of torch.func, which needs the logits again: leave it out"
        )
    sizes = [(size, stride) for size, stride in zip(logits.shape[:-1], logits.stride()[:-1], strict=True) if size > 1]
    if sizes and sizes[-1][1] < logits.shape[-1]:
        raise ValueError(
            "in_place is True and the rows of logits share memory; they have to lie apart: use contiguous()"
        )
    if any(outer[1] != inner[0] * inner[1] for outer, inner in itertools.pairwise(sizes)):
        raise ValueError(
            "in_place is True and the rows of logits do not lie evenly apart: they would be copied; use contiguous()"
        )
