"""The batches of evaluation: fixed windows of a stream, or lines, the same at every call."""

from collections.abc import Callable, Iterator

import numpy as np

from data.batches import Array, Batch, cut_lines, lines_at, windows_at
from data.store import Split
from data.token_file import TokenFile

EVAL_TOKENS_A_BATCH = 8192


def eval_batches(split: Split, context: int, max_tokens: int, history: int = 0) -> Callable[[], Iterator[Batch[Array]]]:
    """The fixed windows of evaluation: a function that returns a new iterator over them at each call.

    A stream is cut into consecutive windows of `context` targets, lines into lines. Of a split of more than
    `max_tokens` tokens, evenly spaced windows are taken, always the same. `history`: the number of earlier tokens in
    `Batch.prefix` (n-gram counts need the tokens before a window)."""
    if split.offsets is None:
        return lambda: _eval_windows(split, context, max_tokens, history)
    return lambda: _eval_lines(split, context, max_tokens, history)


def _eval_windows(split: Split, context: int, max_tokens: int, history: int) -> Iterator[Batch[Array]]:
    tokens, n_targets = split.tokens, len(split.tokens) - 1
    starts = context * _evenly(-(-n_targets // context), max_tokens // context, n_targets > max_tokens)
    widths = np.minimum(context, n_targets - starts)  # the last one may be smaller
    rows_a_batch = max(1, EVAL_TOKENS_A_BATCH // context)
    for group in np.split(starts, np.flatnonzero(np.diff(widths)) + 1):
        for rows in np.split(group, range(rows_a_batch, len(group), rows_a_batch)):
            batch = windows_at(tokens, rows, np.arange(min(context, n_targets - rows[0]) + 1), split.special)
            yield _with_prefix(batch, tokens, rows, np.zeros_like(rows), history, split.special.bos)


def _eval_lines(split: Split, context: int, max_tokens: int, history: int) -> Iterator[Batch[Array]]:
    tokens, pieces = split.tokens, cut_lines(split.offsets, context)
    fitting = int(len(pieces.start) * max_tokens / len(split.tokens))
    chosen = _evenly(len(pieces.start), fitting, len(split.tokens) > max_tokens)
    chosen = chosen[np.argsort((pieces.end - pieces.start)[chosen], kind="stable")]
    rows_a_batch = max(1, EVAL_TOKENS_A_BATCH // int((pieces.end - pieces.start).max()))
    for items in np.split(chosen, range(rows_a_batch, len(chosen), rows_a_batch)):
        batch = lines_at(tokens, pieces, items, split.special)
        yield _with_prefix(batch, tokens, pieces.start[items] - 1, pieces.row[items], history, split.special.bos)


def _with_prefix(batch: Batch[Array], ids: TokenFile, first: Array, row: Array, history: int, bos: int) -> Batch[Array]:
    """`batch` with the `history` tokens before each of its rows. `first` (B,): the position of a row's first input;
    `row` (B,): that of the beginning of its line or text, before which `<bos>` stands."""
    if not history:
        return batch._replace(position=None)
    positions = first[:, None] - np.arange(history, 0, -1)  # (B, history)
    inside = positions >= row[:, None]
    prefix = np.where(inside, ids.take(np.where(inside, positions, 0)), bos)
    return batch._replace(position=None, prefix=prefix.astype(np.int64))


def _evenly(n: int, count: int, needed: bool) -> Array:
    """All numbers below `n`, or where that is `needed` about `count` of them, evenly spaced: int64."""
    return np.linspace(0, n - 1, max(1, count)).astype(np.int64) if needed else np.arange(n)
