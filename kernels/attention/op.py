"""Attention: the functions, their operators for autograd and the compiler, and the module.

softmax(scale q k^T + bias) v, causal or full, with grouped heads (Ainslie et al. 2023), a sliding window (Beltagy et
al. 2020), ALiBi (Press et al. 2022), dropout, and packed sequences of any lengths. Queries and keys end together: query
i of Tq has the position of key i + Tk - Tq. launch.py runs the Triton kernels, reference.py is a plain version.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.attention import reference
from kernels.attention.call import Call
from kernels.attention.checks import check_arguments, check_rank, check_starts, longest_sequences
from kernels.dispatch import use_triton
from kernels.dtypes import autocast_dtype, precise_dtype, refuse_float64
from kernels.transforms import Transformable, is_forward_mode, refuse_forward_mode

MAX_HEAD_SIZE = 128


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    window: int | None = None,
    slopes: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of q (B, H, Tq, D) over k, v (B, Hkv, Tk, D) -> (B, H, Tq, D); with `return_lse` also the log-sum-exp
    of each row's scores, (B, H, Tq) in float32. Hkv divides H; D is at most 128 in Triton; float32, float16 or
    bfloat16.

    `window` w: a query at position p sees keys above p - w (and, when not causal, below p + w). `slopes` (H,): ALiBi,
    -slope |p - j| is added to the score of key j; no gradient. `scale`: 1/sqrt(D) by default. `dropout`: probability
    that a weight is dropped, by a counter-based generator seeded with `seed` (1,) int64, by default from torch's. A
    query that sees no key gives zeros, and -inf as its log-sum-exp.

    The last dimension must have stride 1; other strides are free, so q, k and v may be views of one packed tensor.
    Saved for the backward: q, k, v, the output and two float32 numbers a row. Deterministic, without atomics.

    Raises ValueError for arguments that do not fit, RuntimeError for backend "triton" where it cannot run. Dao 2023."""
    check_rank(q, k, v, 4, "(batch, heads, tokens, head size)")
    check_arguments(q, k, v, window, slopes, scale, dropout, seed)
    if q.shape[0] != k.shape[0]:
        raise ValueError(f"q and k have batches of {q.shape[0]} and {k.shape[0]}; they have to be equal")
    if not use_triton(backend, q.device, wins=False):
        return _torch(q, k, v, causal, window, slopes, scale, dropout, seed, return_lse)
    out, lse = _triton(q, k, v, causal, window, slopes, scale, dropout, seed, None, None)
    return (out, lse) if return_lse else out


def attention_packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts_q: Tensor,
    starts_k: Tensor | None = None,
    *,
    causal: bool = True,
    window: int | None = None,
    slopes: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """`attention` of each of N sequences laid end to end: q (total_q, H, D), k, v (total_k, Hkv, D) -> (total_q, H, D);
    the log-sum-exp is (H, total_q). `starts_q` (N + 1,) int32: 0, then where each sequence ends; `starts_k` is the same
    by default. Keep them on the CPU: reading them from a GPU waits for it. Dropout draws as if the sequences were a
    batch."""
    starts_k = starts_q if starts_k is None else starts_k
    check_rank(q, k, v, 3, "(tokens, heads, head size)")
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # (1, H, total, D)
    check_arguments(q, k, v, window, slopes, scale, dropout, seed)
    check_starts(starts_q, starts_k)
    run = _triton if use_triton(backend, q.device, wins=False) else _torch_packed
    out, lse = run(q, k, v, causal, window, slopes, scale, dropout, seed, starts_q, starts_k)
    out = out[0].transpose(0, 1)
    return (out, lse[0]) if return_lse else out


