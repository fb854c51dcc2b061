"""Muon's iteration, divided among the processes: each has its share of the matrices of one shape."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from engine.distributed.ranks import Ranks, all_gather

WORTH_SENDING = 128  # the shorter side of matrices from which iterating a share is faster than iterating all

Iteration = Callable[[Tensor], Tensor]


def iterate(matrices: Tensor, iteration: Iteration, ranks: Ranks) -> Tensor:
    """`iteration` of `matrices` (K, R, C), which every process has: each computes its share of the K, and all get all.
    The bits are those of one process."""
    if ranks.world == 1 or len(matrices) == 1 or min(matrices.shape[1:]) < WORTH_SENDING:
        return iteration(matrices)
    share = -(-len(matrices) // ranks.world)
    mine = matrices[ranks.rank * share : (ranks.rank + 1) * share]
    padded = matrices.new_zeros(share, *matrices.shape[1:])
    if len(mine):
        padded[: len(mine)] = iteration(mine)
    everyone = matrices.new_empty(share * ranks.world, *matrices.shape[1:])
    all_gather(everyone, padded)
    return everyone[: len(matrices)]


def iterate_sharded(rows: list[Tensor], shape: tuple[int, int], iteration: Iteration, ranks: Ranks) -> list[Tensor]:
    """`iteration` of K matrices of `shape` (R, C), of each of which this process holds some `rows` (r, C): the first
    ranks `ceil(R / N)` of them, as `torch.chunk` divides. The rows go to the owner of their matrix and come back."""
    world, most = ranks.world, -(-shape[0] // ranks.world)
    owned = -(-len(rows) // world)
    sent = rows[0].new_zeros(world, owned, most, shape[1])
    for k, part in enumerate(rows):
        sent[k // owned, k % owned, : len(part)] = part
    matrices = _exchange(sent).transpose(0, 1).reshape(owned, world * most, shape[1])  # (owned, R + padding, C)
    n_mine = min(owned, max(0, len(rows) - ranks.rank * owned))
    result = torch.zeros_like(matrices)
    if n_mine:
        result[:n_mine, : shape[0]] = iteration(matrices[:n_mine, : shape[0]])
    back = _exchange(result.view(owned, world, most, shape[1]).transpose(0, 1))  # (owner, owned, rows of this one, C)
    return [back[k // owned, k % owned, : len(part)] for k, part in enumerate(rows)]


def _exchange(parts: Tensor) -> Tensor:
    """From each process the part (N, ...) that it has for this one, (N, ...)."""
    parts = parts.contiguous()  # received must not share memory with what is sent
    received = torch.empty_like(parts)
    dist.all_to_all_single(received.view(-1), parts.view(-1))
    return received
