"""The loop over time of an RNN or a GRU in compiled code, as a function that torch differentiates (scan.c)."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.step.library import Library


def scan(library: Library, gates: Tensor, first: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden vectors (B, T, H) of a recurrent layer, and the last of them (B, H), float32 on a CPU.

    `gates` (B, T, G H): the products with the inputs and their biases, G = 1 for an RNN with tanh and 3 for a GRU, in
    torch's order; nothing else may read them, since they are overwritten. `first` (B, H): the hidden vectors before.
    `weight` (G H, H), `bias` (G H,): those of the products with the hidden vectors."""
    return _Scan.apply(library, gates, first, weight, bias)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, library: Library, gates: Tensor, first: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        B, T, N = gates.shape
        H = first.shape[1]
        gates, weight, bias = gates.contiguous(), weight.contiguous(), bias.contiguous()
        h = gates.new_empty(B, T + 1, H)
        h[:, 0] = first
        kept = gates.new_empty(B, T, H) if N > H else None
        _check(library.scan(N // H, B, T, H, *map(_address, (weight, bias, gates, h, kept))))
        ctx.library = library
        ctx.save_for_backward(gates, h, kept, weight)
        return h[:, 1:], h[:, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        gates, h, kept, weight = ctx.saved_tensors
        B, T, N = gates.shape
        H = h.shape[2]
        gates, dh = gates.clone(), d_last.clone(memory_format=torch.contiguous_format)
        kept = None if kept is None else kept.clone()
        dy = dy.contiguous()  # a name of its own: a copy that nothing holds is freed before the call
        _check(ctx.library.scan_back(N // H, B, T, H, *map(_address, (weight, gates, h, kept, dy, dh))))
        before, of_gates = h[:, :-1].reshape(B * T, H), gates.view(B * T, N)
        d_weight, d_bias = of_gates.t() @ before, of_gates.sum(0)
        if kept is not None:  # the reset gate stands between the candidate and its product with the hidden vector
            of_candidate = kept.view(B * T, H)
            torch.mm(of_candidate.t(), before, out=d_weight[2 * H :])
            torch.sum(of_candidate, 0, out=d_bias[2 * H :])
        return None, gates, dh, d_weight, d_bias


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("no memory for the weights of a recurrent layer")
