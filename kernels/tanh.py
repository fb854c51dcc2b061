"""tanh in Triton, for soft caps: the language has none that the interpreter runs and that is exact near 0."""

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """tanh of x to a few roundings, in float32 and in float64: near 0 by Lambert's continued fraction, else by exp."""
    square = tl.minimum(x * x, 0.25)
    above = 135135.0 + square * (17325.0 + square * (378.0 + square))
    below = 135135.0 + square * (62370.0 + square * (3150.0 + square * 28.0))
    size = tl.abs(x)
    far = 1.0 - 2.0 / (tl.exp(2.0 * size) + 1.0)
    return tl.where(size < 0.5, x * (above / below), tl.where(x < 0, -far, far))
