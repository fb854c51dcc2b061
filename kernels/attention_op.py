"""Attention: the functions, their operators for autograd and the compiler, and the module.

softmax(scale q k^T + bias) v, causal or full, with grouped heads (Ainslie et al. 2023), a sliding window (Beltagy et
al. 2020), ALiBi (Press et al. 2022), dropout, and packed sequences of any lengths. Queries and keys end together: query
i of Tq stands where key i + Tk - Tq stands. attention_launch.py runs the Triton kernels, a plain version is in
reference.py.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import reference
from kernels.attention_call import Call
from kernels.dispatch import autocast_dtype, interpreting, use_triton

MAX_HEAD_SIZE = 128
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


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
    _check_rank(q, k, v, 4, "(batch, heads, tokens, head size)")
    _check(q, k, v, window, slopes, scale, dropout, seed)
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
    _check_rank(q, k, v, 3, "(tokens, heads, head size)")
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # (1, H, total, D)
    _check(q, k, v, window, slopes, scale, dropout, seed)
    for name, starts in (("starts_q", starts_q), ("starts_k", starts_k)):
        if starts.dtype != torch.int32 or starts.ndim != 1 or len(starts) < 1:
            raise ValueError(
                f"{name} is {starts.dtype} of shape {tuple(starts.shape)}; it has to be int32 of shape (N + 1,)"
            )
    if len(starts_q) != len(starts_k):
        raise ValueError(f"starts_q and starts_k hold {len(starts_q)} and {len(starts_k)} numbers; they go by pairs")
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
    if q.dtype == torch.float64 and not interpreting():
        raise ValueError("q is float64, which the Triton kernels take in the interpreter only; use float32")
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
    _check_starts(starts_q, starts_k, q.shape[2], k.shape[2])
    slopes = None if slopes is None else slopes.detach()
    options = {"causal": causal, "window": window, "slopes": slopes, "scale": scale}
    options |= {"dropout": dropout, "seed": _seed(seed, dropout, q)}
    found = _precisely(reference.attention_packed, q, k, v, starts_q, starts_k, **options)
    return found if return_lse else found[0]


def _precisely(function, q, k, v, *rest, **options) -> tuple[Tensor, Tensor]:
    """The plain reference in float32 at least, as the kernels compute; the output in the dtype of q."""
    precise = torch.float64 if q.dtype == torch.float64 else torch.float32
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
    from kernels import attention_launch

    out, lse, statistics = _empty_outputs(q)
    call = _call(q, k, slopes, seed, starts_q, starts_k, causal, window, scale, dropout)
    attention_launch.forward(q, k, v, call, out, lse, statistics)
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
    from kernels import attention_launch

    gradients = tuple(_heads_inside(x) for x in (q, k, v))
    call = _call(q, k, slopes, seed, starts_q, starts_k, causal, window, scale, dropout)
    dout = dout if dout.stride(-1) == 1 else dout.contiguous()
    attention_launch.backward(dout, dlse.contiguous(), q, k, v, out, statistics, call, gradients)
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
    precise = torch.float64 if q.dtype == torch.float64 else torch.float32
    return _heads_inside(q), q.new_empty(B, H, T, dtype=precise), q.new_empty(2, B, H, T, dtype=precise)


def _heads_inside(x: Tensor) -> Tensor:
    """Room for a tensor like x (B, H, T, D) that lies (B, T, H, D), so that joining the heads copies nothing."""
    B, H, T, D = x.shape
    return x.new_empty(B, T, H, D).transpose(1, 2)


def _call(q, k, slopes, seed, starts_q, starts_k, causal, window, scale, dropout) -> Call:
    longest_q, longest_k = q.shape[2], k.shape[2]
    if starts_q is not None:
        longest_q, longest_k = _check_starts(starts_q, starts_k, longest_q, longest_k)
        starts_q, starts_k = (starts.to(q.device).contiguous() for starts in (starts_q, starts_k))
    if window is not None:
        window = min(window, q.shape[2] + k.shape[2])  # sees all there is, and overflows nothing
    if slopes is not None:
        slopes = slopes.to(q.device, torch.float32).contiguous()
    return Call(causal, window, scale, dropout, slopes, seed, starts_q, starts_k, longest_q, longest_k)


def _scale(scale: float | None, q: Tensor) -> float:
    return 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale


def _check_starts(starts_q: Tensor, starts_k: Tensor, total_q: int, total_k: int) -> tuple[int, int]:
    """The longest sequence of queries and of keys. Raises ValueError when the lengths do not sum up."""
    longest = []
    for name, starts, total in (("starts_q", starts_q, total_q), ("starts_k", starts_k, total_k)):
        ends = starts.tolist()
        lengths = [b - a for a, b in zip(ends, ends[1:], strict=False)]
        if ends[0] != 0 or ends[-1] != total or min(lengths, default=0) < 0:
            raise ValueError(f"{name} runs {_shortened(ends)}; it has to rise from 0 to the {total} rows there are")
        longest.append(max(lengths, default=0))
    return longest[0], longest[1]


def _shortened(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) if len(numbers) < 8 else f"{numbers[0]}, {numbers[1]}, ..., {numbers[-1]}"


def _check_rank(q: Tensor, k: Tensor, v: Tensor, rank: int, meaning: str) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != rank:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; it has to have {rank} dimensions {meaning}")


def _check(q, k, v, window, slopes, scale, dropout, seed) -> None:
    """Raise ValueError for whatever does not go together, naming the argument, what it was and what it may be."""
    if k.shape != v.shape:
        raise ValueError(f"v has shape {tuple(v.shape)}; it has to be k's, {tuple(k.shape)}")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dtype not in DTYPES:
            raise ValueError(f"{name} is {x.dtype}; it may be float32, float16 or bfloat16")
        if x.dtype != q.dtype and autocast_dtype(q) is None:
            raise ValueError(f"{name} is {x.dtype} and q is {q.dtype}; they have to be the same")
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device} and q on {q.device}; they have to be together")
        if x.shape[-1] != q.shape[-1]:
            raise ValueError(f"{name} has head size {x.shape[-1]} and q {q.shape[-1]}; they have to be equal")
        if x.stride(-1) != 1 and x.shape[-1] > 1 and x.numel() > 0:
            raise ValueError(f"{name}'s last dimension has stride {x.stride(-1)}; it has to be 1: use contiguous()")
    H, heads, D = q.shape[-3], k.shape[-3], q.shape[-1]
    if D < 1:
        raise ValueError("q has head size 0; it may be 1 or more")
    if heads == 0 or H % heads:
        raise ValueError(f"q has {H} heads and k {heads}; k's have to divide q's")
    if window is not None and window < 1:
        raise ValueError(f"window is {window}; it may be 1 or more, or None for no window")
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale}; it has to be positive and finite")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; it may be 0 or more, below 1")
    if slopes is not None and tuple(slopes.shape) != (H,):
        raise ValueError(f"slopes has shape {tuple(slopes.shape)}; it has to be one a head, ({H},)")
    if seed is not None and (seed.dtype != torch.int64 or seed.numel() != 1):
        raise ValueError(f"seed is {seed.dtype} of shape {tuple(seed.shape)}; it has to be one int64")
