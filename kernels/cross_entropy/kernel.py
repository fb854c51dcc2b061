"""Cross-entropy in Triton: the loss of each row of logits, and its gradient, which may be written over the logits.

A row is read once for its loss, by an online softmax (Milakov & Gimelshein 2018), and once for its gradient. As in
attention its softmax is kept as peak and one over the total, which stays exact where logits are huge.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import interpreter
from kernels.dispatch import interpreting, on_its_device, target_of

if interpreting():
    interpreter.repair()


@triton.jit
def loss_kernel(
    X, TARGETS, LOSS, PEAK, INVERSE, n_rows, vocabulary, stride, ignore, smoothing,
    ROWS: tl.constexpr, BLOCK_V: tl.constexpr, SMOOTH: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Some rows: loss, peak and one over the total. A target outside of the vocabulary makes the loss NaN."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < n_rows
    v = tl.arange(0, BLOCK_V)
    base = (tl.zeros([ROWS], tl.int64) + row) * stride
    target = tl.load(TARGETS + row, live, ignore)
    counts = live & (target != ignore)
    valid = counts & (target >= 0) & (target < vocabulary)
    peak = tl.full([ROWS], float("-inf"), ACC)
    total = tl.zeros([ROWS], ACC)
    level = tl.zeros([ROWS], ACC)
    for start in range(0, vocabulary, BLOCK_V):
        inside = (start + v < vocabulary)[None, :]
        x = tl.load(X + base[:, None] + (start + v)[None, :], live[:, None] & inside, 0.0).to(ACC)
        x = tl.where(inside, x, float("-inf"))
        higher = tl.maximum(peak, tl.max(x, 1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(peak - safe) + tl.sum(tl.exp(x - safe[:, None]), 1)
        if SMOOTH:
            level += tl.sum(tl.where(inside, x, 0.0), 1)
        peak = higher
    chosen = tl.load(X + base + target, valid, 0.0).to(ACC)
    loss = tl.log(total) + (peak - chosen)
    if SMOOTH:
        loss = tl.log(total) + (1.0 - smoothing) * (peak - chosen) + smoothing * (peak - level / vocabulary)
    loss = tl.where(counts, tl.where(valid, loss, float("nan")), 0.0)
    tl.store(LOSS + row, loss, live)
    tl.store(PEAK + row, peak, live)
    tl.store(INVERSE + row, 1.0 / total, live)


@triton.jit
def gradient_kernel(
    X, TARGETS, PEAK, INVERSE, UPSTREAM, GRADIENT, n_rows, vocabulary, stride, upstream_stride, gradient_stride,
    ignore, smoothing,
    ROWS: tl.constexpr, BLOCK_V: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One tile of some rows of the gradient: softmax less the smoothed target, times the upstream gradient. GRADIENT
    may be X."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < n_rows
    v = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    mask = live[:, None] & (v < vocabulary)[None, :]
    wide_row = tl.zeros([ROWS], tl.int64) + row
    target = tl.load(TARGETS + row, live, ignore)
    counts = live & (target != ignore)
    upstream = tl.load(UPSTREAM + row * upstream_stride, counts, 0.0).to(ACC)
    peak = tl.load(PEAK + row, live, 0.0)
    inverse = tl.load(INVERSE + row, live, 0.0)
    x = tl.load(X + wide_row[:, None] * stride + v[None, :], mask, float("-inf")).to(ACC)
    p = tl.exp(x - peak[:, None]) * inverse[:, None]
    wanted = tl.where(v[None, :] == target[:, None], 1.0 - smoothing, 0.0) + smoothing / vocabulary
    gradient = tl.where(counts[:, None], (p - wanted) * upstream[:, None], 0.0)
    outside = counts & ((target < 0) | (target >= vocabulary))
    gradient = tl.where(outside[:, None], float("nan"), gradient)
    tl.store(GRADIENT + wide_row[:, None] * gradient_stride + v[None, :], gradient, mask)


class Tiles(NamedTuple):
    """How a kernel is cut up: rows a program, columns a tile, warps a program."""

    rows: int
    block_v: int
    num_warps: int


def tiles(vocabulary: int, target: str) -> Tiles:
    """The tiles of both kernels for rows of `vocabulary` logits."""
    block_v = min(triton.next_power_of_2(vocabulary), 4096)
    if target == "interpreter":
        return Tiles(32, min(block_v, 1024), 4)
    return Tiles(max(1, 1024 // block_v), block_v, 8 if block_v == 4096 else 4)


@on_its_device
def loss(
    logits: Tensor, targets: Tensor, ignore: int, smoothing: float, losses: Tensor, peak: Tensor, inverse: Tensor
) -> None:
    """Fill losses, peak and inverse (N,) for logits (N, V) and targets (N,)."""
    N, V = logits.shape
    if N == 0:
        return
    rows, block_v, num_warps = tiles(V, target_of(logits.device))
    loss_kernel[(triton.cdiv(N, rows),)](
        logits, targets, losses, peak, inverse, N, V, logits.stride(0), ignore, smoothing,
        ROWS=rows, BLOCK_V=block_v, SMOOTH=smoothing > 0, ACC=_accumulator(logits), num_warps=num_warps,
    )  # fmt: skip


@on_its_device
def gradient(
    logits: Tensor,
    targets: Tensor,
    peak: Tensor,
    inverse: Tensor,
    upstream: Tensor,
    ignore: int,
    smoothing: float,
    out: Tensor,
) -> None:
    """Fill out (N, V), which may be the logits themselves. `upstream` (N,) may be expanded."""
    N, V = logits.shape
    if N == 0:
        return
    rows, block_v, num_warps = tiles(V, target_of(logits.device))
    gradient_kernel[(triton.cdiv(N, rows), triton.cdiv(V, block_v))](
        logits, targets, peak, inverse, upstream, out, N, V, logits.stride(0), upstream.stride(0), out.stride(0),
        ignore, smoothing, ROWS=rows, BLOCK_V=block_v, ACC=_accumulator(logits), num_warps=num_warps,
    )  # fmt: skip


def _accumulator(x: Tensor):
    return tl.float64 if x.dtype == torch.float64 else tl.float32
