"""Parts of a block in training on a CPU as one pass of compiled code each, where torch takes many."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.step.elements import activated, turned
from makemore.compiled import training_functions
from makemore.layers import ACTIVATIONS

NORM_EPS = torch.finfo(torch.float32).eps  # what `F.rms_norm` takes by itself, of bfloat16, too


def fused_turn(attention: Any, qk: Tensor, cos_sin: tuple[Tensor, Tensor] | None) -> Tensor | None:
    """Queries and keys (B, T, heads, hs) normed and rotated as `attention` does it, but for the last bits; None where
    torch has to."""
    if not (attention.training and attention.fused) or cos_sin is None:
        return None
    cos, sin = cos_sin
    library = training_functions(qk, cos, sin, half=True) if cos.dtype == torch.float32 else None
    return None if library is None else turned(library, qk, cos, sin, NORM_EPS if attention.qk_norm else None)


def fused_activation(mlp: Any, x: Tensor) -> Tensor | None:
    """The activation of `mlp` after its first product x, in the same way."""
    if not (mlp.training and mlp.fused):
        return None
    if mlp.gated:
        name = "swiglu" if mlp.activation is F.silu else None
    else:
        name = "relu2" if mlp.activation is ACTIVATIONS["relu2"] else None
    library = training_functions(x, half=True) if name else None
    return None if library is None or name is None else activated(library, name, x)
