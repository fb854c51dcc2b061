"""The forward kernel of attention, in Triton.

FlashAttention-2 (Dao 2023): tiles of the scores are made, used and forgotten. A row's softmax is kept as its peak
(largest score, in units of log 2) and one over its total, not as their log-sum-exp: at scores of 1e6 that sum has no
digits left for the total.
"""

import triton
import triton.language as tl

from kernels.attention.parts import (
    LN2,
    LOG2E,
    dropout_keeps,
    keys_of,
    locate,
    rows,
    sees,
    statistics_at,
    store_rows,
    wide,
)


@triton.jit
def _forward_tiles(
    acc, peak, total, q, k_base, v_base, k_stride, v_stride,
    query, offset, n_keys, lo, hi, window, scale, slope, seed, head, threshold,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr, ALIBI: tl.constexpr, DROPOUT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Let the queries of a tile read keys lo..hi: the online softmax (Milakov & Gimelshein 2018)."""
    d = tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    for start in range(lo, hi, BLOCK_N):
        here = wide(start)
        k = rows(k_base + here * k_stride, n, k_stride, d, n_keys - start, D, MASKED, BLOCK_D != D)
        v = rows(v_base + here * v_stride, n, v_stride, d, n_keys - start, D, MASKED, BLOCK_D != D)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACC)
        key = (start + n)[None, :]
        if ALIBI:
            s = s * scale - slope * tl.abs(query[:, None] + offset - key).to(ACC)
            factor = 1.0
        else:
            factor = scale
        if MASKED:
            s = tl.where(sees(query[:, None] + offset, key, n_keys, window, CAUSAL, WINDOWED), s, float("-inf"))
        higher = tl.maximum(peak, tl.max(s, 1) * factor)
        safe = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen yet: avoid inf - inf
        p = tl.exp2(s * factor - safe[:, None])
        shrink = tl.exp2(peak - safe)
        total = total * shrink + tl.sum(p, 1)
        if DROPOUT:
            p = tl.where(dropout_keeps(seed, query[:, None], key, head, threshold), p, 0.0)
        acc = acc * shrink[:, None]
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION, out_dtype=ACC)
        peak = higher
    return acc, peak, total


@triton.jit
def forward_kernel(
    Q, K, V, OUT, LSE, PEAK, INVERSE, STARTS_Q, STARTS_K, SLOPES, SEED,
    sqb, sqh, sqt, skb, skh, skt, svb, svh, svt,
    H, GROUP, Tq, Tk, longest, scale, window, threshold, keep_scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr, ALIBI: tl.constexpr, DROPOUT: tl.constexpr, VARLEN: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head: their output, log-sum-exp, peak and one over their total."""
    n_tiles = tl.cdiv(longest, BLOCK_M)
    tile = n_tiles - 1 - tl.program_id(0) % n_tiles  # the longest rows of tiles first
    head = tl.program_id(0) // n_tiles
    b = head // H
    h = head % H
    q_offset, row0, n_queries = locate(STARTS_Q, b, Tq, sqb, sqt, VARLEN)
    k_offset, _, n_keys = locate(STARTS_K, b, Tk, skb, skt, VARLEN)
    v_offset, _, _ = locate(STARTS_K, b, Tk, svb, svt, VARLEN)
    first_row = tile * BLOCK_M
    if first_row >= n_queries:
        return
    q_base = Q + q_offset + wide(h) * sqh + wide(first_row) * sqt
    k_base = K + k_offset + wide(h // GROUP) * skh
    v_base = V + v_offset + wide(h // GROUP) * svh

    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    query = first_row + m
    offset = n_keys - n_queries  # query i stands at key i + offset: the last of both meet
    q = rows(q_base, m, sqt, d, n_queries - first_row, D, True, BLOCK_D != D)
    slope = 0.0
    if ALIBI:
        slope = tl.load(SLOPES + h).to(ACC) * LOG2E
    seed = 0
    if DROPOUT:
        seed = tl.load(SEED)
    acc = tl.zeros([BLOCK_M, BLOCK_D], ACC)
    peak = tl.full([BLOCK_M], float("-inf"), ACC)
    total = tl.zeros([BLOCK_M], ACC)
    last_row = tl.minimum(first_row + BLOCK_M, n_queries) - 1
    lo, full_lo, full_hi, hi = keys_of(first_row + offset, last_row + offset, n_keys, window, CAUSAL, WINDOWED, BLOCK_N)
    for part in tl.static_range(0 if WINDOWED else 1, 3):
        acc, peak, total = _forward_tiles(
            acc, peak, total, q, k_base, v_base, skt, svt, query, offset, n_keys,
            lo if part == 0 else (full_lo if part == 1 else full_hi),
            full_lo if part == 0 else (full_hi if part == 1 else hi),
            window, scale * LOG2E, slope, seed, head, threshold,
            D, BLOCK_D, BLOCK_N, part != 1, CAUSAL, WINDOWED, ALIBI, DROPOUT, ACC, PRECISION,
        )  # fmt: skip

    unseen = total == 0.0
    inverse = tl.where(unseen, 0.0, 1.0 / tl.where(unseen, 1.0, total))
    out = acc * (inverse * keep_scale)[:, None]
    store_rows(OUT, out, b, h, H, row0, first_row, n_queries, Tq, D, BLOCK_M, BLOCK_D, VARLEN)
    at = statistics_at(b, h, H, row0, Tq, VARLEN) + query
    inside = query < n_queries
    lse = tl.where(unseen, float("-inf"), peak * LN2 + tl.log(tl.where(unseen, 1.0, total)))
    tl.store(LSE + at, lse, inside)
    tl.store(PEAK + at, tl.where(unseen, 0.0, peak), inside)
    tl.store(INVERSE + at, inverse, inside)
