"""What the arguments of attention have to satisfy. Imports no triton."""

import math

import torch
from torch import Tensor

from kernels.dtypes import check_alike


def check_rank(q: Tensor, k: Tensor, v: Tensor, rank: int, meaning: str) -> None:
    """Raise ValueError unless all three have `rank` dimensions, whose names `meaning` lists for the message."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != rank:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; it has to have {rank} dimensions {meaning}")


def check_arguments(q, k, v, causal, window, slopes, scale, softcap, dropout, seed, key_mask) -> None:
    """Raise ValueError for an argument that does not fit the others, with what it is and what it may be."""
    if k.shape != v.shape:
        raise ValueError(f"v has shape {tuple(v.shape)}; it has to be k's, {tuple(k.shape)}")
    for name, x in (("q", q), ("k", k), ("v", v)):
        check_alike(name, x, "q", q)
        if x.shape[-1] != q.shape[-1]:
            raise ValueError(f"{name} has head size {x.shape[-1]} and q {q.shape[-1]}; they have to be equal")
        if x.stride(-1) != 1 and x.shape[-1] > 1 and x.numel() > 0:
            raise ValueError(f"{name}'s last dimension has stride {x.stride(-1)}; it has to be 1: use contiguous()")
    H, heads, D = q.shape[-3], k.shape[-3], q.shape[-1]
    if D < 1:
        raise ValueError("q has head size 0; it may be 1 or more")
    if heads == 0 or H % heads:
        raise ValueError(f"q has {H} heads and k {heads}; k's have to divide q's")
    _check_window(causal, window)
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale}; it has to be positive and finite")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap is {softcap}; it has to be positive and finite, or None for no cap")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; it may be 0 or more, below 1")
    if slopes is not None and tuple(slopes.shape) != (H,):
        raise ValueError(f"slopes has shape {tuple(slopes.shape)}; it has to be one a head, ({H},)")
    if seed is not None and (seed.dtype != torch.int64 or seed.numel() != 1):
        raise ValueError(f"seed is {seed.dtype} of shape {tuple(seed.shape)}; it has to be one int64")
    if key_mask is not None:
        shape = (k.shape[0], k.shape[-2])
        if key_mask.dtype != torch.bool or tuple(key_mask.shape) != shape:
            found = f"{key_mask.dtype} of shape {tuple(key_mask.shape)}"
            raise ValueError(f"key_mask is {found}; it has to be bool, one a key, {shape}")
        if key_mask.device != q.device:
            raise ValueError(f"key_mask is on {key_mask.device} and q on {q.device}; they have to be together")


def _check_window(causal: bool, window: int | tuple[int | None, int | None] | None) -> None:
    if not isinstance(window, tuple):
        if window is not None and window < 1:
            raise ValueError(f"window is {window}; it may be 1 or more, or None for no window")
        return
    if len(window) != 2 or any(side is not None and side < 0 for side in window):
        raise ValueError(f"window is {window}; a pair says how many keys before and after a query, 0 or more or None")
    if causal and window[1]:
        raise ValueError(f"window is {window} and causal is True: no key after a query is seen; give 0 or None")


def check_starts(starts_q: Tensor, starts_k: Tensor) -> None:
    """Raise ValueError unless the starts of packed sequences are int32, and as many for queries as for keys."""
    for name, starts in (("starts_q", starts_q), ("starts_k", starts_k)):
        if starts.dtype != torch.int32 or starts.ndim != 1 or len(starts) < 1:
            raise ValueError(
                f"{name} is {starts.dtype} of shape {tuple(starts.shape)}; it has to be int32 of shape (N + 1,)"
            )
    if len(starts_q) != len(starts_k):
        raise ValueError(f"starts_q and starts_k hold {len(starts_q)} and {len(starts_k)} numbers; they go by pairs")


def longest_sequences(starts_q: Tensor, starts_k: Tensor, total_q: int, total_k: int) -> list[int]:
    """The most queries and the most keys of a sequence, and how many queries and keys all have together: what is left
    of the totals is padding. Raises ValueError unless starts rise from 0 to at most the totals."""
    longest, used = [], []
    for name, starts, total in (("starts_q", starts_q, total_q), ("starts_k", starts_k, total_k)):
        ends = starts.tolist()
        lengths = [b - a for a, b in zip(ends, ends[1:], strict=False)]
        if ends[0] != 0 or ends[-1] > total or min(lengths, default=0) < 0:
            raise ValueError(
                f"{name} runs {_shortened(ends)}; it has to rise from 0, to at most the {total} rows there are"
            )
        longest.append(max(lengths, default=0))
        used.append(ends[-1])
    return longest + used


def _shortened(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) if len(numbers) < 8 else f"{numbers[0]}, {numbers[1]}, ..., {numbers[-1]}"
