"""Endless training loaders over a token store, which resume exactly.

A training loader holds no random generator between batches: the order of an epoch follows from (seed, epoch), so its
whole state is two numbers. The order of a large epoch is not held either (orders.py). Which items a batch has is one
step, `deal`, and making it of them another, `batch`: of several processes each deals all batches and makes its own
share of them.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from data.batches import Array, Batch, cut_lines, lines_at, windows_at
from data.errors import UserError
from data.orders import ComputedOrder, Permutation
from data.store import Split

LARGE_EPOCH = 1 << 22  # items: the order of more is computed, of fewer an array


class Deal(NamedTuple):
    """The items of one batch, and whether it is fresh, see `Batch`. `counts` is False for what only keeps a process
    busy that has no share. `epoch`: in which the first of them is dealt."""

    items: Array  # (B,)
    fresh: bool = True
    counts: bool = True
    epoch: int = 0

    def share(self, rank: int, world: int) -> "Deal":
        """The consecutive items that process `rank` of `world` has, where the rows of a batch are divided. A batch may
        have fewer rows than there are processes: then some have a row that does not count."""
        items = np.array_split(self.items, world)[rank]
        return self._replace(items=items) if len(items) else self._replace(items=self.items[:1], counts=False)


class Loader:
    """An endless sequence of batches of `batch_size` items, in a new random order each epoch.

    `masking`: what hides a part of each batch, see data/masking.py; None: nothing.

    `computes_order`: whether the random order of an epoch of more than LARGE_EPOCH items is computed, a part at a time,
    instead of an array of 8 bytes an item. It is another order: runs of formats that began with the array keep it."""

    def __init__(self, batch_size: int, seed: int, computes_order: bool = False):
        self.batch_size, self.seed, self.computes_order = batch_size, seed, computes_order
        self.epoch, self.position = 0, 0
        self.masking: Callable[[Batch[Array], Array, int], Batch[Array]] | None = None
        self._order: Array | ComputedOrder | None = None

    def next(self) -> Batch[Array]:
        """The next batch."""
        return self.batch(self.deal())

    def deal(self) -> Deal:
        """The items of the next batch."""
        epoch = self.epoch
        return Deal(self._take(self.batch_size), epoch=epoch)

    def batch(self, deal: Deal) -> Batch[Array]:
        """The batch of these items."""
        made = self._batch(deal.items)._replace(fresh=deal.fresh)
        return made if self.masking is None else self.masking(made, deal.items, deal.epoch)

    def state_dict(self) -> dict[str, int]:
        """The position of the loader: epoch, and item of the epoch."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from the position of another loader of the same data, sizes and seed."""
        self.epoch, self.position, self._order = state["epoch"], state["position"], None

    @property
    def longest(self) -> int:
        """The most tokens that a row of a batch can have."""
        raise NotImplementedError

    def _epoch_order(self, rng: np.random.Generator) -> Array | ComputedOrder:
        raise NotImplementedError

    def _shuffled(self, count: int, rng: np.random.Generator, scale: int = 1, shift: int = 0) -> Array | ComputedOrder:
        """The items scale * i + shift, for i below `count`, in random order."""
        if count <= LARGE_EPOCH or not self.computes_order:
            return shift + scale * rng.permutation(count)
        permutation = Permutation(count, rng)
        return ComputedOrder(count, lambda positions: shift + scale * permutation(positions))

    def _batch(self, items: Array) -> Batch[Array]:
        raise NotImplementedError

    def _begin_epoch(self) -> Array | ComputedOrder:
        self._order = self._epoch_order(np.random.default_rng((self.seed, self.epoch)))
        if self.position > len(self._order):
            raise UserError(
                f"the run stands at item {self.position:,} of an epoch that has {len(self._order):,}: its "
                "checkpoint is damaged, or not of this text"
            )
        return self._order

    def _take(self, count: int) -> Array:
        """The next `count` items, (count,), across the ends of epochs."""
        pieces = []
        while count:
            order = self._begin_epoch() if self._order is None else self._order
            piece = order[self.position : self.position + count]
            pieces.append(piece)
            count -= len(piece)
            self.position += len(piece)
            if self.position == len(order):
                self.epoch, self.position, self._order = self.epoch + 1, 0, None
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