class Attention(nn.Module):
    """`attention` with its options fixed: (q, k, v) -> (B, H, Tq, D). Dropout in training mode only."""

    slopes: Tensor | None

    def __init__(
        self,
        *,
        causal: bool = True,
        window: int | None = None,
        slopes: Tensor | None = None,
        scale: float | None = None,
        dropout: float = 0.0,
        backend: str = "auto",
    ):
        super().__init__()
        self.causal, self.window, self.scale, self.dropout, self.backend = causal, window, scale, dropout, backend
        self.register_buffer("slopes", slopes, persistent=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(  # type: ignore[return-value]  # a pair with `return_lse` only
            q,
            k,
            v,
            causal=self.causal,
            window=self.window,
            slopes=self.slopes,
            scale=self.scale,
            dropout=self.dropout if self.training else 0.0,
            backend=self.backend,
        )


def _triton(q, k, v, causal, window, slopes, scale, dropout, seed, starts_q, starts_k) -> tuple[Tensor, Tensor]:
    refuse_forward_mode("attention", q, k, v)
    if narrow := autocast_dtype(q):
        q, k, v = (x.to(narrow) for x in (q, k, v))
    refuse_float64("q", q)
    if q.shape[-1] > MAX_HEAD_SIZE:
        raise ValueError(f"q has head size {q.shape[-1]}; the Triton kernels take 1 to {MAX_HEAD_SIZE}")
    slopes = None if slopes is None else slopes.detach()
    longest = None
    if starts_q is not None:
        longest = torch.ops.charlm.longest_sequences(starts_q, starts_k, q.shape[2], k.shape[2])
        starts_q, starts_k = (starts.to(q.device) for starts in (starts_q, starts_k))
    out, lse, _ = _forward(
        q, k, v, slopes, _seed(seed, dropout, q), starts_q, starts_k, longest, causal, window, _scale(scale, q), dropout
    )
    return out, lse


def _torch(q, k, v, causal, window, slopes, scale, dropout, seed, return_lse):
    """Attention by torch's own kernels where they can compute it, else by the plain reference."""
    Tq, Tk = q.shape[2], k.shape[2]
    slopes = None if slopes is None else slopes.detach()
    if return_lse or (seed is not None and dropout > 0) or Tq > Tk or is_forward_mode(q, k, v):
        options = {"causal": causal, "window": window, "slopes": slopes, "scale": scale}
        options |= {"dropout": dropout, "seed": _seed(seed, dropout, q)}
        out, lse = _at_least_float32(reference.attention, q, k, v, **options)
        return (out, lse) if return_lse else out
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    causal_only = causal and window is None and slopes is None and (Tq == Tk or Tq == 1)
    unmasked = not causal and window is None and slopes is None
    mask = None if causal_only or unmasked else reference.sdpa_mask(Tq, Tk, causal, window, slopes, q.device, q.dtype)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal_only and Tq > 1, scale=scale)


def _torch_packed(q, k, v, causal, window, slopes, scale, dropout, seed, starts_q, starts_k) -> tuple[Tensor, Tensor]:
    longest_sequences(starts_q, starts_k, q.shape[2], k.shape[2])
    slopes = None if slopes is None else slopes.detach()
    options = {"causal": causal, "window": window, "slopes": slopes, "scale": scale}
    options |= {"dropout": dropout, "seed": _seed(seed, dropout, q)}
    return _at_least_float32(reference.attention_packed, q, k, v, starts_q, starts_k, **options)


def _at_least_float32(function, q, k, v, *rest, **options) -> tuple[Tensor, Tensor]:
    """The plain `function` in float32, or in float64 if q is, as the kernels compute; the output in the dtype of q."""
    precise = precise_dtype(q)
    out, lse = function(q.to(precise), k.to(precise), v.to(precise), *rest, **options)
    return out.to(q.dtype), lse


def _seed(seed: Tensor | None, dropout: float, q: Tensor) -> Tensor | None:
    """The seed of the dropout, (1,) on the device of q: the given one, or one drawn from torch's generator."""
    if dropout == 0:
        return None
    return torch.randint(2**62, (1,), device=q.device) if seed is None else seed.to(q.device)


