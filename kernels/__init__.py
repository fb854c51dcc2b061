"""Fused operations in Triton, each beside a plain-torch reference and a dispatcher. Knows nothing of the suite.

Every function takes `backend="auto" | "triton" | "torch"`. Importing this package asks no device anything and needs no
triton. `python -m kernels` says what this machine can run.
"""

from kernels.attention_op import MAX_HEAD_SIZE, Attention, attention, attention_packed
from kernels.cross_entropy_op import CrossEntropy, cross_entropy
from kernels.dispatch import BACKENDS, why_not
from kernels.linear_cross_entropy_op import LinearCrossEntropy, linear_cross_entropy
from kernels.norm_op import LayerNorm, RMSNorm, layer_norm, rms_norm

__all__ = [
    "BACKENDS",
    "MAX_HEAD_SIZE",
    "Attention",
    "CrossEntropy",
    "LayerNorm",
    "LinearCrossEntropy",
    "RMSNorm",
    "attention",
    "attention_packed",
    "cross_entropy",
    "layer_norm",
    "linear_cross_entropy",
    "rms_norm",
    "why_not",
]
