"""Attention: the functions, their operators for autograd and the compiler, and the module.

softmax(scale q k^T + bias) v, causal or full, with grouped heads (Ainslie et al. 2023), a sliding window (Beltagy et
al. 2020), ALiBi (Press et al. 2022), dropout, and packed sequences of any lengths. Queries and keys end together: query
i of Tq stands where key i + Tk - Tq stands. launch.py runs the Triton kernels, reference.py
is a plain version.
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

    Any strides, so q, k and v may be views of one packed tensor, but the last dimension must lie without gaps. Saved
    for the backward: q, k, v, the output and two float32 numbers a row. Deterministic, without atomics.

    Raises ValueError for arguments that do not fit, RuntimeError for backend "triton" where it cannot run. Dao 2023."""
    check_rank(q, k, v, 4, "(batch, heads, tokens, head size)")
    check_arguments(q, k, v, window, slopes, scale, dropout, seed)
    if q.shape[0] != k.shape[0]:
        raise ValueError(f"q and k have batches of {q.shape[0]} and {k.shape[0]}; they have to be equal")
    if not use_triton(backend, q.device, wins=False):
        return _torch(q, k, v, causal, window, slopes, scale, dropout, seed, return_lse)
    return _triton(q, k, v, causal, window, slopes, scale, dropout, seed, None, None, return_lse)


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
    the log-sum-exp is (H, total_q). `starts` (N + 1,) int32: 0, the ends of the sequences, the last being the total;
    `starts_k` is that of the queries by default. On the CPU they cost no synchronisation. Dropout counts within each
    sequence, as if it were a batch of its own."""
    starts_k = starts_q if starts_k is None else starts_k
    check_rank(q, k, v, 3, "(tokens, heads, head size)")
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # (1, H, total, D)
    check_arguments(q, k, v, window, slopes, scale, dropout, seed)
    check_starts(starts_q, starts_k)
    if use_triton(backend, q.device, wins=False):
        found = _triton(q, k, v, causal, window, slopes, scale, dropout, seed, starts_q, starts_k, return_lse)
    else:
        found = _torch_packed(q, k, v, causal, window, slopes, scale, dropout, seed, starts_q, starts_k, return_lse)
    if return_lse:
        return found[0][0].transpose(0, 1), found[1][0]
    return found[0].transpose(0, 1)


class Attention(nn.Module):
    """`attention` with its options fixed: (q, k, v) -> (B, H, Tq, D). Dropout in training mode only."""

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
        return attention(
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


def _triton(q, k, v, causal, window, slopes, scale, dropout, seed, starts_q, starts_k, return_lse):
    if narrow := autocast_dtype(q):
        q, k, v = (x.to(narrow) for x in (q, k, v))
    refuse_float64("q", q)
    if q.shape[-1] > MAX_HEAD_SIZE:
        raise ValueError(f"q has head size {q.shape[-1]}; the Triton kernels take 1 to {MAX_HEAD_SIZE}")
    slopes = None if slopes is None else slopes.detach()
    out, lse, _ = torch.ops.charlm.attention(
        q, k, v, slopes, _seed(seed, dropout, q), starts_q, starts_k, causal, window, _scale(scale, q), dropout
    )
    return (out, lse) if return_lse else out


def _torch(q, k, v, causal, window, slopes, scale, dropout, seed, return_lse):
    """By torch's own kernels where they have the operation, else by the plain reference."""
    Tq, Tk = q.shape[2], k.shape[2]
    slopes = None if slopes is None else slopes.detach()
    if return_lse or (seed is not None and dropout > 0) or Tq > Tk:
        options = {"causal": causal, "window": window, "slopes": slopes, "scale": scale}
        found = _precisely(reference.attention, q, k, v, dropout=dropout, seed=_seed(seed, dropout, q), **options)
        return found if return_lse else found[0]
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    plain = causal and window is None and slopes is None and (Tq == Tk or Tq == 1)
    whole = not causal and window is None and slopes is None
    bias = None if plain or whole else reference.bias(Tq, Tk, causal, window, slopes, q.device, q.dtype)
    return F.scaled_dot_product_attention(q, k, v, bias, dropout, is_causal=plain and Tq > 1, scale=scale)


def _torch_packed(q, k, v, causal, window, slopes, scale, dropout, seed, starts_q, starts_k, return_lse):
    longest_sequences(starts_q, starts_k, q.shape[2], k.shape[2])
    slopes = None if slopes is None else slopes.detach()
    options = {"causal": causal, "window": window, "slopes": slopes, "scale": scale}
    options |= {"dropout": dropout, "seed": _seed(seed, dropout, q)}
    found = _precisely(reference.attention_packed, q, k, v, starts_q, starts_k, **options)
    return found if return_lse else found[0]