@torch.library.custom_op("charlm::longest_sequences", mutates_args=())
def _longest_op(starts_q: Tensor, starts_k: Tensor, total_q: int, total_k: int) -> Tensor:
    """The most queries and keys of a packed sequence, (2,) on the CPU: an operator of its own, which the compiler does
    not look into, so that the starts are checked, and a GPU that holds them waited for, once."""
    return torch.tensor(longest_sequences(starts_q, starts_k, total_q, total_k))


@_longest_op.register_fake
def _(starts_q, starts_k, total_q, total_k):
    return torch.empty(2, dtype=torch.int64)


@torch.library.custom_op("charlm::attention", mutates_args=())
def _forward_op(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None, seed: Tensor | None, starts_q: Tensor | None,
    starts_k: Tensor | None, longest: Tensor | None, causal: bool, window: int | None, scale: float, dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Of packed sequences the starts are on the device of q, and `longest` is what `_longest_op` gave."""
    from kernels.attention import launch

    out, lse, softmax_stats = _empty_outputs(q)
    call = _make_call(q, k, slopes, seed, starts_q, starts_k, longest, causal, window, scale, dropout)
    launch.forward(q, k, v, call, out, lse, softmax_stats)
    return out, lse, softmax_stats


@_forward_op.register_fake
def _(q, k, v, slopes, seed, starts_q, starts_k, longest, causal, window, scale, dropout):
    return _empty_outputs(q)


@torch.library.custom_op("charlm::attention_backward", mutates_args=())
def _backward_op(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, softmax_stats: Tensor,
    slopes: Tensor | None, seed: Tensor | None, starts_q: Tensor | None, starts_k: Tensor | None,
    longest: Tensor | None, causal: bool, window: int | None, scale: float, dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    from kernels.attention import launch

    gradients = _empty_bthd(q), _empty_bthd(k), _empty_bthd(v)
    call = _make_call(q, k, slopes, seed, starts_q, starts_k, longest, causal, window, scale, dropout)
    dout = dout if dout.stride(-1) == 1 else dout.contiguous()
    launch.backward(dout, None if dlse is None else dlse.contiguous(), q, k, v, out, softmax_stats, call, gradients)
    return gradients


@_backward_op.register_fake
def _(
    dout, dlse, q, k, v, out, softmax_stats, slopes, seed, starts_q, starts_k, longest, causal, window, scale, dropout
):
    return tuple(_empty_bthd(x) for x in (q, k, v))


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, slopes, seed, starts_q, starts_k, longest, *ctx.options = inputs
    out, _, softmax_stats = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(softmax_stats)
    ctx.save_for_backward(q, k, v, out, softmax_stats, slopes, seed, starts_q, starts_k, longest)


def _backward(ctx, dout, dlse, _):
    if dout is None and dlse is None:
        return (None,) * 12
    dout = torch.zeros_like(ctx.saved_tensors[3]) if dout is None else dout
    dq, dk, dv = _gradients(dout, dlse, *ctx.saved_tensors, *ctx.options)
    return dq, dk, dv, *([None] * 9)


_forward_op.register_autograd(_backward, setup_context=_setup_context)
_forward = Transformable(torch.ops.charlm.attention, _setup_context, _backward)
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


def _make_call(q, k, slopes, seed, starts_q, starts_k, longest, causal, window, scale, dropout) -> Call:
    longest_q, longest_k = (q.shape[2], k.shape[2]) if longest is None else longest.tolist()
    if starts_q is not None:
        starts_q, starts_k = starts_q.contiguous(), starts_k.contiguous()
    if window is not None:
        window = min(window, q.shape[2] + k.shape[2])  # the same keys, and no int32 overflows
    if slopes is not None:
        slopes = slopes.to(q.device, torch.float32).contiguous()
    return Call(causal, window, scale, dropout, slopes, seed, starts_q, starts_k, longest_q, longest_k)


def _scale(scale: float | None, q: Tensor) -> float:
    return 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
