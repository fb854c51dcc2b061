"""What the operator of attention and its kernels tell each other. Imports no triton."""

from typing import NamedTuple

from torch import Tensor


class Call(NamedTuple):
    """What the forward and the backward of one attention share, besides q, k and v."""

    causal: bool
    window: int | None
    scale: float
    dropout: float
    slopes: Tensor | None  # (H,) float32
    seed: Tensor | None  # (1,) int64
    starts_q: Tensor | None  # (N + 1,) int32: where packed sequences begin, and where the last ends
    starts_k: Tensor | None
    longest_q: int
    longest_k: int
