"""Attention: the functions and the module.

softmax(scale q k^T + bias) v, causal or full, with grouped heads (Ainslie et al. 2023), a sliding window (Beltagy et
al. 2020), ALiBi (Press et al. 2022), dropout, and packed sequences of any lengths. Queries and keys end together: query
i of Tq has the position of key i + Tk - Tq. operators.py and launch.py run the Triton kernels, reference.py is a plain
version.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import auto
from kernels.attention import operators, reference
from kernels.attention.checks import check_arguments, check_rank, check_starts, longest_sequences
from kernels.attention.reference import Window
from kernels.dispatch import use_triton
from kernels.dtypes import autocast_dtype, precise_dtype, refuse_float64
from kernels.transforms import is_forward_mode, is_transformed, refuse_forward_mode

MAX_HEAD_SIZE = 128


class Options(NamedTuple):
    """What the functions take besides tensors in a batch."""

    causal: bool
    window: Window
    slopes: Tensor | None
    scale: float | None
    softcap: float | None
    dropout: float
    seed: Tensor | None
    key_mask: Tensor | None = None


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    window: Window = None,
    slopes: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    key_mask: Tensor | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of q (B, H, Tq, D) over k, v (B, Hkv, Tk, D) -> (B, H, Tq, D); with `return_lse` also the log-sum-exp
    of each row's scores, (B, H, Tq) in float32. Hkv divides H; D is at most 128 in Triton; float32, float16 or
    bfloat16.

    `window` w: a query at position p sees keys above p - w (and, when not causal, below p + w); a pair (before, after):
    it sees keys from p - before to p + after, None for all. `key_mask` (B, Tk) bool: keys that are not True are seen by
    nobody, as padding. `slopes` (H,): ALiBi, -slope |p - j| is added to the score of key j; no gradient. `scale`:
    1/sqrt(D) by default. `softcap` c: a score s becomes c tanh(s / c), before ALiBi (Gemma 2). `dropout`: probability
    that a weight is dropped, by a counter-based generator seeded with `seed` (1,) int64, by default from torch's. A
    query that sees no key gives zeros, and -inf as its log-sum-exp.

    The last dimension must have stride 1; other strides are free, so q, k and v may be views of one packed tensor.
    Saved for the backward: q, k, v, the output and two float32 numbers a row. Deterministic, without atomics. The keys
    of few queries are read by many programs at once, so that a GPU is busy while it decodes.

    Raises ValueError for arguments that do not fit, RuntimeError for backend "triton" where it cannot run. Dao 2023."""
    options = Options(causal, window, slopes, scale, softcap, dropout, seed, key_mask)
    check_rank(q, k, v, 4, "(batch, heads, tokens, head size)")
    check_arguments(q, k, v, **options._asdict())
    if q.shape[0] != k.shape[0]:
        raise ValueError(f"q and k have batches of {q.shape[0]} and {k.shape[0]}; they have to be equal")
    wins = auto.attention_wins(q, softcap is not None, slopes is not None, window is not None, dropout)
    if not use_triton(backend, q.device, wins and q.shape[-1] <= MAX_HEAD_SIZE and not is_forward_mode(q, k, v)):
        return _torch(q, k, v, options, return_lse)
    out, lse = _triton(q, k, v, options, None, None)
    return (out, lse) if return_lse else out


def attention_packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts_q: Tensor,
    starts_k: Tensor | None = None,
    *,
    causal: bool = True,
    window: Window = None,
    slopes: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """`attention` of each of N sequences laid end to end: q (total_q, H, D), k, v (total_k, Hkv, D) -> (total_q, H, D);
    the log-sum-exp is (H, total_q). `starts_q` (N + 1,) int32: 0, then where each sequence ends; `starts_k` is the same
    by default. Rows past the last end are padding: zeros come out, without a gradient. Keep the starts on the CPU,
    where reading them waits for no GPU, and do not change them: they are copied while the host goes on. Dropout draws
    as if the sequences were a batch."""
    starts_k = starts_q if starts_k is None else starts_k
    options = Options(causal, window, slopes, scale, softcap, dropout, seed)
    check_rank(q, k, v, 3, "(tokens, heads, head size)")
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # (1, H, total, D)
    check_arguments(q, k, v, **options._asdict())
    check_starts(starts_q, starts_k)
    run = _triton if use_triton(backend, q.device) else _torch_packed
    out, lse = run(q, k, v, options, starts_q, starts_k)
    out = out[0].transpose(0, 1)
    return (out, lse[0]) if return_lse else out


