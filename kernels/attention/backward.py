"""The backward kernels of attention, in Triton: dQ, and dK with dV.

FlashAttention-2 (Dao 2023): the softmax is computed again from q, k and two numbers a row. A program of dQ holds a tile
of queries and loops over keys, one of dK and dV holds a tile of keys and loops over queries, for each query head; the
launcher adds up the heads that share keys. No two programs write to the same place: no atomics, the same bits every
time.
"""

import triton
import triton.language as tl

from kernels.attention.parts import (
    LOG2E,
    NUMBERS,
    dropout_keeps,
    keys_of,
    locate,
    present,
    queries_of,
    rows,
    scores,
    stats_offset,
    store_rows,
    strides,
    wide,
)


@triton.jit
def _probabilities(
    s, row_max, inv_sum, position, key, there, n_keys, left, right, scale, cap, slope,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, KEYED: tl.constexpr,
    ALIBI: tl.constexpr, CAPPED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The softmax of a tile of products q k, from row_max and inv_sum, and the derivative of the cap. Either way round:
    the operands broadcast."""
    s, factor, derivative = scores(
        s, position, key, there, n_keys, left, right, scale, cap, slope,
        MASKED, CAUSAL, LEFT, RIGHT, KEYED, ALIBI, CAPPED, ACC,
    )  # fmt: skip
    return tl.exp2(s * factor - row_max) * inv_sum, derivative


@triton.jit
def _dq_tiles(
    dq, q, do, row_max, inv_sum, delta, k_base, v_base, KEY_MASK, k_stride, v_stride,
    query, first_row, offset, n_keys, lo, hi, left, right, scale, cap, slope, seed, head, threshold, keep_scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, KEYED: tl.constexpr, ALIBI: tl.constexpr, CAPPED: tl.constexpr,
    DROPOUT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add keys lo..hi to the gradient of a tile of queries."""
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
        p, derivative = _probabilities(
            s, row_max[:, None], inv_sum[:, None], query[:, None] + offset, (start + n)[None, :], there, n_keys,
            left, right, scale, cap, slope,
            MASKED, CAUSAL, LEFT, RIGHT, KEYED, ALIBI, CAPPED, ACC,
        )  # fmt: skip
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION, out_dtype=ACC)
        if DROPOUT:
            kept = dropout_keeps(seed, first_row, start, head, threshold, query.shape[0], BLOCK_N, False)
            dp = tl.where(kept, dp * keep_scale, 0.0)
        ds = p * (dp - delta[:, None])
        if CAPPED:
            ds = ds * derivative
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION, out_dtype=ACC)
    return dq


