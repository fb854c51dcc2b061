"""Layer norm and RMS norm in Triton, forward and backward, with the residual add in the same pass.

A row up to `ONE_TILE` (launch.py) wide is read once and held in registers, several rows to a program where they are
narrow; a wider one is read tile by tile, three times. For the gradients of weight and bias a fixed number of programs
each writes a partial sum in float32, and the launcher adds these up: no atomics, the same bits on every run.
"""

import triton
import triton.language as tl

from kernels import interpreter
from kernels.dispatch import interpreting

if interpreting():
    interpreter.repair()


@triton.jit
def _load_sum(X, R, S, index, mask, HAS_R: tl.constexpr, ACC: tl.constexpr):
    """Load x; with a residual add it, and store the sum. Returns what a later load would give: the sum as rounded."""
    x = tl.load(X + index, mask, 0.0)
    if HAS_R:
        x = (x.to(ACC) + tl.load(R + index, mask, 0.0).to(ACC)).to(S.dtype.element_ty)
        tl.store(S + index, x, mask)
    return x.to(ACC)


@triton.jit
def _affine(y, W, B, column, inside, HAS_W: tl.constexpr, HAS_B: tl.constexpr, ACC: tl.constexpr):
    """y times the weight, plus the bias, where there are such."""
    if HAS_W:
        y = y * tl.load(W + column, inside, 0.0).to(ACC)[None, :]
    if HAS_B:
        y = y + tl.load(B + column, inside, 0.0).to(ACC)[None, :]
    return y


@triton.jit(do_not_specialize=["n_rows"])
def forward_kernel(
    X, R, W, B, Y, S, MEAN, RSTD, n_rows, C, eps,
    ROWS: tl.constexpr, BLOCK_C: tl.constexpr, WIDE: tl.constexpr, RMS: tl.constexpr, HAS_R: tl.constexpr,
    HAS_W: tl.constexpr, HAS_B: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Compute y, mean and rstd of some rows, and with a residual their sum s. `rstd` is 1 / sqrt(variance + eps)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK_C)
    base = (tl.zeros([ROWS], tl.int64) + row)[:, None] * C
    live = (row < n_rows)[:, None]
    if WIDE:
        mean = tl.zeros([ROWS], ACC)
        for start in range(0, C, BLOCK_C):
            inside = start + c < C
            x = _load_sum(X, R, S, base + (start + c)[None, :], live & inside[None, :], HAS_R, ACC)
            mean += tl.sum(x, 1)
        if HAS_R:
            tl.debug_barrier()  # the sums are read again below, by other threads of this program
        mean = mean / C
        drift = tl.zeros([ROWS], ACC)
        square_sum = tl.zeros([ROWS], ACC)
        if RMS:
            mean = tl.zeros([ROWS], ACC)
        SUM = S if HAS_R else X
        for start in range(0, C, BLOCK_C):
            inside = start + c < C
            mask = live & inside[None, :]
            d = tl.load(SUM + base + (start + c)[None, :], mask, 0.0).to(ACC) - mean[:, None]
            d = tl.where(mask, d, 0.0)
            drift += tl.sum(d, 1)
            square_sum += tl.sum(d * d, 1)
        drift = drift / C  # what rounding left in the mean, as below
        if RMS:
            drift = tl.zeros([ROWS], ACC)
        rstd = 1.0 / tl.sqrt(square_sum / C - drift * drift + eps)
        for start in range(0, C, BLOCK_C):
            inside = start + c < C
            mask = live & inside[None, :]
            d = tl.load(SUM + base + (start + c)[None, :], mask, 0.0).to(ACC) - mean[:, None] - drift[:, None]
            y = _affine(d * rstd[:, None], W, B, start + c, inside, HAS_W, HAS_B, ACC)
            tl.store(Y + base + (start + c)[None, :], y, mask)
        mean = mean + drift
    else:
        inside = c < C
        mask = live & inside[None, :]
        d = _load_sum(X, R, S, base + c[None, :], mask, HAS_R, ACC)
        mean = tl.zeros([ROWS], ACC)
        if not RMS:
            mean = tl.sum(d, 1) / C
            d = tl.where(mask, d - mean[:, None], 0.0)
            drift = tl.sum(d, 1) / C  # what rounding left in the mean: it matters where mean >> deviation
            d = tl.where(mask, d - drift[:, None], 0.0)
            mean = mean + drift
        rstd = 1.0 / tl.sqrt(tl.sum(d * d, 1) / C + eps)
        y = _affine(d * rstd[:, None], W, B, c, inside, HAS_W, HAS_B, ACC)
        tl.store(Y + base + c[None, :], y, mask)
    if not RMS:
        tl.store(MEAN + row, mean, row < n_rows)
    tl.store(RSTD + row, rstd, row < n_rows)


@triton.jit
def _normalized(S, index, mask, mean, rstd, RMS: tl.constexpr, ACC: tl.constexpr):
    """The normalised row before weight and bias, computed again from s, its mean and rstd."""
    x = tl.load(S + index, mask, 0.0).to(ACC)
    if not RMS:
        x = x - mean[:, None]
    return tl.where(mask, x * rstd[:, None], 0.0)


