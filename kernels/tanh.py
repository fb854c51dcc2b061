"""The hyperbolic tangent in Triton: its interpreter lacks the one of CUDA's library."""

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """tanh(x), float32 or float64, to about a rounding of it everywhere: near 0 by the rational function of Moshier's
    Cephes library (tanh.c), beyond by 1 - 2 / (exp(2 |x|) + 1), which cancels near 0."""
    square = x * x
    above = (-9.64399179425052238628e-1 * square - 9.92877231001918586564e1) * square - 1.61468768441708447952e3
    below = (
        (square + 1.12811678491632931402e2) * square + 2.23548839060100448583e3
    ) * square + 4.84406305325125486048e3
    size = tl.abs(x)
    far = 1.0 - 2.0 / (tl.exp(2.0 * size) + 1.0)
    return tl.where(size < 0.625, x + x * (square * (above / below)), tl.where(x < 0, -far, far))
