"""The operators of attention that autograd and the compiler see: charlm::attention, its backward, and the check of
packed sequences. op.py stands on them."""

import torch
from torch import Tensor

from kernels.attention.call import Call
from kernels.attention.checks import longest_sequences
from kernels.dtypes import precise_dtype
from kernels.transforms import Transformable


@torch.library.custom_op("charlm::longest_sequences", mutates_args=())
def longest_op(starts_q: Tensor, starts_k: Tensor, total_q: int, total_k: int) -> Tensor:
    """The most queries and keys of a packed sequence, and how many of each are no padding, (4,) on the CPU: an operator
    of its own, which the compiler does not look into, so that the starts are checked, and a GPU that holds them waited
    for, once."""
    return torch.tensor(longest_sequences(starts_q, starts_k, total_q, total_k))


@longest_op.register_fake
def _(starts_q, starts_k, total_q, total_k):
    return torch.empty(4, dtype=torch.int64)


@torch.library.custom_op("charlm::attention", mutates_args=())
def _forward_op(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None, seed: Tensor | None, key_mask: Tensor | None,
    starts_q: Tensor | None, starts_k: Tensor | None, longest: Tensor | None,
    left: int | None, right: int | None, scale: float, softcap: float, dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Of packed sequences the starts are on the device of q, and `longest` is what `longest_op` gave."""
    from kernels.attention import launch

    out, lse, softmax_stats = _empty_outputs(q)
    call = _make_call(q, k, slopes, seed, key_mask, starts_q, starts_k, longest, left, right, scale, softcap, dropout)
    launch.forward(q, k, v, call, out, lse, softmax_stats)
    if longest is not None:
        _pad(longest[2], out, 0.0, lse, -torch.inf)
    return out, lse, softmax_stats


@_forward_op.register_fake
def _(q, k, v, slopes, seed, key_mask, starts_q, starts_k, longest, left, right, scale, softcap, dropout):
    return _empty_outputs(q)


@torch.library.custom_op("charlm::attention_backward", mutates_args=())
def _backward_op(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, softmax_stats: Tensor,
    slopes: Tensor | None, seed: Tensor | None, key_mask: Tensor | None,
    starts_q: Tensor | None, starts_k: Tensor | None, longest: Tensor | None,
    left: int | None, right: int | None, scale: float, softcap: float, dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    from kernels.attention import launch

    dq, dk, dv = _empty_bthd(q), _empty_bthd(k), _empty_bthd(v)
    call = _make_call(q, k, slopes, seed, key_mask, starts_q, starts_k, longest, left, right, scale, softcap, dropout)
    dout = dout if dout.stride(-1) == 1 else dout.contiguous()
    dlse = None if dlse is None else dlse.contiguous()
    launch.backward(dout, dlse, q, k, v, out, softmax_stats, call, (dq, dk, dv))
    if longest is not None:
        _pad(longest[2], dq, 0.0)
        _pad(longest[3], dk, 0.0, dv, 0.0)
    return dq, dk, dv


@_backward_op.register_fake
def _(
    dout, dlse, q, k, v, out, softmax_stats, slopes, seed, key_mask, starts_q, starts_k, longest,
    left, right, scale, softcap, dropout,
):  # fmt: skip
    return tuple(_empty_bthd(x) for x in (q, k, v))


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.left, ctx.right, ctx.scale, ctx.softcap, ctx.dropout = inputs
    out, _, softmax_stats = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(softmax_stats)
    ctx.save_for_backward(*tensors[:3], out, softmax_stats, *tensors[3:])


def _backward(ctx, dout, dlse, _):
    if dout is None and dlse is None:
        return (None,) * 14
    dout = torch.zeros_like(ctx.saved_tensors[3]) if dout is None else dout
    options = ctx.left, ctx.right, ctx.scale, ctx.softcap, ctx.dropout
    dq, dk, dv = _gradients(dout, dlse, *ctx.saved_tensors, *options)
    return dq, dk, dv, *([None] * 11)


_forward_op.register_autograd(_backward, setup_context=_setup_context)
forward = Transformable(torch.ops.charlm.attention, _setup_context, _backward)
_gradients = Transformable(torch.ops.charlm.attention_backward)


def _empty_outputs(q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Empty tensors for the output, the log-sum-exps and the softmax_stats: row_max and inv_sum of each row."""
    B, H, T, _ = q.shape
    precise = precise_dtype(q)
    return _empty_bthd(q), q.new_empty(B, H, T, dtype=precise), q.new_empty(2, B, H, T, dtype=precise)


def _empty_bthd(x: Tensor) -> Tensor:
    """An empty tensor like x (B, H, T, D), laid out (B, T, H, D), so that joining the heads copies nothing."""
    B, H, T, D = x.shape
    return x.new_empty(B, T, H, D).transpose(1, 2)


def _pad(used: Tensor, *tensors_and_values) -> None:
    """Fill each tensor (1, H, total, ...) with its value past the `used` rows, where the kernels write nothing."""
    for tensor, value in zip(tensors_and_values[::2], tensors_and_values[1::2], strict=True):
        tensor[:, :, int(used) :] = value


def _make_call(q, k, slopes, seed, key_mask, starts_q, starts_k, longest, left, right, scale, softcap, dropout) -> Call:
    longest_q, longest_k = (q.shape[2], k.shape[2]) if longest is None else longest[:2].tolist()
    if starts_q is not None:
        starts_q, starts_k = starts_q.contiguous(), starts_k.contiguous()
    far = q.shape[2] + k.shape[2]  # beyond there are no keys, and an int32 could overflow
    left, right = (None if side is None else min(side, far) for side in (left, right))
    if slopes is not None:
        slopes = slopes.to(q.device, torch.float32).contiguous()
    key_mask = None if key_mask is None else key_mask.contiguous()
    return Call(left, right, scale, softcap, dropout, slopes, seed, key_mask, starts_q, starts_k, longest_q, longest_k)
