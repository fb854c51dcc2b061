"""Batches out of a token store: endless training loaders that resume exactly, and the fixed windows of evaluation.

A training loader holds no random generator between batches: the order of an epoch follows from (seed, epoch), so its
whole state is two numbers. Every loader deals whole batches round-robin to `world` ranks.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.errors import UserError
from data.store import Split
from data.tokenizers import Special

IGNORE = -1  # a target that counts for nothing: padding, an unknown character
EVAL_TOKENS_A_BATCH = 8192


class Batch(NamedTuple):
    """What every kind of data becomes. `fresh` is False where the model's state is carried over from the batch
    before."""

    tokens: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64, IGNORE where nothing is to be predicted
    n_tokens: int  # valid targets
    fresh: bool = True
    place: Tensor | None = None  # (B,) int64, in training: where each row's first target stands in `counting_arrays`
    before: Tensor | None = (
        None  # (B, history) int64, in evaluation: what stands before each row, `<bos>` before a text
    )

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`, copied without waiting where that is a GPU."""
        if device.type == "cpu":
            return self
        moved: dict[str, Any] = {name: part for name, part in self._asdict().items() if isinstance(part, Tensor)}
        if device.type == "cuda":
            moved = {name: part.pin_memory() for name, part in moved.items()}
        return self._replace(
            **{name: part.to(device, non_blocking=device.type == "cuda") for name, part in moved.items()}
        )


