"""Where `auto` takes Triton: where it was measured to be faster than torch. Imports no triton.

Measured on an H200 in bfloat16, forward and backward (docs/log.md has the figures), and taken on Hopper alone.
Elsewhere torch is faster, or a call is so short that the time to launch it counts, which is shorter for torch too.
"""

import torch
from torch import Tensor

from kernels.dispatch import target_of, why_not
from kernels.dtypes import autocast_dtype
from kernels.transforms import is_transformed

# Queries from which attention is faster with a soft cap, with ALiBi, with a window.
CAPPED, SLOPED, WINDOWED = 256, 1024, 2048
WINS = {"attention": "soft caps, ALiBi and windows of long texts", "cross_entropy": "many logits"}  # in words
LOGITS = 1 << 26  # from which cross-entropy is: rows times vocabulary


def attention_wins(
    q: Tensor, is_capped: bool = False, is_sloped: bool = False, is_windowed: bool = False, dropout: float = 0.0
) -> bool:
    """Whether to take Triton for queries q (B, H, T, D) with these options. With dropout torch's kernels are faster,
    but not than the plain version, which is all that torch has for a soft cap."""
    T = q.shape[-2]
    wins = is_sloped and T >= SLOPED or is_windowed and T >= WINDOWED
    return _measured(q) and (is_capped and T >= CAPPED or wins and dropout == 0)


def cross_entropy_wins(like: Tensor, rows: int, vocabulary: int) -> bool:
    """Whether to take Triton for so many rows of logits in the dtype of `like`, on its device."""
    return rows * vocabulary >= LOGITS and _measured(like)


def on_hopper(device: torch.device) -> bool:
    """Whether tensors of `device` are on such a GPU as all this was measured on."""
    return device.type == "cuda" and why_not(device) is None and target_of(device) == "sm90"


def _measured(x: Tensor) -> bool:
    half = (autocast_dtype(x) or x.dtype) in (torch.bfloat16, torch.float16)
    return half and on_hopper(x.device) and not is_transformed()
