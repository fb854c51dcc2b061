"""Launching the attention kernels: their compile-time arguments, their grid."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.attention.backward import dkv_kernel, dq_kernel
from kernels.attention.call import Call
from kernels.attention.forward import combine_kernel, forward_kernel
from kernels.attention.parts import ALIGN
from kernels.attention.tiles import padded, small_heads, tiles
from kernels.dispatch import on_its_device, processors, target_of

KERNELS = {"forward": forward_kernel, "decode": forward_kernel, "dq": dq_kernel, "dkv": dkv_kernel}
FEW_QUERIES = 16  # up to so many, the keys are split
SHARE = 256  # the fewest keys of a share, and what their number is a multiple of
MOST_SHARES = 64


@on_its_device
def forward(q: Tensor, k: Tensor, v: Tensor, call: Call, out: Tensor, lse: Tensor, softmax_stats: Tensor) -> None:
    """Fill `out` (B, H, Tq, D) laid out (B, Tq, H, D), `lse` (B, H, Tq) and `softmax_stats` (2, B, H, Tq)."""
    q, k, v = map(_aligned, (q, k, v))
    row_max, inv_sum = softmax_stats
    rest = (*_optional(call, q), *_strides(q, k, v))
    shares, span = split(q, k, call)
    if shares == 1:
        launch("forward", call.longest_q, q, k, call, (q, k, v, out, lse, row_max, inv_sum, *rest), span=0, SPLIT=False)
        return
    B, H, Tq, D = q.shape
    parts = q.new_empty(shares, B, Tq, H, D, dtype=lse.dtype)
    part_max, part_inv = q.new_empty(2, shares, B, H, Tq, dtype=lse.dtype)
    arguments = (q, k, v, parts, lse, part_max, part_inv, *rest)
    launch("decode", Tq, q, k, call, arguments, shares, span=span, SPLIT=True)
    combine_kernel[(B * H * Tq,)](
        parts,
        part_max,
        part_inv,
        out,
        lse,
        row_max,
        inv_sum,
        shares,
        B * H * Tq,
        H,
        Tq,
        **combine_constants(D, q.dtype),
    )


def split(q: Tensor, k: Tensor, call: Call) -> tuple[int, int]:
    """Into how many shares the keys of few queries are split, and how many keys a share has, so that the programs fill
    the GPU. One share where there are queries enough, or keys too few to be worth it."""
    B, H, Tq, D = q.shape
    Tk = k.shape[2]
    if call.starts_q is not None or not 0 < Tq <= FEW_QUERIES or B * H == 0:
        return 1, 0
    keys = Tk if call.left is None else min(Tk, call.left + Tq + SHARE)
    shares = min(-(-keys // SHARE), -(-2 * processors(q.device) // (B * H)), MOST_SHARES)
    if shares < 2:
        return 1, 0
    span = -(-keys // (shares * SHARE)) * SHARE
    return -(-keys // span), span


def combine_constants(head_size: int, dtype: torch.dtype) -> dict:
    """The compile-time arguments of `combine_kernel`."""
    block_d = max(16, triton.next_power_of_2(head_size))
    return {"D": head_size, "BLOCK_D": block_d, "SHARES": MOST_SHARES, "ACC": _accumulator(dtype), "num_warps": 4}


@on_its_device
def backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_stats: Tensor,
    call: Call,
    gradients: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Fill `gradients`, those of q, k and v, each laid out (B, T, H, D). `dlse`: None where nobody asks for it."""
    dq, dk, dv = gradients
    q, k, v, out, dout = map(_aligned, (q, k, v, out, dout))
    row_max, inv_sum = softmax_stats
    delta = torch.empty_like(row_max)
    stats = row_max, inv_sum, delta
    given = delta if dlse is None else dlse
    arguments = (q, k, v, out, dout, given, *stats, dq, *_optional(call, q), *_strides(q, k, v, out, dout))
    launch("dq", call.longest_q, q, k, call, arguments, HAS_DLSE=dlse is not None)
    B, H, _, D = q.shape
    heads, T = k.shape[1:3]
    if heads == H:
        parts = dk, dv
    else:
        parts = tuple(k.new_empty(2, B, T, H, D, dtype=row_max.dtype).transpose(2, 3))
    arguments = (q, k, v, dout, *stats, *parts, *_optional(call, q), *_strides(q, k, v, dout))
    launch("dkv", call.longest_k, q, k, call, arguments)
    if heads < H:
        for whole, part in zip((dk, dv), parts, strict=True):
            whole.copy_(part.unflatten(1, (heads, H // heads)).sum(2))


def launch(
    kernel: str, longest: int, q: Tensor, k: Tensor, call: Call, arguments: tuple, shares: int = 1, **more: int
) -> None:
    """Run `kernel` on one program for each tile, head and share of the keys. Nothing to do for empty tensors."""
    B, H, Tq, D = q.shape
    heads, Tk = k.shape[1:3]
    sequences = B if call.starts_q is None else len(call.starts_q) - 1
    settings = constants(kernel, D, q.dtype, target_of(q.device), call, small_heads())
    block = settings["BLOCK_N" if kernel == "dkv" else "BLOCK_M"]
    programs = -(-longest // block) * sequences * H
    if programs == 0:
        return
    KERNELS[kernel][(programs, shares)](
        *arguments, H, H // heads, Tq, Tk, longest, call.scale, call.softcap, call.left or 0, call.right or 0,
        round(call.dropout * 2**24), 1.0 / (1.0 - call.dropout), **settings, **more,
    )  # fmt: skip


def constants(kernel: str, head_size: int, dtype: torch.dtype, target: str, call: Call, way: str = "plain") -> dict:
    """The compile-time arguments and the launch options of `kernel`; of small heads, those of `way` (tiles.py)."""
    block_d = padded(head_size, target, way)
    is_causal = call.right == 0
    optional = (call.left, None if is_causal else call.right, call.slopes, call.key_mask, call.starts_q)
    plain = all(option is None for option in optional) and call.dropout == 0 and call.softcap == 0
    block_m, block_n, num_warps, num_stages = tiles(kernel, block_d, dtype, target, plain, way)
    return {
        "D": head_size, "BLOCK_D": block_d, "BLOCK_M": block_m, "BLOCK_N": block_n, "CAUSAL": is_causal,
        "LEFT": call.left is not None, "RIGHT": call.right is not None and not is_causal,
        "KEYED": call.key_mask is not None, "ALIBI": call.slopes is not None, "CAPPED": call.softcap > 0,
        "DROPOUT": call.dropout > 0, "VARLEN": call.starts_q is not None, "ACC": _accumulator(dtype),
        "PRECISION": "tf32x3" if target.startswith("sm") else "ieee",
        "num_warps": num_warps, "num_stages": num_stages,
    }  # fmt: skip


def _optional(call: Call, q: Tensor) -> tuple[Tensor, ...]:
    """The optional tensors of a call. For one that is not there q's pointer is passed, and never read."""
    mask = None if call.key_mask is None else call.key_mask.view(torch.int8)
    return tuple(q if x is None else x for x in (call.starts_q, call.starts_k, call.slopes, call.seed, mask))


def _accumulator(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


def _aligned(x: Tensor) -> Tensor:
    """x (B, H, T, D), or where its rows do not all begin at a multiple of ALIGN elements a copy whose rows do: a view
    that is off by some elements, or a head size that ALIGN does not divide."""
    batch, head, row, _ = x.stride()
    if x.data_ptr() % 16 == 0 and (batch | head | row) % ALIGN.value == 0:
        return x
    B, H, T, D = x.shape
    room = x.new_empty(B, T, H, -(-D // ALIGN.value) * ALIGN.value)
    return room[..., :D].transpose(1, 2).copy_(x)


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    """The strides of aligned tensors in units of ALIGN."""
    return tuple(stride // ALIGN.value for x in tensors for stride in x.stride()[:3])