class Loader:
    """An endless sequence of batches of `batch_size` items, in a new random order each epoch."""

    def __init__(self, batch_size: int, seed: int, rank: int = 0, world: int = 1):
        self.batch_size, self.seed, self.rank, self.world = batch_size, seed, rank, world
        self.epoch, self.position = 0, 0
        self._order: np.ndarray | None = None

    def next(self) -> Batch:
        """The next batch of this rank."""
        taken = self._take(self.batch_size * self.world)
        return self._batch(taken[self.rank * self.batch_size :][: self.batch_size])

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where another loader of the same data, sizes and seed stood."""
        self.epoch, self.position, self._order = state["epoch"], state["position"], None

    def _epoch_order(self, rng: np.random.Generator) -> np.ndarray:
        raise NotImplementedError

    def _batch(self, items: np.ndarray) -> Batch:
        raise NotImplementedError

    def _begin_epoch(self) -> np.ndarray:
        self._order = self._epoch_order(np.random.default_rng((self.seed, self.epoch)))
        if self.position > len(self._order):
            raise UserError(
                f"the run stands at item {self.position:,} of an epoch that has {len(self._order):,}: its "
                "checkpoint is damaged, or not of this text"
            )
        return self._order

    def _take(self, count: int) -> np.ndarray:
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

    def __init__(self, split: Split, context: int, batch_size: int, seed: int, rank: int = 0, world: int = 1):
        super().__init__(batch_size, seed, rank, world)
        check_context(split, context)
        self.tokens, self.special, self.context = split.tokens, split.special, context
        self._offsets = np.arange(context + 1)

    def _epoch_order(self, rng: np.random.Generator) -> np.ndarray:
        spare = len(self.tokens) - 1 - self.context
        phase = int(rng.integers(min(self.context, spare + 1)))
        return phase + self.context * rng.permutation((len(self.tokens) - 1 - phase) // self.context)

    def _batch(self, items: np.ndarray) -> Batch:
        return _windows(self.tokens.array(), items, self._offsets, self.special)


class LaneLoader(Loader):
    """Consecutive windows along `batch_size` lanes of a stream, for truncated backpropagation through time: each
    batch goes on where the one before it stopped, until the lanes end and a new epoch starts them at a new phase."""

    def __init__(self, split: Split, context: int, batch_size: int, seed: int, rank: int = 0, world: int = 1):
        super().__init__(batch_size, seed, rank, world)
        check_context(split, context)
        self.tokens, self.special, self.context = split.tokens, split.special, context
        self._offsets = np.arange(context + 1)
        self._lanes = batch_size * world
        self._windows = (len(self.tokens) - 1) // (self._lanes * context)
        if not self._windows:
            fits = (len(self.tokens) - 1) // context
            raise UserError(
                f"the training text of {len(self.tokens):,} tokens is too short for {self._lanes} lanes of context "
                f"{context}; the largest --batch-size that fits is {fits // world}"
            )

    def _epoch_order(self, rng: np.random.Generator) -> np.ndarray:
        lane = self._windows * self.context
        phase = int(rng.integers(len(self.tokens) - self._lanes * lane))
        starts = phase + lane * np.arange(self._lanes)[None, :] + self.context * np.arange(self._windows)[:, None]
        return starts.reshape(-1)

    def next(self) -> Batch:
        fresh = self.position == 0
        return super().next()._replace(fresh=fresh)

    def _batch(self, items: np.ndarray) -> Batch:
        return _windows(self.tokens.array(), items, self._offsets, self.special)


class LineLoader(Loader):
    """Lines, `<bos>` before and `<eos>` after, padded to the longest of the batch."""

    def __init__(self, split: Split, context: int, batch_size: int, seed: int, rank: int = 0, world: int = 1):
        super().__init__(batch_size, seed, rank, world)
        self.tokens, self.special, self.pieces = split.tokens, split.special, cut_lines(split.offsets, context)

    def _epoch_order(self, rng: np.random.Generator) -> np.ndarray:
        # Not by length: batches of short lines would weigh their tokens more (docs/log.md has the figures).
        return rng.permutation(len(self.pieces.start))

    def _batch(self, items: np.ndarray) -> Batch:
        return _rows(self.tokens.array(), self.pieces, items, self.special)


class Pieces(NamedTuple):
    """Lines cut to at most the context: positions in the flat ids, shape (pieces,) each. Targets are [start, end);
    `row` is where the line itself starts."""

    row: np.ndarray
    start: np.ndarray
    end: np.ndarray


def cut_lines(offsets: np.ndarray | None, context: int) -> Pieces:
    """Each line as one piece, or as several where it is longer than `context` tokens (its `<eos>` included)."""
    assert offsets is not None  # a stream has no lines
    lengths = np.diff(offsets)
    count = -(-lengths // context)
    row = np.repeat(offsets[:-1], count)
    nth = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    start = row + nth * context
    return Pieces(row, start, np.minimum(start + context, np.repeat(offsets[1:], count)))


def longest_line(split: Split) -> int:
    """Tokens of the longest line, its `<eos>` included."""
    assert split.offsets is not None  # a stream has no lines
    return int(np.diff(split.offsets).max())


def check_context(split: Split, context: int) -> None:
    """Raise UserError when not even one window of a stream has `context` tokens and a target for each."""
    if len(split.tokens) < context + 1:
        raise UserError(
            f"the training text has {len(split.tokens):,} tokens, too short for a context of {context}; "
            f"the largest context that fits is {len(split.tokens) - 1}"
        )


def counting_arrays(split: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All of a split for a model that counts: inputs, targets, and each target's place in its own row, (N,) each."""
    ids = np.asarray(split.tokens.array())
    if split.offsets is None:
        return ids[:-1], ids[1:], np.arange(len(ids) - 1)
    position = np.arange(len(ids)) - np.repeat(split.offsets[:-1], np.diff(split.offsets))
    return np.where(position == 0, split.special.bos, np.roll(ids, 1)), ids, position


def eval_batches(split: Split, context: int, max_tokens: int, history: int = 0) -> Callable[[], Iterator[Batch]]:
    """The fixed windows of evaluation: a function that goes through them once more at each call.

    A stream is cut into consecutive windows of `context` targets, lines into lines. Where the split holds more than
    `max_tokens`, evenly spaced ones of them are taken, always the same. `history`: how many earlier tokens come along
    in `before` (n-gram counts see their true history)."""
    if split.offsets is None:
        return lambda: _eval_windows(split, context, max_tokens, history)
    return lambda: _eval_lines(split, context, max_tokens, history)


