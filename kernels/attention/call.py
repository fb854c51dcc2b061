"""The options of one attention, as its operators hand them to the kernels. Imports no triton."""

from typing import NamedTuple

from torch import Tensor


class Call(NamedTuple):
    """The arguments of an attention besides q, k and v: the same for its forward and its backward."""

    left: int | None  # how many keys before its own position a query sees; None: all
    right: int | None  # and after it; 0: causal
    scale: float
    softcap: float  # 0: none
    dropout: float
    slopes: Tensor | None  # (H,) float32
    seed: Tensor | None  # (1,) int64
    key_mask: Tensor | None  # (B, Tk) bool: True where a key is seen
    starts_q: Tensor | None  # (N + 1,) int32: where packed sequences begin, and where the last ends
    starts_k: Tensor | None
    longest_q: int
    longest_k: int
