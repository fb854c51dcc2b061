"""What the attention kernels share: where a tile lies, which keys a query sees, which weights dropout keeps.

A tile of queries loops over the tiles of keys that it sees, and a tile of keys over those of queries. Only tiles at the
edge of what is seen need a mask: [lo, full_lo) masked, [full_lo, full_hi) seen whole, [full_hi, hi) masked.
"""

import triton
import triton.language as tl

from kernels import interpreter
from kernels.dispatch import interpreting
from kernels.tanh import tanh

if interpreting():
    interpreter.repair()

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# Strides are multiples of this many elements (16 bytes of bfloat16, the most that is loaded at once), and come divided
# by it: of a stride Triton itself knows multiples of 16 or nothing, and loads head size 40 two bytes at a time.
ALIGN = tl.constexpr(8)
# The numbers that a kernel is not compiled anew for. What runs is then what kernels.aot compiles.
NUMBERS = ("H", "GROUP", "Tq", "Tk", "longest", "left", "right", "threshold")
PHILOX_ROUNDS = tl.constexpr(7)  # Salmon et al. 2011: the fewest that pass BigCrush


@triton.jit
def wide(number):
    """A number as int64, for offsets into a tensor of more than 2^31 elements."""
    return tl.zeros([], tl.int64) + number


@triton.jit
def strides(batch, head, row):
    """The strides in elements."""
    return wide(batch) * ALIGN, wide(head) * ALIGN, row * ALIGN


@triton.jit
def locate(starts, sequence, total, batch_stride, row_stride, VARLEN: tl.constexpr):
    """A sequence's first row: its offset in elements, the rows before it in a packed batch, and how many it has."""
    if VARLEN:
        start = tl.load(starts + sequence)
        length = tl.load(starts + sequence + 1) - start
        return wide(start) * row_stride, start, length
    return wide(sequence) * batch_stride, 0, total


