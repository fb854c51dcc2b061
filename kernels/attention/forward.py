"""The forward kernel of attention, in Triton.

FlashAttention-2 (Dao 2023): a tile of scores is computed, used and dropped. Saved of each row's softmax are `row_max`,
its largest score in units of log 2, and `inv_sum`, one over the sum of its exponentials. Their log-sum-exp alone would
not do for the backward: at scores of 1e6 a float32 has no digits left for the logarithm of the sum.
"""

import triton
import triton.language as tl

from kernels.attention.parts import (
    LN2,
    LOG2E,
    NUMBERS,
    dropout_keeps,
    keys_of,
    locate,
    present,
    rows,
    scores,
    stats_offset,
    store_rows,
    strides,
    wide,
)


@triton.jit
def _forward_tiles(
    acc, row_max, row_sum, q, k_base, v_base, KEY_MASK, k_stride, v_stride,
    query, first_row, offset, n_keys, lo, hi, left, right, scale, cap, slope, seed, head, threshold,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, KEYED: tl.constexpr, ALIBI: tl.constexpr, CAPPED: tl.constexpr,
    DROPOUT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add keys lo..hi to the output of a tile of queries, by the online softmax (Milakov & Gimelshein 2018)."""
    d = tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    for start in range(lo, hi, BLOCK_N):
        wide_start = wide(start)
        k = rows(k_base + wide_start * k_stride, n, k_stride, d, n_keys - start, D, MASKED, BLOCK_D != D)
        v = rows(v_base + wide_start * v_stride, n, v_stride, d, n_keys - start, D, MASKED, BLOCK_D != D)
        there = 0
        if KEYED:
            there = present(KEY_MASK, start + n, n_keys)[None, :]
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACC)
        s, factor, _ = scores(
            s, query[:, None] + offset, (start + n)[None, :], there, n_keys, left, right, scale, cap, slope,
            MASKED, CAUSAL, LEFT, RIGHT, KEYED, ALIBI, CAPPED, ACC,
        )  # fmt: skip
        new_max = tl.maximum(row_max, tl.max(s, 1) * factor)
        safe_max = tl.where(new_max == float("-inf"), 0.0, new_max)  # nothing seen yet: avoid inf - inf
        p = tl.exp2(s * factor - safe_max[:, None])
        rescale = tl.exp2(row_max - safe_max)
        row_sum = row_sum * rescale + tl.sum(p, 1)
        if DROPOUT:
            kept = dropout_keeps(seed, first_row, start, head, threshold, query.shape[0], BLOCK_N, False)
            p = tl.where(kept, p, 0.0)
        acc = acc * rescale[:, None]
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION, out_dtype=ACC)
        row_max = new_max
    return acc, row_max, row_sum


@triton.jit(do_not_specialize=[*(f"s{tensor}{axis}" for tensor in "qkv" for axis in "bht"), *NUMBERS, "span"])
def forward_kernel(
    Q, K, V, OUT, LSE, ROW_MAX, INV_SUM, STARTS_Q, STARTS_K, SLOPES, SEED, KEY_MASK,
    sqb, sqh, sqt, skb, skh, skt, svb, svh, svt,
    H, GROUP, Tq, Tk, longest, scale, cap, left, right, threshold, keep_scale, span,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, KEYED: tl.constexpr, ALIBI: tl.constexpr, CAPPED: tl.constexpr,
    DROPOUT: tl.constexpr, VARLEN: tl.constexpr, SPLIT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute output, log-sum-exp, row_max and inv_sum of one tile of queries of one head. With SPLIT of its share of
    the keys, `span` of them: output (in ACC), row_max and inv_sum are those of that share."""
    sqb, sqh, sqt = strides(sqb, sqh, sqt)
    skb, skh, skt = strides(skb, skh, skt)
    svb, svh, svt = strides(svb, svh, svt)
    n_tiles = tl.cdiv(longest, BLOCK_M)
    tile = n_tiles - 1 - tl.program_id(0) % n_tiles  # the tiles with the most keys first
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
    offset = n_keys - n_queries  # query i has the position of key i + offset: both end together
    q = rows(q_base, m, sqt, d, n_queries - first_row, D, True, BLOCK_D != D)
    slope = 0.0
    if ALIBI:
        slope = tl.load(SLOPES + h).to(ACC) * LOG2E
    seed = 0
    if DROPOUT:
        seed = tl.load(SEED)
    acc = tl.zeros([BLOCK_M, BLOCK_D], ACC)
    row_max = tl.full([BLOCK_M], float("-inf"), ACC)
    row_sum = tl.zeros([BLOCK_M], ACC)
    last_row = tl.minimum(first_row + BLOCK_M, n_queries) - 1
    lo, full_lo, full_hi, hi = keys_of(
        first_row + offset, last_row + offset, n_keys, left, right, CAUSAL, LEFT, RIGHT, BLOCK_N
    )
    if SPLIT:
        first_key = (lo if LEFT else full_lo) + tl.program_id(1) * span
        lo = tl.minimum(tl.maximum(lo, first_key), first_key + span)
        full_lo = tl.minimum(tl.maximum(full_lo, first_key), first_key + span)
        full_hi = tl.minimum(tl.maximum(full_hi, first_key), first_key + span)
        hi = tl.minimum(hi, first_key + span)
    for part in tl.static_range(0 if LEFT else 1, 3):
        acc, row_max, row_sum = _forward_tiles(
            acc, row_max, row_sum, q, k_base, v_base, KEY_MASK + wide(b) * Tk, skt, svt,
            query, first_row, offset, n_keys,
            lo if part == 0 else (full_lo if part == 1 else full_hi),
            full_lo if part == 0 else (full_hi if part == 1 else hi),
            left, right, scale * LOG2E, cap * LOG2E, slope, seed, head, threshold,
            D, BLOCK_D, BLOCK_N, part != 1, CAUSAL, LEFT, RIGHT, KEYED, ALIBI, CAPPED, DROPOUT, ACC, PRECISION,
        )  # fmt: skip

    unseen = row_sum == 0.0
    inv_sum = tl.where(unseen, 0.0, 1.0 / tl.where(unseen, 1.0, row_sum))
    out = acc * (inv_sum * keep_scale)[:, None]
    index = stats_offset(b, h, H, row0, Tq, VARLEN) + query
    inside = query < n_queries
    if SPLIT:  # a share is laid out as the whole
        heads = tl.num_programs(0) // n_tiles
        share = wide(tl.program_id(1)) * heads * Tq
        OUT += share * D
        index += share
    else:
        lse = tl.where(unseen, float("-inf"), row_max * LN2 + tl.log(tl.where(unseen, 1.0, row_sum)))
        tl.store(LSE + index, lse, inside)
    store_rows(OUT, out, b, h, H, row0, first_row, n_queries, Tq, D, BLOCK_M, BLOCK_D, VARLEN)
    tl.store(ROW_MAX + index, tl.where(unseen, 0.0, row_max), inside)
    tl.store(INV_SUM + index, inv_sum, inside)


@triton.jit(do_not_specialize=["n_shares", "n_rows", "H", "Tq"])
def combine_kernel(
    PART, PART_MAX, PART_INV, OUT, LSE, ROW_MAX, INV_SUM, n_shares, n_rows, H, Tq,
    D: tl.constexpr, BLOCK_D: tl.constexpr, SHARES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Compute output, log-sum-exp, row_max and inv_sum of one row of one head from those of the shares of its keys:
    each counts by the sum of its exponentials (Flash-Decoding, Dao et al. 2023)."""
    row = tl.program_id(0)  # of (B, H, Tq)
    share = tl.arange(0, SHARES)
    d = tl.arange(0, BLOCK_D)
    index = wide(share) * n_rows + row
    part_max = tl.load(PART_MAX + index, share < n_shares, 0.0)
    part_inv = tl.load(PART_INV + index, share < n_shares, 0.0)
    seen = part_inv > 0.0
    row_max = tl.max(tl.where(seen, part_max, float("-inf")), 0)
    unseen = row_max == float("-inf")
    row_max = tl.where(unseen, 0.0, row_max)
    part_sum = tl.where(seen, tl.exp2(part_max - row_max) / tl.where(seen, part_inv, 1.0), 0.0)
    row_sum = tl.sum(part_sum, 0)
    inv_sum = tl.where(unseen, 0.0, 1.0 / tl.where(unseen, 1.0, row_sum))
    t = row % Tq
    place = (wide(row // Tq // H) * Tq + t) * H + row // Tq % H  # of (B, Tq, H)
    inside = (share < n_shares)[:, None] & (d < D)[None, :]
    parts = tl.load(PART + (wide(share) * n_rows + place)[:, None] * D + d[None, :], inside, 0.0)
    out = tl.sum(parts * part_sum[:, None], 0) * inv_sum
    tl.store(OUT + place * D + d, out.to(OUT.dtype.element_ty), d < D)
    tl.store(LSE + row, tl.where(unseen, float("-inf"), row_max * LN2 + tl.log(tl.where(unseen, 1.0, row_sum))))
    tl.store(ROW_MAX + row, row_max)
    tl.store(INV_SUM + row, inv_sum)
