"""Rows read from their ends too (Schuster & Paliwal, "Bidirectional Recurrent Neural Networks", 1997).

A layer that reads backwards is one that reads forwards, over rows whose tokens stand in reverse order: so every way of
computing one computes the other. Padding stays where it is, on the right, where nothing is read after it.
"""

import torch
from torch import Tensor


def lengths_of(there: Tensor | None, like: Tensor) -> Tensor:
    """The tokens of each row (B,), of the mask (B, T) of those that are no padding; None: all of `like` (B, T, C)."""
    if there is None:
        return torch.full((like.shape[0],), like.shape[1], device=like.device)
    return there.sum(1)


def turned(x: Tensor, lengths: Tensor) -> Tensor:
    """Each row of x (B, T, C) with its first tokens, as many as `lengths` (B,) says, in reverse order."""
    place = torch.arange(x.shape[1], device=x.device)
    back = lengths[:, None] - 1 - place  # (B, T)
    return x.gather(1, torch.where(back >= 0, back, place)[..., None].expand_as(x))
