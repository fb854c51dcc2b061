"""Rows of a fine-tuning set: tokens in, a target where one is wanted, batched by length.

The same `Batch` as everywhere: for a class its label stands at the last token, for an answer its tokens do.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from data.batches import IGNORE, Batch, Loader

WINDOW = 20  # batches: inside this many, rows of about one length go together
EVAL_TOKENS = 8192  # of a batch in evaluation, padding included


class Row(NamedTuple):
    """One example: `tokens` and `targets`, both (T,), the latter IGNORE where nothing is predicted."""

    tokens: np.ndarray
    targets: np.ndarray


class PairRow(NamedTuple):
    """Two rows that are compared: what `--dpo` learns from."""

    chosen: Row
    rejected: Row

    @property
    def tokens(self) -> np.ndarray:
        """Those of the longer one."""
        return max(self.chosen.tokens, self.rejected.tokens, key=len)


HasTokens = Row | PairRow


class RowLoader(Loader):
    """Rows in a new order each epoch, padded to the longest of their batch. Inside a window of 20 batches they are
    sorted by length, and the batches then shuffled: an epoch's end makes a batch smaller, never two epochs one."""

    def __init__(self, rows: Sequence[HasTokens], batch_size: int, seed: int, pad: int, rank: int = 0, world: int = 1):
        super().__init__(batch_size, seed, rank, world)
        self.rows, self.pad = rows, pad
        self._lengths = np.array([len(row.tokens) for row in rows])

    def next(self) -> Batch:
        order = self._begin_epoch() if self._order is None else self._order
        taken = order[self.position : self.position + self.batch_size * self.world]
        self.position += len(taken)
        if self.position == len(order):
            self.epoch, self.position, self._order = self.epoch + 1, 0, None
        return collate([self.rows[i] for i in taken[self.rank :: self.world]], self.pad)

    def _epoch_order(self, rng: np.random.Generator) -> np.ndarray:
        order = rng.permutation(len(self.rows))
        whole = self.batch_size * self.world
        batches = []
        for start in range(0, len(order), WINDOW * whole):
            window = order[start : start + WINDOW * whole]
            window = window[np.argsort(self._lengths[window], kind="stable")]
            batches += [window[i : i + whole] for i in range(0, len(window), whole)]
        last = [batch for batch in batches if len(batch) < whole]  # stays at the end: positions count whole batches
        batches = [batch for batch in batches if len(batch) == whole]
        return np.concatenate([batches[i] for i in rng.permutation(len(batches))] + last)


def eval_rows(rows: Sequence[HasTokens], pad: int) -> Callable[[], Iterator[Batch]]:
    """All rows in order of length: a function that goes through them once more at each call."""
    return lambda: (collate([rows[i] for i in batch], pad) for batch in by_length(rows))


def by_length(rows: Sequence[HasTokens]) -> Iterator[list[int]]:
    """The numbers of the rows of each batch of evaluation, short ones first."""
    batch: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i].tokens)):
        if batch and len(rows[i].tokens) * (len(batch) + 1) > EVAL_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def collate(rows: Sequence[HasTokens], pad: int) -> Batch:
    """One batch of `rows`, padded on the right; of pairs first all chosen rows, then all rejected ones, and a pair
    counts as one token. A rank that has none left gets one row, or two, that predict nothing."""
    nothing = Row(np.full(1, pad, np.int64), np.full(1, IGNORE, np.int64))
    pairs = [row for row in rows if isinstance(row, PairRow)]
    if pairs:
        both = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
        return _padded(both, pad)._replace(n_tokens=len(pairs))
    return _padded([row for row in rows if not isinstance(row, PairRow)] or [nothing], pad)


def _padded(rows: list[Row], pad: int) -> Batch:
    T = max(len(row.tokens) for row in rows)
    tokens = np.full((len(rows), T), pad, np.int64)
    targets = np.full_like(tokens, IGNORE)
    for i, row in enumerate(rows):
        tokens[i, : len(row.tokens)] = row.tokens
        targets[i, : len(row.targets)] = row.targets
    return Batch(torch.from_numpy(tokens), torch.from_numpy(targets), int((targets != IGNORE).sum()))