def _eval_windows(split: Split, context: int, max_tokens: int, history: int) -> Iterator[Batch]:
    ids, last = split.tokens.array(), len(split.tokens) - 1
    starts = _evenly(np.arange(0, last, context), max_tokens // context, last > max_tokens)
    widths = np.minimum(context, last - starts)  # that of the last one may be smaller
    rows_a_batch = max(1, EVAL_TOKENS_A_BATCH // context)
    for group in np.split(starts, np.flatnonzero(np.diff(widths)) + 1):
        for some in np.split(group, range(rows_a_batch, len(group), rows_a_batch)):
            batch = _windows(ids, some, np.arange(min(context, last - some[0]) + 1), split.special)
            yield _with_before(batch, ids, some, np.zeros_like(some), history, split.special.bos)


def _eval_lines(split: Split, context: int, max_tokens: int, history: int) -> Iterator[Batch]:
    ids, pieces = split.tokens.array(), cut_lines(split.offsets, context)
    fitting = int(len(pieces.start) * max_tokens / len(split.tokens))
    chosen = _evenly(np.arange(len(pieces.start)), fitting, len(split.tokens) > max_tokens)
    chosen = chosen[np.argsort((pieces.end - pieces.start)[chosen], kind="stable")]
    rows_a_batch = max(1, EVAL_TOKENS_A_BATCH // int((pieces.end - pieces.start).max()))
    for some in np.split(chosen, range(rows_a_batch, len(chosen), rows_a_batch)):
        batch = _rows(ids, pieces, some, split.special)
        yield _with_before(batch, ids, pieces.start[some] - 1, pieces.row[some], history, split.special.bos)


def _with_before(batch: Batch, ids: np.ndarray, first: np.ndarray, row: np.ndarray, history: int, bos: int) -> Batch:
    """`batch`, whose rows' first inputs stand at `first` (B,) in lines or a text that begin at `row` (B,), with the
    `history` tokens before it."""
    at = first[:, None] - np.arange(history, 0, -1)  # (B, history)
    inside = at >= row[:, None]
    before = np.where(inside, ids[np.where(inside, at, 0)], bos)
    return batch._replace(place=None, before=torch.from_numpy(before.astype(np.int64)) if history else None)


def _evenly(items: np.ndarray, count: int, needed: bool) -> np.ndarray:
    if not needed:
        return items
    return items[np.linspace(0, len(items) - 1, max(1, count)).astype(np.int64)]


def _windows(ids: np.ndarray, starts: np.ndarray, offsets: np.ndarray, special: Special) -> Batch:
    """Windows of ids at `starts`."""
    window = torch.from_numpy(ids[starts[:, None] + offsets].astype(np.int64))  # (B, T + 1)
    return _batch(window[:, :-1], window[:, 1:].clone(), starts, special)


def _batch(tokens: Tensor, targets: Tensor, place: np.ndarray, special: Special) -> Batch:
    targets[targets == special.unk] = IGNORE
    return Batch(tokens, targets, int((targets != IGNORE).sum()), place=torch.from_numpy(place))


def _rows(ids: np.ndarray, pieces: Pieces, items: np.ndarray, special: Special) -> Batch:
    start, end = (part[items][:, None] for part in (pieces.start, pieces.end))
    at = start + np.arange(int((end - start).max()))  # (B, T) positions of the targets
    inside = at < end
    targets = np.where(inside, ids[np.minimum(at, len(ids) - 1)], special.pad).astype(np.int64)
    tokens = np.roll(targets, 1, axis=1)
    first = start[:, 0]
    tokens[:, 0] = np.where(first == pieces.row[items], special.bos, ids[np.maximum(first - 1, 0)])
    targets[~inside] = IGNORE
    # A padded input is `<pad>` by the roll, but for the <eos> that lands on the first padded place: nothing reads it.
    return _batch(torch.from_numpy(tokens), torch.from_numpy(targets), first, special)
