"""Cross-entropy in Triton: the loss of each row of logits, and its gradient, which may be written over the logits.

A row is read once for its loss, by the online softmax (Milakov & Gimelshein 2018), and once for its gradient. Saved of
its softmax are `row_max`, its largest logit, and `inv_sum`, one over the sum of its exponentials: as in attention these
two stay exact where logits are huge, their log-sum-exp does not. With a soft cap the softmax is that of the capped
logits, which are computed again from the logits wherever they are needed.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import interpreter
from kernels.cross_entropy.checks import Options
from kernels.dispatch import interpreting, on_its_device, target_of
from kernels.tanh import tanh

if interpreting():
    interpreter.repair()


# Not specialised to a value of 1 or to multiples of 16; stride and vocabulary are, which makes loads wide.
NUMBERS = ["n_rows", "ignore", "upstream_stride"]


@triton.jit(do_not_specialize=NUMBERS)
def loss_kernel(
    X, TARGETS, LOSS, ROW_MAX, INV_SUM, n_rows, vocabulary, stride, ignore, smoothing, z_loss, softcap,
    ROWS: tl.constexpr, BLOCK_V: tl.constexpr, SMOOTH: tl.constexpr, Z_LOSS: tl.constexpr, CAPPED: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Compute loss, row_max and inv_sum of some rows. A target outside of the vocabulary makes the loss NaN."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < n_rows
    v = tl.arange(0, BLOCK_V)
    base = (tl.zeros([ROWS], tl.int64) + row) * stride
    target = tl.load(TARGETS + row, live, ignore)
    counted = live & (target != ignore)
    valid = counted & (target >= 0) & (target < vocabulary)
    row_max = tl.full([ROWS], float("-inf"), ACC)
    row_sum = tl.zeros([ROWS], ACC)
    logit_sum = tl.zeros([ROWS], ACC)
    for start in range(0, vocabulary, BLOCK_V):
        inside = (start + v < vocabulary)[None, :]
        x = tl.load(X + base[:, None] + (start + v)[None, :], live[:, None] & inside, 0.0).to(ACC)
        if CAPPED:
            x = softcap * tanh(x / softcap)
        x = tl.where(inside, x, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(x, 1))
        safe_max = tl.where(new_max == float("-inf"), 0.0, new_max)
        row_sum = row_sum * tl.exp(row_max - safe_max) + tl.sum(tl.exp(x - safe_max[:, None]), 1)
        if SMOOTH:
            logit_sum += tl.sum(tl.where(inside, x, 0.0), 1)
        row_max = new_max
    target_logit = tl.load(X + base + target, valid, 0.0).to(ACC)
    if CAPPED:
        target_logit = softcap * tanh(target_logit / softcap)
    loss = tl.log(row_sum) + (row_max - target_logit)
    if SMOOTH:
        mean_logit = logit_sum / vocabulary
        loss = tl.log(row_sum) + (1.0 - smoothing) * (row_max - target_logit) + smoothing * (row_max - mean_logit)
    if Z_LOSS:
        lse = tl.log(row_sum) + row_max
        loss += z_loss * lse * lse
    loss = tl.where(counted, tl.where(valid, loss, float("nan")), 0.0)
    tl.store(LOSS + row, loss, live)
    tl.store(ROW_MAX + row, row_max, live)
    tl.store(INV_SUM + row, 1.0 / row_sum, live)


@triton.jit(do_not_specialize=NUMBERS)
def gradient_kernel(
    X, TARGETS, ROW_MAX, INV_SUM, UPSTREAM, GRADIENT, n_rows, vocabulary, stride, upstream_stride, gradient_stride,
    ignore, smoothing, z_loss, softcap,
    ROWS: tl.constexpr, BLOCK_V: tl.constexpr, Z_LOSS: tl.constexpr, CAPPED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Compute one tile of the gradient of some rows: softmax less the smoothed target, times the upstream gradient. A
    z-loss makes the softmax 1 + 2 z lse times as large, a soft cap makes all 1 - tanh^2 times. GRADIENT may be X."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < n_rows
    v = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    mask = live[:, None] & (v < vocabulary)[None, :]
    wide_row = tl.zeros([ROWS], tl.int64) + row
    target = tl.load(TARGETS + row, live, ignore)
    counted = live & (target != ignore)
    upstream = tl.load(UPSTREAM + row * upstream_stride, counted, 0.0).to(ACC)
    row_max = tl.load(ROW_MAX + row, live, 0.0)
    inv_sum = tl.load(INV_SUM + row, live, 1.0)
    x = tl.load(X + wide_row[:, None] * stride + v[None, :], mask, float("-inf")).to(ACC)
    if CAPPED:
        shrunk = tanh(x / softcap)
        x = softcap * shrunk
    p = tl.exp(x - row_max[:, None]) * inv_sum[:, None]
    if Z_LOSS:
        p *= (1.0 + 2.0 * z_loss * (row_max - tl.log(inv_sum)))[:, None]
    smoothed = tl.where(v[None, :] == target[:, None], 1.0 - smoothing, 0.0) + smoothing / vocabulary
    gradient = (p - smoothed) * upstream[:, None]
    if CAPPED:
        gradient *= 1.0 - shrunk * shrunk
    gradient = tl.where(counted[:, None], gradient, 0.0)
    outside = counted & ((target < 0) | (target >= vocabulary))
    gradient = tl.where(outside[:, None], float("nan"), gradient)
    tl.store(GRADIENT + wide_row[:, None] * gradient_stride + v[None, :], gradient, mask)


class Tiles(NamedTuple):
    """Rows a program, columns a tile, warps a program."""

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
def loss(logits: Tensor, targets: Tensor, options: Options, losses: Tensor, row_max: Tensor, inv_sum: Tensor) -> None:
    """Fill losses, row_max and inv_sum (N,) for logits (N, V) and targets (N,)."""
    N, V = logits.shape
    if N == 0:
        return
    rows, block_v, num_warps = tiles(V, target_of(logits.device))
    loss_kernel[(triton.cdiv(N, rows),)](
        logits, targets, losses, row_max, inv_sum, N, V, logits.stride(0), *options,
        ROWS=rows, BLOCK_V=block_v, SMOOTH=options.smoothing > 0, num_warps=num_warps, **_flags(logits, options),
    )  # fmt: skip


@on_its_device
def gradient(
    logits: Tensor,
    targets: Tensor,
    row_max: Tensor,
    inv_sum: Tensor,
    upstream: Tensor,
    options: Options,
    out: Tensor,
) -> None:
    """Fill `out` (N, V) with the gradient; it may be the logits themselves. `upstream` (N,) may be expanded."""
    N, V = logits.shape
    if N == 0:
        return
    rows, block_v, num_warps = tiles(V, target_of(logits.device))
    gradient_kernel[(triton.cdiv(N, rows), triton.cdiv(V, block_v))](
        logits, targets, row_max, inv_sum, upstream, out, N, V, logits.stride(0), upstream.stride(0), out.stride(0),
        *options, ROWS=rows, BLOCK_V=block_v, num_warps=num_warps, **_flags(logits, options),
    )  # fmt: skip


def _flags(x: Tensor, options: Options) -> dict[str, Any]:
    """The compile-time arguments that both kernels have."""
    accumulator = tl.float64 if x.dtype == torch.float64 else tl.float32
    return {"Z_LOSS": options.z_loss > 0, "CAPPED": options.softcap > 0, "ACC": accumulator}