@triton.jit(do_not_specialize=[*(f"s{tensor}{axis}" for tensor in "qkvog" for axis in "bht"), *NUMBERS])
def dq_kernel(
    Q, K, V, OUT, DOUT, DLSE, ROW_MAX, INV_SUM, DELTA, DQ, STARTS_Q, STARTS_K, SLOPES, SEED, KEY_MASK,
    sqb, sqh, sqt, skb, skh, skt, svb, svh, svt, sob, soh, sot, sgb, sgh, sgt,
    H, GROUP, Tq, Tk, longest, scale, cap, left, right, threshold, keep_scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, KEYED: tl.constexpr, ALIBI: tl.constexpr, CAPPED: tl.constexpr,
    DROPOUT: tl.constexpr, VARLEN: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr, HAS_DLSE: tl.constexpr,
):  # fmt: skip
    """Compute dq of one tile of queries of one head, and delta: each row's sum of dout * out, less its dlse."""
    sqb, sqh, sqt = strides(sqb, sqh, sqt)
    skb, skh, skt = strides(skb, skh, skt)
    svb, svh, svt = strides(svb, svh, svt)
    sob, soh, sot = strides(sob, soh, sot)
    sgb, sgh, sgt = strides(sgb, sgh, sgt)
    n_tiles = tl.cdiv(longest, BLOCK_M)
    tile = n_tiles - 1 - tl.program_id(0) % n_tiles
    head = tl.program_id(0) // n_tiles
    b = head // H
    h = head % H
    q_offset, row0, n_queries = locate(STARTS_Q, b, Tq, sqb, sqt, VARLEN)
    o_offset, _, _ = locate(STARTS_Q, b, Tq, sob, sot, VARLEN)
    g_offset, _, _ = locate(STARTS_Q, b, Tq, sgb, sgt, VARLEN)
    k_offset, _, n_keys = locate(STARTS_K, b, Tk, skb, skt, VARLEN)
    v_offset, _, _ = locate(STARTS_K, b, Tk, svb, svt, VARLEN)
    first_row = tile * BLOCK_M
    if first_row >= n_queries:
        return
    wide_row = wide(first_row)
    k_base = K + k_offset + wide(h // GROUP) * skh
    v_base = V + v_offset + wide(h // GROUP) * svh

    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    query = first_row + m
    offset = n_keys - n_queries
    n_left = n_queries - first_row
    q = rows(Q + q_offset + wide(h) * sqh + wide_row * sqt, m, sqt, d, n_left, D, True, BLOCK_D != D)
    o = rows(OUT + o_offset + wide(h) * soh + wide_row * sot, m, sot, d, n_left, D, True, BLOCK_D != D)
    do = rows(DOUT + g_offset + wide(h) * sgh + wide_row * sgt, m, sgt, d, n_left, D, True, BLOCK_D != D)
    index = stats_offset(b, h, H, row0, Tq, VARLEN) + query
    inside = query < n_queries
    row_max = tl.load(ROW_MAX + index, inside, 0.0)
    inv_sum = tl.load(INV_SUM + index, inside, 0.0)
    delta = tl.sum(o.to(ACC) * do.to(ACC), 1)
    if HAS_DLSE:
        delta -= tl.load(DLSE + index, inside, 0.0)
    tl.store(DELTA + index, delta, inside)
    slope = 0.0
    if ALIBI:
        slope = tl.load(SLOPES + h).to(ACC) * LOG2E
    seed = 0
    if DROPOUT:
        seed = tl.load(SEED)
    dq = tl.zeros([BLOCK_M, BLOCK_D], ACC)
    last_row = tl.minimum(first_row + BLOCK_M, n_queries) - 1
    lo, full_lo, full_hi, hi = keys_of(
        first_row + offset, last_row + offset, n_keys, left, right, CAUSAL, LEFT, RIGHT, BLOCK_N
    )
    for part in tl.static_range(0 if LEFT else 1, 3):
        dq = _dq_tiles(
            dq, q, do, row_max, inv_sum, delta, k_base, v_base, KEY_MASK + wide(b) * Tk, skt, svt,
            query, first_row, offset, n_keys,
            lo if part == 0 else (full_lo if part == 1 else full_hi),
            full_lo if part == 0 else (full_hi if part == 1 else hi),
            left, right, scale * LOG2E, cap * LOG2E, slope, seed, head, threshold, keep_scale,
            D, BLOCK_D, BLOCK_N, part != 1, CAUSAL, LEFT, RIGHT, KEYED, ALIBI, CAPPED, DROPOUT, ACC, PRECISION,
        )  # fmt: skip
    store_rows(DQ, dq * scale, b, h, H, row0, first_row, n_queries, Tq, D, BLOCK_M, BLOCK_D, VARLEN)


@triton.jit
def _dkv_tiles(
    dk, dv, k, v, q_base, g_base, q_stride, g_stride, ROW_MAX, INV_SUM, DELTA, head_offset,
    key, first_key, there, offset, n_queries, n_keys, lo, hi, left, right, scale, cap, slope,
    seed, head, threshold, keep_scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, KEYED: tl.constexpr, ALIBI: tl.constexpr, CAPPED: tl.constexpr,
    DROPOUT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add queries lo..hi of one head to the gradients of a tile of keys and values. Scores are (keys, queries)."""
    d = tl.arange(0, BLOCK_D)
    m = tl.arange(0, BLOCK_M)
    for start in range(lo, hi, BLOCK_M):
        wide_start = wide(start)
        q = rows(q_base + wide_start * q_stride, m, q_stride, d, n_queries - start, D, MASKED, BLOCK_D != D)
        do = rows(g_base + wide_start * g_stride, m, g_stride, d, n_queries - start, D, MASKED, BLOCK_D != D)
        query = start + m
        if MASKED:
            inside = query < n_queries
            row_max = tl.load(ROW_MAX + head_offset + query, inside, 0.0)
            inv_sum = tl.load(INV_SUM + head_offset + query, inside, 0.0)
            delta = tl.load(DELTA + head_offset + query, inside, 0.0)
        else:
            row_max = tl.load(ROW_MAX + head_offset + query)
            inv_sum = tl.load(INV_SUM + head_offset + query)
            delta = tl.load(DELTA + head_offset + query)
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION, out_dtype=ACC)  # (keys, queries)
        p, derivative = _probabilities(
            s, row_max[None, :], inv_sum[None, :], query[None, :] + offset, key[:, None], there, n_keys,
            left, right, scale, cap, slope,
            MASKED, CAUSAL, LEFT, RIGHT, KEYED, ALIBI, CAPPED, ACC,
        )  # fmt: skip
        if MASKED:  # a row past the last has no score: with a negative slope what was computed can be infinite
            p = tl.where(inside[None, :], p, 0.0)
        dp = tl.dot(v, tl.trans(do), input_precision=PRECISION, out_dtype=ACC)
        if DROPOUT:
            kept = dropout_keeps(seed, start, first_key, head, threshold, BLOCK_M, key.shape[0], True)
            dropped = tl.where(kept, p * keep_scale, 0.0)
            dp = tl.where(kept, dp * keep_scale, 0.0)
        else:
            dropped = p
        dv = tl.dot(dropped.to(do.dtype), do, dv, input_precision=PRECISION, out_dtype=ACC)
        ds = p * (dp - delta[None, :])
        if CAPPED:
            ds = ds * derivative
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION, out_dtype=ACC)
    return dk, dv


@triton.jit(do_not_specialize=[*(f"s{tensor}{axis}" for tensor in "qkvg" for axis in "bht"), *NUMBERS])
def dkv_kernel(
    Q, K, V, DOUT, ROW_MAX, INV_SUM, DELTA, DK, DV, STARTS_Q, STARTS_K, SLOPES, SEED, KEY_MASK,
    sqb, sqh, sqt, skb, skh, skt, svb, svh, svt, sgb, sgh, sgt,
    H, GROUP, Tq, Tk, longest, scale, cap, left, right, threshold, keep_scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, KEYED: tl.constexpr, ALIBI: tl.constexpr, CAPPED: tl.constexpr,
    DROPOUT: tl.constexpr, VARLEN: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute what one query head adds to the gradients of one tile of keys and values."""
    sqb, sqh, sqt = strides(sqb, sqh, sqt)
    skb, skh, skt = strides(skb, skh, skt)
    svb, svh, svt = strides(svb, svh, svt)
    sgb, sgh, sgt = strides(sgb, sgh, sgt)
    n_tiles = tl.cdiv(longest, BLOCK_N)
    tile = tl.program_id(0) % n_tiles  # the first keys first: under a causal mask most queries see them
    head = tl.program_id(0) // n_tiles
    b = head // H
    h = head % H
    k_offset, row0, n_keys = locate(STARTS_K, b, Tk, skb, skt, VARLEN)
    v_offset, _, _ = locate(STARTS_K, b, Tk, svb, svt, VARLEN)
    q_offset, q_row0, n_queries = locate(STARTS_Q, b, Tq, sqb, sqt, VARLEN)
    g_offset, _, _ = locate(STARTS_Q, b, Tq, sgb, sgt, VARLEN)
    first_key = tile * BLOCK_N
    if first_key >= n_keys:
        return
    wide_key = wide(first_key)
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    n_left = n_keys - first_key
    offset = n_keys - n_queries
    k = rows(K + k_offset + wide(h // GROUP) * skh + wide_key * skt, n, skt, d, n_left, D, True, BLOCK_D != D)
    v = rows(V + v_offset + wide(h // GROUP) * svh + wide_key * svt, n, svt, d, n_left, D, True, BLOCK_D != D)
    slope = 0.0
    if ALIBI:
        slope = tl.load(SLOPES + h).to(ACC) * LOG2E
    seed = 0
    if DROPOUT:
        seed = tl.load(SEED)
    there = 0
    if KEYED:
        there = present(KEY_MASK + wide(b) * Tk, first_key + n, n_keys)[:, None]
    dk = tl.zeros([BLOCK_N, BLOCK_D], ACC)
    dv = tl.zeros([BLOCK_N, BLOCK_D], ACC)
    last_key = tl.minimum(first_key + BLOCK_N, n_keys) - 1
    lo, full_lo, full_hi, hi = queries_of(
        first_key, last_key, offset, n_queries, left, right, CAUSAL, LEFT, RIGHT, BLOCK_M
    )
    head_offset = stats_offset(b, h, H, q_row0, Tq, VARLEN)
    # All three parts, even where the first is empty: a loop that starts on fresh accumulators serializes wgmma.
    for part in tl.static_range(0, 3):
        dk, dv = _dkv_tiles(
            dk, dv, k, v, Q + q_offset + wide(h) * sqh, DOUT + g_offset + wide(h) * sgh, sqt, sgt,
            ROW_MAX, INV_SUM, DELTA, head_offset, first_key + n, first_key, there, offset, n_queries, n_keys,
            lo if part == 0 else (full_lo if part == 1 else full_hi),
            full_lo if part == 0 else (full_hi if part == 1 else hi),
            left, right, scale * LOG2E, cap * LOG2E, slope, seed, head, threshold, keep_scale,
            D, BLOCK_D, BLOCK_M, part != 1, CAUSAL, LEFT, RIGHT, KEYED, ALIBI, CAPPED, DROPOUT, ACC, PRECISION,
        )  # fmt: skip
    store_rows(DK, dk * scale, b, h, H, row0, first_key, n_keys, Tk, D, BLOCK_N, BLOCK_D, VARLEN)
    store_rows(DV, dv, b, h, H, row0, first_key, n_keys, Tk, D, BLOCK_N, BLOCK_D, VARLEN)