@triton.jit(do_not_specialize=["n_rows"])
def backward_kernel(
    S, W, MEAN, RSTD, DY, DS, DX, DW, DB, n_rows, C,
    ROWS: tl.constexpr, BLOCK_C: tl.constexpr, STAGES: tl.constexpr, RMS: tl.constexpr, HAS_S: tl.constexpr,
    HAS_W: tl.constexpr, HAS_B: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Compute dx of every n-th group of rows, held whole, and their part of dw and db. n is the number of programs.

    The next groups are loaded meanwhile (STAGES), and dw and db are summed over the rows of a group at the end only:
    memory is what a norm waits for."""
    c = tl.arange(0, BLOCK_C)
    inside = c < C
    w = tl.full([BLOCK_C], 1.0, ACC)
    if HAS_W:
        w = tl.load(W + c, inside, 0.0).to(ACC)
    dw = tl.zeros([ROWS, BLOCK_C], ACC)
    db = tl.zeros([ROWS, BLOCK_C], ACC)
    for group in tl.range(tl.program_id(0), tl.cdiv(n_rows, ROWS), tl.num_programs(0), num_stages=STAGES):
        row = group * ROWS + tl.arange(0, ROWS)
        live = row < n_rows
        mask = live[:, None] & inside[None, :]
        index = (tl.zeros([ROWS], tl.int64) + row)[:, None] * C + c[None, :]
        rstd = tl.load(RSTD + row, live, 0.0)
        mean = rstd
        if not RMS:
            mean = tl.load(MEAN + row, live, 0.0)
        x = _normalized(S, index, mask, mean, rstd, RMS, ACC)
        dy = tl.load(DY + index, mask, 0.0).to(ACC)
        if HAS_W:
            dw += dy * x
        if HAS_B:
            db += dy
        dy = dy * w[None, :]
        dx = dy - x * (tl.sum(dy * x, 1) / C)[:, None]
        if not RMS:
            dx = dx - (tl.sum(dy, 1) / C)[:, None]
        dx = dx * rstd[:, None]
        if HAS_S:
            dx = dx + tl.load(DS + index, mask, 0.0).to(ACC)
        tl.store(DX + index, dx, mask)
    partial = (tl.zeros([], tl.int64) + tl.program_id(0)) * C + c
    if HAS_W:
        tl.store(DW + partial, tl.sum(dw, 0), inside)
    if HAS_B:
        tl.store(DB + partial, tl.sum(db, 0), inside)


@triton.jit(do_not_specialize=["n_rows"])
def wide_rows_kernel(
    S, W, MEAN, RSTD, DY, DS, DX, n_rows, C,
    ROWS: tl.constexpr, BLOCK_C: tl.constexpr, RMS: tl.constexpr, HAS_S: tl.constexpr, HAS_W: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Compute dx of some rows that are too wide to be held."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK_C)
    live = row < n_rows
    base = (tl.zeros([ROWS], tl.int64) + row)[:, None] * C
    rstd = tl.load(RSTD + row, live, 0.0)
    mean = rstd
    if not RMS:
        mean = tl.load(MEAN + row, live, 0.0)
    dy_x_sum = tl.zeros([ROWS], ACC)
    dy_sum = tl.zeros([ROWS], ACC)
    for start in range(0, C, BLOCK_C):
        inside = start + c < C
        mask = live[:, None] & inside[None, :]
        index = base + (start + c)[None, :]
        dy = _affine(tl.load(DY + index, mask, 0.0).to(ACC), W, W, start + c, inside, HAS_W, False, ACC)
        dy_x_sum += tl.sum(dy * _normalized(S, index, mask, mean, rstd, RMS, ACC), 1)
        dy_sum += tl.sum(dy, 1)
    if RMS:
        dy_sum = tl.zeros([ROWS], ACC)
    for start in range(0, C, BLOCK_C):
        inside = start + c < C
        mask = live[:, None] & inside[None, :]
        index = base + (start + c)[None, :]
        dy = _affine(tl.load(DY + index, mask, 0.0).to(ACC), W, W, start + c, inside, HAS_W, False, ACC)
        x = _normalized(S, index, mask, mean, rstd, RMS, ACC)
        dx = (dy - x * (dy_x_sum / C)[:, None] - (dy_sum / C)[:, None]) * rstd[:, None]
        if HAS_S:
            dx = dx + tl.load(DS + index, mask, 0.0).to(ACC)
        tl.store(DX + index, dx, mask)


@triton.jit(do_not_specialize=["n_rows"])
def wide_weights_kernel(
    S, MEAN, RSTD, DY, DW, DB, n_rows, C,
    ROWS: tl.constexpr, BLOCK_C: tl.constexpr, RMS: tl.constexpr, HAS_W: tl.constexpr, HAS_B: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Compute what every n-th group of rows adds to one tile of columns of dw and db."""
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < C
    dw = tl.zeros([BLOCK_C], ACC)
    db = tl.zeros([BLOCK_C], ACC)
    for group in range(tl.program_id(0), tl.cdiv(n_rows, ROWS), tl.num_programs(0)):
        row = group * ROWS + tl.arange(0, ROWS)
        live = row < n_rows
        mask = live[:, None] & inside[None, :]
        index = (tl.zeros([ROWS], tl.int64) + row)[:, None] * C + c[None, :]
        rstd = tl.load(RSTD + row, live, 0.0)
        mean = rstd
        if not RMS:
            mean = tl.load(MEAN + row, live, 0.0)
        dy = tl.load(DY + index, mask, 0.0).to(ACC)
        dw += tl.sum(dy * _normalized(S, index, mask, mean, rstd, RMS, ACC), 0)
        db += tl.sum(dy, 0)
    partial = (tl.zeros([], tl.int64) + tl.program_id(0)) * C + c
    if HAS_W:
        tl.store(DW + partial, dw, inside)
    if HAS_B:
        tl.store(DB + partial, db, inside)