class StreamLoader(Loader):
    """Windows of a stream: each epoch cuts the text at a new random phase and visits all windows in random order."""

    def __init__(self, split: Split, context: int, batch_size: int, seed: int, computes_order: bool = False):
        super().__init__(batch_size, seed, computes_order)
        check_context(split, context)
        self.tokens, self.special, self.context = split.tokens, split.special, context
        self._offsets = np.arange(context + 1)

    @property
    def longest(self) -> int:
        return self.context

    def _epoch_order(self, rng: np.random.Generator) -> Array | ComputedOrder:
        spare = len(self.tokens) - 1 - self.context
        phase = int(rng.integers(min(self.context, spare + 1)))
        return self._shuffled((len(self.tokens) - 1 - phase) // self.context, rng, self.context, phase)

    def _batch(self, items: Array) -> Batch[Array]:
        return windows_at(self.tokens, items, self._offsets, self.special)


class LaneLoader(Loader):
    """Consecutive windows along `batch_size` lanes of a stream, for truncated backpropagation through time: each
    batch continues the previous one, until the lanes end and a new epoch starts them at a new phase."""

    def __init__(self, split: Split, context: int, batch_size: int, seed: int, computes_order: bool = False):
        super().__init__(batch_size, seed, computes_order)
        check_context(split, context)
        self.tokens, self.special, self.context = split.tokens, split.special, context
        self._offsets = np.arange(context + 1)
        self._lanes = batch_size
        self._windows = (len(self.tokens) - 1) // (self._lanes * context)
        if not self._windows:
            fits = (len(self.tokens) - 1) // context
            raise UserError(
                f"the training text of {len(self.tokens):,} tokens is too short for {self._lanes} lanes of context "
                f"{context}; the largest --batch-size that fits is {fits}"
            )

    @property
    def longest(self) -> int:
        return self.context

    def _epoch_order(self, rng: np.random.Generator) -> ComputedOrder:
        lane = self._windows * self.context
        phase = int(rng.integers(len(self.tokens) - self._lanes * lane))

        def starts(positions: Array) -> Array:
            window, of_lane = np.divmod(positions, self._lanes)
            return phase + lane * of_lane + self.context * window

        return ComputedOrder(self._windows * self._lanes, starts)

    def deal(self) -> Deal:
        fresh = self.position == 0
        return super().deal()._replace(fresh=fresh)

    def _batch(self, items: Array) -> Batch[Array]:
        return windows_at(self.tokens, items, self._offsets, self.special)


class LineLoader(Loader):
    """Lines with `<bos>` before and `<eos>` after them, padded to the longest of the batch."""

    def __init__(self, split: Split, context: int, batch_size: int, seed: int, computes_order: bool = False):
        super().__init__(batch_size, seed, computes_order)
        self.tokens, self.special, self.pieces = split.tokens, split.special, cut_lines(split.offsets, context)

    @property
    def longest(self) -> int:
        return int((self.pieces.end - self.pieces.start).max())

    def _epoch_order(self, rng: np.random.Generator) -> Array | ComputedOrder:
        # Not by length: batches of short lines would weigh their tokens more (docs/log.md has the figures).
        return self._shuffled(len(self.pieces.start), rng)

    def _batch(self, items: Array) -> Batch[Array]:
        return lines_at(self.tokens, self.pieces, items, self.special)


def check_context(split: Split, context: int) -> None:
    """Raise UserError for a stream too short for one window of `context` tokens and their targets."""
    if len(split.tokens) < context + 1:
        raise UserError(
            f"the training text has {len(split.tokens):,} tokens, too short for a context of {context}; "
            f"the largest context that fits is {len(split.tokens) - 1}"
        )
