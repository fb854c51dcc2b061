"""Rows of a fine-tuning set: tokens and targets, batched by length.

The same `Batch` as everywhere. A labelled text has its class as the target of its last token, a conversation the tokens
of its answers.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data.batches import IGNORE, Array, Batch
from data.loaders import Deal, Loader

WINDOW = 20  # batches: among so many at a time, rows are sorted by length
EVAL_TOKENS = 8192  # of a batch in evaluation, padding included


class Row(NamedTuple):
    """One example: `tokens` and `targets`, both (T,), the latter IGNORE where nothing is predicted. `weight` (T,)
    float32: what the loss of each target counts; None: 1. `prefix` (S,): what the model is given before the row, as the
    source of a translation; None: nothing. All rows of a set have one, or none."""

    tokens: Array
    targets: Array
    weight: Array | None = None
    prefix: Array | None = None

    @property
    def size(self) -> int:
        """The number of tokens that are read, those of the prefix included."""
        return len(self.tokens) + (0 if self.prefix is None else len(self.prefix))


class PairRow(NamedTuple):
    """Two answers to one prompt, the better and the worse one: an example of `--dpo`."""

    chosen: Row
    rejected: Row

    @property
    def tokens(self) -> Array:
        """The tokens of the longer row."""
        return max(self.chosen.tokens, self.rejected.tokens, key=len)

    @property
    def size(self) -> int:
        """The number of tokens of the longer row."""
        return len(self.tokens)


HasTokens = Row | PairRow


class RowLoader(Loader):
    """Rows in a new order each epoch, padded to the longest of their batch. Rows are sorted by length within a window
    of 20 batches, and the batches are then shuffled. The last batch of an epoch may be smaller; no batch has rows of
    two epochs."""

    def __init__(self, rows: Sequence[HasTokens], batch_size: int, seed: int, pad: int):
        super().__init__(batch_size, seed)
        self.rows, self.pad = rows, pad
        self._lengths = np.array([len(row.tokens) for row in rows])

    @property
    def longest(self) -> int:
        return int(self._lengths.max())

    def deal(self) -> Deal:
        order, epoch = self._begin_epoch() if self._order is None else self._order, self.epoch
        items = order[self.position : self.position + self.batch_size]
        self.position += len(items)
        if self.position == len(order):
            self.epoch, self.position, self._order = self.epoch + 1, 0, None
        return Deal(items, epoch=epoch)

    def _batch(self, items: Array) -> Batch[Array]:
        return collate([self.rows[i] for i in items], self.pad)

    def _epoch_order(self, rng: np.random.Generator) -> Array:
        order = rng.permutation(len(self.rows))
        whole = self.batch_size
        batches = []
        for start in range(0, len(order), WINDOW * whole):
            window = order[start : start + WINDOW * whole]
            window = window[np.argsort(self._lengths[window], kind="stable")]
            batches += [window[i : i + whole] for i in range(0, len(window), whole)]
        last = [batch for batch in batches if len(batch) < whole]  # stays at the end: positions count whole batches
        batches = [batch for batch in batches if len(batch) == whole]
        return np.concatenate([batches[i] for i in rng.permutation(len(batches))] + last)


def eval_rows(rows: Sequence[HasTokens], pad: int) -> Callable[[], Iterator[Batch[Array]]]:
    """All rows in order of length: a function that returns a new iterator over their batches at each call."""
    return lambda: (collate([rows[i] for i in batch], pad) for batch in by_length(rows))


def by_length(rows: Sequence[HasTokens]) -> Iterator[list[int]]:
    """The indices of the rows of each batch of evaluation, short rows first."""
    batch: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: rows[i].size):
        if batch and rows[i].size * (len(batch) + 1) > EVAL_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def collate(rows: Sequence[HasTokens], pad: int) -> Batch[Array]:
    """One batch of `rows`, padded on the right; of pairs first all chosen rows, then all rejected ones, and a pair
    counts as one token."""
    pairs = [row for row in rows if isinstance(row, PairRow)]
    if pairs:
        both = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
        return _padded(both, pad)._replace(n_tokens=len(pairs))
    return _padded([row for row in rows if not isinstance(row, PairRow)], pad)


def _padded(rows: list[Row], pad: int) -> Batch[Array]:
    T = max(len(row.tokens) for row in rows)
    tokens: Array = np.full((len(rows), T), pad, np.int64)
    targets = np.full_like(tokens, IGNORE)
    for i, row in enumerate(rows):
        tokens[i, : len(row.tokens)] = row.tokens
        targets[i, : len(row.targets)] = row.targets
    batch = Batch(tokens, targets, int((targets != IGNORE).sum()))
    if any(row.prefix is not None for row in rows):
        batch = batch._replace(prefix=_prefixes(rows, pad))
    if all(row.weight is None for row in rows):
        return batch
    weight: Array = np.ones((len(rows), T), np.float32)
    for i, row in enumerate(rows):
        weight[i, : len(row.tokens)] = 1.0 if row.weight is None else row.weight
    return batch._replace(weight=weight)


def _prefixes(rows: list[Row], pad: int) -> Array:
    """What stands before each row, (B, S), padded on the right; at least one token wide."""
    parts = [np.zeros(0, np.int64) if row.prefix is None else row.prefix for row in rows]
    prefixes: Array = np.full((len(rows), max(1, *map(len, parts))), pad, np.int64)
    for i, part in enumerate(parts):
        prefixes[i, : len(part)] = part
    return prefixes
