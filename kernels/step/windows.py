"""Sums of rows of a table over windows of tokens, compiled, as a function that torch differentiates (windows.c)."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.step.library import Library


def window_sums(library: Library, tokens: Tensor, table: Tensor, bias: Tensor | None) -> Tensor:
    """For each window of `order` successive tokens the sum of a row for each: `tokens` (B, order - 1 + T) int64 below
    V, `table` (V, order, H) float32 with the row of a token at each place of a window, `bias` (H,) -> (B, T, H). On a
    CPU."""
    return _WindowSums.apply(library, tokens, table, bias)


class _WindowSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, library: Library, tokens: Tensor, table: Tensor, bias: Tensor | None) -> Tensor:
        V, order, H = table.shape
        if tokens.numel() and not (0 <= int(tokens.min()) and int(tokens.max()) < V):
            raise IndexError(f"a token is not in a vocabulary of {V}")
        B, T = tokens.shape[0], tokens.shape[1] - order + 1
        tokens, table = tokens.contiguous(), table.contiguous()
        out = table.new_empty(B, T, H)
        bias = None if bias is None else bias.contiguous()
        at_bias = None if bias is None else bias.data_ptr()
        library.windows(order, B, T, H, tokens.data_ptr(), table.data_ptr(), at_bias, out.data_ptr())
        ctx.library, ctx.shape, ctx.has_bias = library, table.shape, bias is not None
        ctx.save_for_backward(tokens)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (tokens,) = ctx.saved_tensors
        dy, d_table = dy.contiguous(), dy.new_zeros(ctx.shape)
        B, T, H = dy.shape
        ctx.library.windows_back(ctx.shape[1], B, T, H, tokens.data_ptr(), dy.data_ptr(), d_table.data_ptr())
        return None, None, d_table, dy.sum((0, 1)) if ctx.has_bias else None