@triton.jit
def keys_of(
    first, last, n_keys, left, right,
    CAUSAL: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The key tiles of queries at positions first..last: lo, full_lo, full_hi, hi, as above. "Whole" means that every
    one of these queries sees all keys of the tile."""
    hi = n_keys
    whole = n_keys
    if CAUSAL:
        hi = tl.minimum(n_keys, last + 1)
        whole = tl.minimum(n_keys, first + 1)
    elif RIGHT:
        hi = tl.minimum(n_keys, last + right + 1)
        whole = tl.minimum(n_keys, first + right + 1)
    hi = tl.maximum(hi, 0)
    lo = 0
    full_lo = 0
    if LEFT:
        lo = tl.maximum(first - left, 0) // BLOCK * BLOCK
        full_lo = tl.cdiv(tl.maximum(last - left, 0), BLOCK) * BLOCK
        full_lo = tl.minimum(full_lo, tl.cdiv(hi, BLOCK) * BLOCK)
    full_hi = tl.maximum(tl.maximum(whole, 0) // BLOCK * BLOCK, full_lo)
    return lo, full_lo, full_hi, hi


@triton.jit
def queries_of(
    first, last, offset, n_queries, left, right,
    CAUSAL: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The query tiles that see keys first..last, in the same four numbers; query i has position i + offset."""
    lo = 0
    full_lo = 0
    if CAUSAL:
        lo = tl.maximum(first - offset, 0) // BLOCK * BLOCK
        full_lo = tl.cdiv(tl.maximum(last - offset, 0), BLOCK) * BLOCK
    elif RIGHT:
        lo = tl.maximum(first - right - offset, 0) // BLOCK * BLOCK
        full_lo = tl.cdiv(tl.maximum(last - right - offset, 0), BLOCK) * BLOCK
    hi = n_queries
    whole = n_queries
    if LEFT:
        hi = tl.maximum(tl.minimum(n_queries, last + left + 1 - offset), 0)
        whole = tl.maximum(tl.minimum(n_queries, first + left + 1 - offset), 0)
    full_lo = tl.minimum(full_lo, tl.cdiv(hi, BLOCK) * BLOCK)
    full_hi = tl.maximum(whole // BLOCK * BLOCK, full_lo)
    return lo, full_lo, full_hi, hi


@triton.jit
def sees(position, key, n_keys, left, right, CAUSAL: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr):
    """Whether the query at `position` attends to the key at position `key`."""
    seen = key < n_keys
    if CAUSAL:
        seen = seen & (key <= position)
    elif RIGHT:
        seen = seen & (key <= position + right)
    if LEFT:
        seen = seen & (key >= position - left)
    return seen


@triton.jit
def present(KEY_MASK, key, n_keys):
    """Whether the keys `key` of a sequence are none of its padding."""
    return tl.load(KEY_MASK + key, key < n_keys, 0) != 0


@triton.jit
def scores(
    s, position, key, there, n_keys, left, right, scale, cap, slope,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, KEYED: tl.constexpr,
    ALIBI: tl.constexpr, CAPPED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The scores of a tile of products q k, either way round, -inf where a key is not seen. In units of log 2 once they
    are multiplied by the second number that is returned. The third is the derivative of the cap.

    Forward and backward both call this, so that the compiler fuses alike and the weights are the same to the bit."""
    factor = scale
    derivative = 1.0
    if CAPPED:
        capped = tanh(s * (scale / cap))
        derivative = 1.0 - capped * capped
        s = capped * cap
        factor = 1.0
    if ALIBI:
        s = s * factor - slope * tl.abs(position - key).to(ACC)
        factor = 1.0
    if MASKED:
        s = tl.where(sees(position, key, n_keys, left, right, CAUSAL, LEFT, RIGHT), s, float("-inf"))
    if KEYED:
        s = tl.where(there, s, float("-inf"))
    return s, factor, derivative


@triton.jit
def dropout_keeps(
    seed, first_query, first_key, head, threshold, QUERIES: tl.constexpr, KEYS: tl.constexpr, KEYS_FIRST: tl.constexpr
):
    """Whether dropout keeps the weights of a tile, (QUERIES, KEYS) or with KEYS_FIRST (KEYS, QUERIES), from a counter:
    the backward draws the same again.

    One draw of Philox gives four numbers: for queries i and i + 8, and for each of these keys j and j + 8. In a tile as
    the tensor cores lay it out, either way round, these four are one thread's: none is sent to another."""
    query = first_query // 2 + tl.arange(0, QUERIES // 2)
    key = first_key // 2 + tl.arange(0, KEYS // 2)
    if KEYS_FIRST:
        w0, w2, w1, w3 = _draws(seed, query[None, :], key[:, None], head)
        R: tl.constexpr = KEYS
        C: tl.constexpr = QUERIES
    else:
        w0, w1, w2, w3 = _draws(seed, query[:, None], key[None, :], head)
        R: tl.constexpr = QUERIES
        C: tl.constexpr = KEYS
    upper = tl.join(_keeps(w0, threshold), _keeps(w1, threshold))  # (R / 2, C / 2, 2): columns j and j + 8
    lower = tl.join(_keeps(w2, threshold), _keeps(w3, threshold))
    kept = tl.join(upper, lower).reshape(R // 16, 8, C // 16, 8, 2, 2).permute(0, 5, 1, 2, 4, 3)
    return kept.reshape(R, C)


@triton.jit
def _draws(seed, query, key, head):
    """Four words of 32 random bits for each pair of a query and a key; they broadcast."""
    zero = query * 0 + key * 0
    return tl.philox(seed, zero + key, zero + query, zero + head, zero, PHILOX_ROUNDS)


@triton.jit
def _keeps(bits, threshold):
    return (bits >> 8).to(tl.int32) >= threshold


@triton.jit
def rows(pointer, row, stride, column, n_rows, n_columns, MASK_ROWS: tl.constexpr, MASK_COLUMNS: tl.constexpr):
    """A tile (R, C) of a matrix, zeros past its last row and column."""
    pointers = pointer + row[:, None] * stride + column[None, :]
    if MASK_ROWS and MASK_COLUMNS:
        return tl.load(pointers, (row[:, None] < n_rows) & (column[None, :] < n_columns), 0.0)
    if MASK_ROWS:
        return tl.load(pointers, row[:, None] < n_rows, 0.0)
    if MASK_COLUMNS:
        return tl.load(pointers, column[None, :] < n_columns, 0.0)
    return tl.load(pointers)


@triton.jit
def stats_offset(b, h, H, row0, n_rows, VARLEN: tl.constexpr):
    """The index of a head's first row where there is one number a row, laid out (B, H, T), or (H, T) if packed."""
    if VARLEN:
        return wide(h) * n_rows + row0
    return (wide(b) * H + h) * n_rows


@triton.jit
def store_rows(
    OUT, tile, b, h, H, row0, first_row, n_rows, T,
    D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, VARLEN: tl.constexpr,
):  # fmt: skip
    """Store a tile of rows of one head into a tensor laid out (B, T, H, D) without gaps."""
    r = tl.arange(0, BLOCK_R)
    d = tl.arange(0, BLOCK_D)
    before = row0 if VARLEN else wide(b) * T
    base = OUT + (wide(before + first_row) * H + h) * D
    inside = (first_row + r < n_rows)[:, None]
    if BLOCK_D != D:
        inside = inside & (d < D)[None, :]
    tl.store(base + r[:, None] * (H * D) + d[None, :], tile.to(OUT.dtype.element_ty), inside)
