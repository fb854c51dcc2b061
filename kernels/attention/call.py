"""The options of one attention, as its operators hand them to the kernels. Imports no triton."""

from typing import NamedTuple

from torch import Tensor


class Call(NamedTuple):
    """The arguments of an attention besides q, k and v: the same for its forward and its backward."""

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
