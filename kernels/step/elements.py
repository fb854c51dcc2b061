"""Activations, and QK-norm with RoPE, as one pass of compiled code each, that torch differentiates (elements.c)."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.step.library import Library

ACTIVATIONS = ("swiglu", "relu2")  # by their numbers


def activated(library: Library, name: str, x: Tensor) -> Tensor:
    """What an activation of ACTIVATIONS makes of x (..., C), float32 or bfloat16 on a CPU: swiglu x[..., :C / 2] times
    the SiLU of the rest, (..., C / 2); relu2 max(x, 0)², (..., C)."""
    return _Activated.apply(library, ACTIVATIONS.index(name), x)


def turned(library: Library, x: Tensor, cos: Tensor, sin: Tensor, eps: float | None) -> Tensor:
    """RoPE of x (B, T, heads, hs), float32 or bfloat16 on a CPU, as a part of a dense (B, T, more heads, hs): each pair
    (i, i + hs / 2) is turned by its angle, cos and sin (T, hs / 2) float32. With `eps` each head is divided by its root
    mean square before."""
    return _Turned.apply(library, x, cos, sin, eps)


class _Activated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, library: Library, kind: int, x: Tensor) -> Tensor:
        x = x.contiguous()
        n = x.shape[-1] // (1 if kind else 2)
        y = x.new_empty(*x.shape[:-1], n)
        ctx.library, ctx.facts = library, (kind, _is_half(x), y.numel() // n, n)
        library.activate(*ctx.facts, x.data_ptr(), y.data_ptr())
        ctx.save_for_backward(x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        dy, dx = dy.contiguous(), torch.empty_like(x)
        ctx.library.activate_back(*ctx.facts, x.data_ptr(), dy.data_ptr(), dx.data_ptr())
        return None, None, dx


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, library: Library, x: Tensor, cos: Tensor, sin: Tensor, eps: float | None) -> Tensor:
        B, T, heads, size = x.shape
        if x.stride()[2:] != (size, 1) or x.stride(0) != T * x.stride(1):
            x = x.contiguous()
        cos, sin, y = cos.contiguous(), sin.contiguous(), x.new_empty(x.shape)
        ctx.library = library
        ctx.facts = (_is_half(x), B * T, T, heads, size, x.stride(1), int(eps is not None), eps or 0.0)
        library.turn(*ctx.facts, x.data_ptr(), cos.data_ptr(), sin.data_ptr(), y.data_ptr())
        ctx.save_for_backward(x, cos, sin)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, cos, sin = ctx.saved_tensors
        dy, dx = dy.contiguous(), x.new_empty(x.shape)
        ctx.library.turn_back(*ctx.facts, x.data_ptr(), cos.data_ptr(), sin.data_ptr(), dy.data_ptr(), dx.data_ptr())
        return None, dx, None, None, None


def _is_half(x: Tensor) -> int:
    return int(x.dtype == torch.bfloat16)
