"""The tiles of the attention kernels: how many queries and keys a program takes at once, by GPU and head size.

Head sizes up to 32 have three ways on Hopper: Triton 3.7 is reported to miscompile kernels with so narrow products for
four warps (triton#11366, triton#10486), and which ways are right is seen on a GPU only. `CHARLM_SMALL_HEADS` names the
one that is taken: "plain"; "padded", to head size 64; or "two-warps", too few for Hopper's own products.
"""

import functools
import os
from typing import NamedTuple

import torch
import triton

SMALL_HEADS = ("plain", "padded", "two-warps")
_SMALL, _WIDER = 32, 64


class Tiles(NamedTuple):
    """Queries and keys a tile, warps a program, stages of the software pipeline."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


# (dtype is float32, kernel) -> rows of: targets, padded head sizes, tiles without options, tiles with some (window,
# ALiBi, dropout, packed). The first row that fits is taken. Those of head sizes 64 and 128 on sm90 without options were
# the fastest of seven to ten on an H200; the others were chosen by what compiles without spilling (python -m
# kernels.aot). Of dkv no tile has fewer than 32 queries: with 16, dropout and a key mask together gave wrong gradients
# when compiled by Triton 3.6.
_NV, _HIP = ("sm80", "sm90"), ("hip",)
_TILES: dict[tuple[bool, str], list[tuple[tuple[str, ...], tuple[int, ...], Tiles, Tiles]]] = {
    (False, "forward"): [
        (_NV, (16, 32, 64), Tiles(128, 64, 4, 3), Tiles(128, 64, 8, 2)),
        (("sm80",), (128,), Tiles(128, 64, 8, 3), Tiles(64, 64, 8, 2)),
        (("sm90",), (128,), Tiles(64, 64, 4, 3), Tiles(128, 64, 8, 2)),
        (_HIP, (16, 32, 64), Tiles(128, 64, 4, 1), Tiles(128, 64, 4, 1)),
        (_HIP, (128,), Tiles(128, 64, 8, 1), Tiles(64, 64, 4, 1)),
    ],
    (False, "decode"): [
        (_NV, (16, 32, 64, 128), Tiles(16, 64, 4, 2), Tiles(16, 64, 4, 2)),
        (_HIP, (16, 32, 64, 128), Tiles(16, 64, 4, 1), Tiles(16, 64, 4, 1)),
    ],
    (True, "decode"): [
        (_NV, (16, 32, 64, 128), Tiles(16, 32, 4, 2), Tiles(16, 32, 4, 2)),
        (_HIP, (16, 32, 64, 128), Tiles(16, 32, 4, 1), Tiles(16, 32, 4, 1)),
    ],
    (False, "dq"): [
        (("sm80",), (64, 128), Tiles(128, 64, 8, 2), Tiles(64, 64, 8, 2)),
        (("sm90",), (64,), Tiles(64, 64, 4, 3), Tiles(128, 64, 8, 2)),
        (("sm90",), (128,), Tiles(128, 64, 8, 3), Tiles(128, 64, 8, 2)),
        (_NV, (16, 32), Tiles(128, 64, 8, 2), Tiles(128, 64, 8, 2)),
        (_HIP, (16, 32, 64, 128), Tiles(64, 64, 4, 1), Tiles(64, 64, 4, 1)),
    ],
    (False, "dkv"): [
        (("sm80",), (128,), Tiles(64, 64, 8, 2), Tiles(32, 64, 8, 2)),
        (("sm90",), (128,), Tiles(32, 64, 4, 2), Tiles(32, 128, 8, 2)),
        (("sm90",), (16, 32), Tiles(64, 128, 8, 2), Tiles(64, 128, 8, 2)),
        (("sm90",), (64,), Tiles(64, 64, 4, 3), Tiles(32, 128, 8, 2)),
        (("sm80",), (16, 32, 64), Tiles(64, 128, 8, 2), Tiles(32, 128, 8, 2)),
        (_HIP, (16, 32, 64), Tiles(32, 128, 8, 1), Tiles(32, 64, 4, 1)),
        (_HIP, (128,), Tiles(32, 64, 4, 1), Tiles(32, 64, 4, 1)),
    ],
    (True, "forward"): [
        (_NV, (16, 32), Tiles(64, 32, 4, 2), Tiles(64, 32, 4, 2)),
        (("sm80",), (64,), Tiles(64, 32, 4, 2), Tiles(32, 64, 8, 1)),
        (("sm90",), (64,), Tiles(64, 32, 4, 2), Tiles(64, 32, 8, 2)),
        (_NV, (128,), Tiles(32, 64, 8, 1), Tiles(32, 32, 8, 1)),
        (_HIP, (16, 32, 64, 128), Tiles(64, 32, 4, 1), Tiles(64, 32, 4, 1)),
    ],
    (True, "dq"): [
        (("sm80",), (64,), Tiles(32, 64, 8, 1), Tiles(32, 64, 8, 1)),
        (_NV, (16, 32, 64), Tiles(64, 32, 4, 2), Tiles(64, 32, 4, 2)),
        (("sm90",), (128,), Tiles(32, 32, 8, 1), Tiles(16, 32, 4, 1)),
        (("sm80",), (128,), Tiles(32, 32, 8, 1), Tiles(16, 32, 8, 1)),
        (_HIP, (16, 32, 64), Tiles(64, 32, 4, 1), Tiles(64, 32, 4, 1)),
        (_HIP, (128,), Tiles(64, 32, 4, 1), Tiles(32, 32, 4, 1)),
    ],
    (True, "dkv"): [
        (("sm80",), (16, 32), Tiles(32, 64, 4, 2), Tiles(32, 16, 4, 2)),
        (("sm90",), (16, 32), Tiles(32, 64, 4, 2), Tiles(32, 64, 4, 2)),
        (_NV, (64,), Tiles(64, 32, 8, 1), Tiles(32, 32, 8, 1)),
        (_NV, (128,), Tiles(32, 16, 8, 1), Tiles(32, 16, 8, 1)),
        (_HIP, (16, 32, 64), Tiles(32, 64, 4, 1), Tiles(32, 64, 4, 1)),
        (_HIP, (128,), Tiles(32, 16, 4, 1), Tiles(32, 16, 4, 1)),
    ],
}


@functools.cache
def small_heads() -> str:
    """The way that `CHARLM_SMALL_HEADS` says, one of SMALL_HEADS. Raises ValueError for another. Asked once."""
    way = os.environ.get("CHARLM_SMALL_HEADS", SMALL_HEADS[0])
    if way not in SMALL_HEADS:
        raise ValueError(f"CHARLM_SMALL_HEADS is {way!r}; it may be {', '.join(SMALL_HEADS)}")
    return way


def padded(head_size: int, target: str, way: str) -> int:
    """The head size that a tile has room for: a power of two."""
    if way == "padded" and head_size <= _SMALL and target in ("sm90", "interpreter"):
        return _WIDER
    return max(16, triton.next_power_of_2(head_size))


def tiles(kernel: str, block_d: int, dtype: torch.dtype, target: str, plain: bool, way: str) -> Tiles:
    """The tiles of `kernel` ("forward", "decode", "dq" or "dkv") for a padded head size, on "sm80", "sm90", "hip" or
    "interpreter", without (`plain`) or with options besides the causal mask; of small heads, `way` of SMALL_HEADS.

    A fixed table, because a search by time may choose other tiles in the next run, and other tiles give other bits."""
    if target == "interpreter":  # whose cost is the number of programs
        return Tiles(16 if kernel == "decode" else 64, 64, 4, 1)
    is_float32 = dtype == torch.float32
    if way == "two-warps" and target == "sm90" and block_d <= _SMALL:
        return Tiles(32, 16 if is_float32 and kernel == "dkv" else 32, 2, 2)
    for targets, sizes, without, with_options in _TILES[is_float32, kernel]:
        if target in targets and block_d in sizes:
            return without if plain else with_options
    raise ValueError(f"no tiles for {kernel} with head size {block_d} on {target}")
