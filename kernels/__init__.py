"""Fused operations in Triton, a folder each, with a plain-torch version beside. Knows nothing of the suite.

Every function takes `backend="auto" | "triton" | "torch"`. Importing this package asks no device anything and needs no
triton. `python -m kernels` says what this machine can run.

`kernels.attention` and `kernels.cross_entropy` are the functions. The folders of these names are reached by
`from kernels.attention.op import ...`; the form `import kernels.attention.op as name` finds the function and fails.
"""

from kernels.attention.op import MAX_HEAD_SIZE, Attention, attention, attention_packed
from kernels.cross_entropy.linear import LinearCrossEntropy, linear_cross_entropy
from kernels.cross_entropy.op import CrossEntropy, cross_entropy
from kernels.dispatch import BACKENDS, why_not
from kernels.norm.op import LayerNorm, RMSNorm, layer_norm, rms_norm

# `transformers` looks for a package of this name, which is another one, from a version on that is above this.
__version__ = "0.0.0"

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