def _precisely(function, q, k, v, *rest, **options) -> tuple[Tensor, Tensor]:
    """The plain reference in float32 at least, as the kernels compute; the output in the dtype of q."""
    precise = precise_dtype(q)
    out, lse = function(q.to(precise), k.to(precise), v.to(precise), *rest, **options)
    return out.to(q.dtype), lse


def _seed(seed: Tensor | None, dropout: float, q: Tensor) -> Tensor | None:
    """The seed of the dropout, on the device of q: the given one, or one from torch's generator."""
    if dropout == 0:
        return None
    return torch.randint(2**62, (1,), device=q.device) if seed is None else seed.to(q.device)


@torch.library.custom_op("charlm::attention", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None, seed: Tensor | None, starts_q: Tensor | None,
    starts_k: Tensor | None, causal: bool, window: int | None, scale: float, dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    from kernels.attention import launch

    out, lse, statistics = _empty_outputs(q)
    call = _call(q, k, slopes, seed, starts_q, starts_k, causal, window, scale, dropout)
    launch.forward(q, k, v, call, out, lse, statistics)
    return out, lse, statistics


@_forward.register_fake
def _(q, k, v, slopes, seed, starts_q, starts_k, causal, window, scale, dropout):
    return _empty_outputs(q)


@torch.library.custom_op("charlm::attention_backward", mutates_args=())
def _backward(
    dout: Tensor, dlse: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, statistics: Tensor,
    slopes: Tensor | None, seed: Tensor | None, starts_q: Tensor | None, starts_k: Tensor | None, causal: bool,
    window: int | None, scale: float, dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    from kernels.attention import launch

    gradients = tuple(_heads_inside(x) for x in (q, k, v))
    call = _call(q, k, slopes, seed, starts_q, starts_k, causal, window, scale, dropout)
    dout = dout if dout.stride(-1) == 1 else dout.contiguous()
    launch.backward(dout, dlse.contiguous(), q, k, v, out, statistics, call, gradients)
    return gradients


@_backward.register_fake
def _(dout, dlse, q, k, v, out, statistics, slopes, seed, starts_q, starts_k, causal, window, scale, dropout):
    return tuple(_heads_inside(x) for x in (q, k, v))


def _remember(ctx, inputs, output) -> None:
    q, k, v, slopes, seed, starts_q, starts_k, *ctx.options = inputs
    out, _, statistics = output
    ctx.mark_non_differentiable(statistics)
    ctx.save_for_backward(q, k, v, out, statistics, slopes, seed, starts_q, starts_k)


def _differentiate(ctx, dout, dlse, _):
    dq, dk, dv = torch.ops.charlm.attention_backward(dout, dlse, *ctx.saved_tensors, *ctx.options)
    return dq, dk, dv, *([None] * 8)


_forward.register_autograd(_differentiate, setup_context=_remember)


def _empty_outputs(q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the output, the log-sum-exps and the statistics (each row's peak and one over its total)."""
    B, H, T, _ = q.shape
    precise = precise_dtype(q)
    return _heads_inside(q), q.new_empty(B, H, T, dtype=precise), q.new_empty(2, B, H, T, dtype=precise)


def _heads_inside(x: Tensor) -> Tensor:
    """Room for a tensor like x (B, H, T, D) that lies (B, T, H, D), so that joining the heads copies nothing."""
    B, H, T, D = x.shape
    return x.new_empty(B, T, H, D).transpose(1, 2)


def _call(q, k, slopes, seed, starts_q, starts_k, causal, window, scale, dropout) -> Call:
    longest_q, longest_k = q.shape[2], k.shape[2]
    if starts_q is not None:
        longest_q, longest_k = longest_sequences(starts_q, starts_k, longest_q, longest_k)
        starts_q, starts_k = (starts.to(q.device).contiguous() for starts in (starts_q, starts_k))
    if window is not None:
        window = min(window, q.shape[2] + k.shape[2])  # sees all there is, and overflows nothing
    if slopes is not None:
        slopes = slopes.to(q.device, torch.float32).contiguous()
    return Call(causal, window, scale, dropout, slopes, seed, starts_q, starts_k, longest_q, longest_k)


def _scale(scale: float | None, q: Tensor) -> float:
    return 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