class Attention(nn.Module):
    """`attention` with its options fixed: (q, k, v, key_mask=None) -> (B, H, Tq, D). Dropout in training mode only."""

    slopes: Tensor | None

    def __init__(
        self,
        *,
        causal: bool = True,
        window: Window = None,
        slopes: Tensor | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        dropout: float = 0.0,
        backend: str = "auto",
    ):
        super().__init__()
        self.causal, self.window, self.scale, self.softcap = causal, window, scale, softcap
        self.dropout, self.backend = dropout, backend
        self.register_buffer("slopes", slopes, persistent=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        return attention(  # type: ignore[return-value]  # a pair with `return_lse` only
            q,
            k,
            v,
            causal=self.causal,
            window=self.window,
            slopes=self.slopes,
            scale=self.scale,
            softcap=self.softcap,
            dropout=self.dropout if self.training else 0.0,
            key_mask=key_mask,
            backend=self.backend,
        )

    def packed(self, q: Tensor, k: Tensor, v: Tensor, starts: Tensor) -> Tensor:
        """`attention_packed` of sequences laid end to end in q (1, H, total, D), k and v (1, Hkv, total, D) -> (1, H,
        total, D)."""
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
        out = attention_packed(
            q,
            k,
            v,
            starts,
            causal=self.causal,
            window=self.window,
            slopes=self.slopes,
            scale=self.scale,
            softcap=self.softcap,
            dropout=self.dropout if self.training else 0.0,
            backend=self.backend,
        )
        return out.transpose(0, 1)[None]  # type: ignore[union-attr]  # a pair with `return_lse` only


def _triton(q: Tensor, k: Tensor, v: Tensor, options: Options, starts_q, starts_k) -> tuple[Tensor, Tensor]:
    refuse_forward_mode("attention", q, k, v)
    if narrow := autocast_dtype(q):
        q, k, v = (x.to(narrow) for x in (q, k, v))
    refuse_float64("q", q)
    if q.shape[-1] > MAX_HEAD_SIZE:
        raise ValueError(f"q has head size {q.shape[-1]}; the Triton kernels take 1 to {MAX_HEAD_SIZE}")
    slopes = None if options.slopes is None else options.slopes.detach()
    longest = None
    if starts_q is not None:
        longest = torch.ops.charlm.longest_sequences(starts_q, starts_k, q.shape[2], k.shape[2])
        is_shared = starts_k is starts_q
        # Not blocking: otherwise the host waits until the GPU has done all that came before, in each layer.
        starts_q = starts_q.to(q.device, non_blocking=True)
        starts_k = starts_q if is_shared else starts_k.to(q.device, non_blocking=True)
    scale = 1.0 / math.sqrt(q.shape[-1]) if options.scale is None else options.scale
    before, after = reference.reach(options.causal, options.window)
    out, lse, _ = operators.forward(
        q, k, v, slopes, _seed(options, q), options.key_mask, starts_q, starts_k, longest,
        before, after, scale, options.softcap or 0.0, options.dropout,
    )  # fmt: skip
    return out, lse


def _torch(q: Tensor, k: Tensor, v: Tensor, options: Options, return_lse: bool) -> Tensor | tuple[Tensor, Tensor]:
    """Attention by torch's own kernels where they can compute it, else by the plain reference."""
    causal, window, slopes, scale, softcap, dropout, seed, key_mask = options
    Tq, Tk = q.shape[2], k.shape[2]
    slopes = None if slopes is None else slopes.detach()
    is_seeded = seed is not None and dropout > 0
    # torch's kernels for GPUs refuse their own log-sum-exp where vmap has laid it out.
    is_refused = is_forward_mode(q, k, v) or (q.is_cuda and is_transformed())
    sees_all = not causal and window is None
    if return_lse or is_seeded or softcap is not None or (Tq > Tk and not sees_all) or is_refused:
        plain = options._replace(slopes=slopes, seed=_seed(options, q))
        out, lse = _at_least_float32(reference.attention, q, k, v, **plain._asdict())
        return (out, lse) if return_lse else out
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    whole = window is None and slopes is None and key_mask is None
    causal_only = whole and causal and (Tq == Tk or Tq == 1)
    mask = None
    if sees_all and slopes is None:
        mask = None if key_mask is None else key_mask[:, None, None]
    elif not causal_only:
        mask = reference.sdpa_mask(Tq, Tk, causal, window, slopes, q.device, q.dtype, key_mask)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal_only and Tq > 1, scale=scale)


def _torch_packed(q: Tensor, k: Tensor, v: Tensor, options: Options, starts_q, starts_k) -> tuple[Tensor, Tensor]:
    longest_sequences(starts_q, starts_k, q.shape[2], k.shape[2])
    slopes = None if options.slopes is None else options.slopes.detach()
    plain = options._replace(slopes=slopes, seed=_seed(options, q))._asdict()
    del plain["key_mask"]
    return _at_least_float32(reference.attention_packed, q, k, v, starts_q, starts_k, **plain)


def _at_least_float32(function, q, k, v, *rest, **options) -> tuple[Tensor, Tensor]:
    """The plain `function` in float32, or in float64 if q is, as the kernels compute; the output in the dtype of q."""
    precise = precise_dtype(q)
    out, lse = function(q.to(precise), k.to(precise), v.to(precise), *rest, **options)
    return out.to(q.dtype), lse


def _seed(options: Options, q: Tensor) -> Tensor | None:
    """The seed of the dropout, (1,) on the device of q: the given one, or one drawn from torch's generator."""
    if options.dropout == 0:
        return None
    return torch.randint(2**62, (1,), device=q.device) if options.seed is None else options.seed.to(q.device)
