"""Padding left out: the positions of a padded batch that matter, packed into one row after the other.

Only attention looks across positions; everything else of a block works on (N, C), N of the B * T positions. At
makemore's sizes two fifths of a batch of names are padding.
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from makemore.layers import not_padding


class Packing(NamedTuple):
    """Between (B, T, ...) and the (N, ...) positions of it that are kept."""

    index: Tensor  # type: ignore[assignment]  # instead of tuple's method; (N,) int64, ascending, into B * T
    shape: tuple[int, int]  # B, T

    def pack(self, x: Tensor) -> Tensor:
        """(B, T, ...) -> (N, ...)."""
        return x.flatten(0, 1).index_select(0, self.index)

    def unpack(self, x: Tensor) -> Tensor:
        """(N, ...) -> (B, T, ...), zero where there was padding."""
        B, T = self.shape
        return x.new_zeros(B * T, *x.shape[1:]).index_copy(0, self.index, x).view(B, T, *x.shape[1:])


def leave_padding_out(valid: Tensor) -> Packing | None:
    """The packing of a batch with these valid targets (B, T), or None where it has no padding.

    Padding is what follows a row's last valid target; what is not predicted before it is still read."""
    if valid[:, -1].all():
        return None
    return Packing(torch.nonzero(not_padding(valid).flatten())[:, 0], (valid.shape[0], valid.shape[1]))


def longest_row(starts: Tensor) -> int:
    """The tokens of the longest of the rows that begin at `starts` (N + 1,), on the CPU."""
    return max((end - start for start, end in itertools.pairwise(starts.tolist())), default=0)


def positions_in_rows(starts: Tensor, total: int, device: torch.device) -> Tensor:
    """The position of each of `total` tokens in its own row, (total,) int64 on `device`, of rows laid end to end that
    begin at `starts` (N + 1,); 0 past the last one's end. Waits for nothing."""
    starts = starts.to(device, torch.int64, non_blocking=True)
    index = torch.arange(total, device=device)
    row = torch.searchsorted(starts, index, right=True) - 1
    return torch.where(index < starts[-1], index - starts[row], 0)
