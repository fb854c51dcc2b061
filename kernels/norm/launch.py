"""Launching the kernels of layer norm and RMS norm: their tiles, their compile-time arguments, their grid."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import on_its_device, target_of
from kernels.norm.kernel import backward_kernel, forward_kernel, wide_rows_kernel, wide_weights_kernel

ONE_TILE = 8192  # the widest row that is held whole
PIPELINED = 2048  # the widest row whose successors the backward loads meanwhile; wider ones, and registers spill
GROUP = 4096  # elements of the rows that it takes at once
# A product is rounded before it is added: of a row of one column the parts have to cancel to the last bit. A norm waits
# for memory, so that costs nothing.
ROUNDED = {"enable_fp_fusion": False}
PARTIALS = 264  # programs that sum the gradients of the weights: two for each processor of an H100


class Tiles(NamedTuple):
    """Rows a program, columns a tile, warps a program, and groups of rows that the backward's loop has on the way."""

    rows: int
    block_c: int
    num_warps: int
    stages: int = 1


def tiles(kernel: str, width: int, target: str) -> Tiles:
    """The tiles of `kernel` ("forward", "backward", "wide_rows" or "wide_weights") for rows of `width`."""
    whole = triton.next_power_of_2(width)
    if kernel == "wide_weights":
        return Tiles(16, 256, 4)
    block_c = min(whole, ONE_TILE) if width <= ONE_TILE else 4096
    if target == "interpreter":
        return Tiles(32 if block_c <= 512 else 4, block_c, 4)
    if kernel == "backward" and block_c <= PIPELINED:
        return Tiles(min(64, GROUP // block_c), block_c, 8, 1 if target == "hip" else 3)
    rows = max(1, min(16, (2048 if kernel == "forward" else 1024) // block_c))
    elements = rows * block_c
    return Tiles(rows, block_c, 4 if elements <= 2048 else 8 if elements <= 4096 else 16)


def _accumulator(x: Tensor):
    return tl.float64 if x.dtype == torch.float64 else tl.float32


@on_its_device
def forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    rms: bool,
    y: Tensor,
    s: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> None:
    """Fill y (N, C) and rstd (N,); with a residual also the sum s (N, C), and except for RMS the mean (N,)."""
    N, C = x.shape
    if N == 0:
        return
    rows, block_c, num_warps, _ = tiles("forward", C, target_of(x.device))
    forward_kernel[(triton.cdiv(N, rows),)](
        x, _or(residual, x), _or(weight, x), _or(bias, x), y, _or(s if residual is not None else None, x),
        rstd if rms else mean, rstd, N, C, eps,
        ROWS=rows, BLOCK_C=block_c, WIDE=block_c < C, RMS=rms, HAS_R=residual is not None, HAS_W=weight is not None,
        HAS_B=bias is not None, ACC=_accumulator(x), num_warps=num_warps, **ROUNDED,
    )  # fmt: skip


@on_its_device
def backward(
    dy: Tensor,
    ds: Tensor | None,
    s: Tensor,
    weight: Tensor | None,
    has_bias: bool,
    mean: Tensor,
    rstd: Tensor,
    rms: bool,
    dx: Tensor,
) -> tuple[Tensor | None, Tensor | None]:
    """Fill dx (N, C) and return dw and db (C,) in float32, None for a weight or bias that is not there."""
    N, C = s.shape
    target = target_of(s.device)
    mean = rstd if rms else mean
    flags = {"RMS": rms, "HAS_W": weight is not None, "ACC": _accumulator(s), **ROUNDED}
    wide = C > ONE_TILE
    rows, block_c, num_warps, stages = tiles("wide_weights" if wide else "backward", C, target)
    programs = min(PARTIALS if target != "interpreter" else 4, triton.cdiv(N, rows))
    partial = s.new_empty(2, programs, C, dtype=rstd.dtype)
    if N > 0 and wide:
        if weight is not None or has_bias:
            wide_weights_kernel[(programs, triton.cdiv(C, block_c))](
                s, mean, rstd, dy, partial[0], partial[1], N, C,
                ROWS=rows, BLOCK_C=block_c, HAS_B=has_bias, num_warps=num_warps, **flags,
            )  # fmt: skip
        rows, block_c, num_warps, _ = tiles("wide_rows", C, target)
        wide_rows_kernel[(triton.cdiv(N, rows),)](
            s, _or(weight, s), mean, rstd, dy, _or(ds, dy), dx, N, C,
            ROWS=rows, BLOCK_C=block_c, HAS_S=ds is not None, num_warps=num_warps, **flags,
        )  # fmt: skip
    elif N > 0:
        backward_kernel[(programs,)](
            s, _or(weight, s), mean, rstd, dy, _or(ds, dy), dx, partial[0], partial[1], N, C,
            ROWS=rows, BLOCK_C=block_c, STAGES=stages, HAS_S=ds is not None, HAS_B=has_bias, num_warps=num_warps,
            **flags,
        )  # fmt: skip
    return (partial[0].sum(0) if weight is not None else None), (partial[1].sum(0) if has_bias else None)


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A pointer for an optional tensor: `other` where it is not there, which the kernel then never reads."""
    return other if tensor is None else tensor
