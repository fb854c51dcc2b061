"""A batch, whatever the kind of data, made of windows of a stream or of padded lines.

A batch is arrays of NumPy until it goes to a device: nothing here needs torch, which is imported only there. Which
windows or lines a batch has, a loader says (loaders.py)."""

from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from data.store import Split
from data.token_file import TokenFile
from data.tokenizers import Special

if TYPE_CHECKING:
    import torch

Array = NDArray[Any]
Numbers = TypeVar("Numbers")  # Array, and after `to` torch.Tensor
IGNORE = -1  # a target that is left out of the loss: padding, an unknown character


class Batch(NamedTuple, Generic[Numbers]):
    """One batch, whatever the kind of data. `fresh` is False where the model's state is carried over from the previous
    batch."""

    tokens: Numbers  # (B, T) int64
    targets: Numbers  # (B, T) int64, IGNORE where nothing is to be predicted
    n_tokens: int  # valid targets, of whatever weight
    fresh: bool = True
    position: Numbers | None = None  # (B,) int64, in training: index of each row's first target in `counting_arrays`
    prefix: Numbers | None = None  # (B, history) int64, in evaluation: the tokens before each row, or `<bos>`; of rows
    # that have a source, in training too: (B, S), padded on the right
    weight: Numbers | None = None  # (B, T) float32, in training: what the loss of each target counts; None: 1
    starts: Numbers | None = None  # (N + 1,) int32, always on the CPU: of N rows laid end to end in one
    # (data/end_to_end.py), where each begins, and where the last ends

    @property
    def divisor(self) -> float:
        """What the summed loss is divided by: the number of valid targets, or the sum of their weights."""
        weight: Any = self.weight
        return self.n_tokens if weight is None else float(weight[self.targets != IGNORE].sum())

    def near(self, device: "torch.device") -> "Batch[torch.Tensor]":
        """The batch as tensors in the memory of the CPU, from where a copy to a GPU is asynchronous."""
        import torch

        arrays = {name: array for name, array in self._asdict().items() if isinstance(array, np.ndarray)}
        tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if device.type == "cuda":
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return self._replace(**tensors)  # type: ignore[return-value]  # it is of tensors now

    def to(self, device: "torch.device") -> "Batch[torch.Tensor]":
        """The batch, of arrays or `near`, as tensors on `device`, but for `starts`."""
        import torch

        batch: Any = self.near(device)
        tensors = {name: value for name, value in batch._asdict().items() if isinstance(value, torch.Tensor)}
        is_far = device.type == "cuda"
        moved = {n: tensor.to(device, non_blocking=is_far) for n, tensor in tensors.items() if n != "starts"}
        return batch._replace(**moved)


class Pieces(NamedTuple):
    """Lines cut to at most the context: positions in the flat ids, shape (pieces,) each. The targets are [start, end);
    the whole line starts at `row`."""

    row: Array
    start: Array
    end: Array


def cut_lines(offsets: Array | None, context: int) -> Pieces:
    """The pieces of all lines: one a line, or several where it is longer than `context` tokens (its `<eos>`
    included)."""
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


def counting_arrays(split: Split) -> tuple[Array, Array, Array]:
    """A whole split for a model that counts: inputs, targets, and each target's position in its own row, (N,) each."""
    ids = np.asarray(split.tokens.array())
    if split.offsets is None:
        return ids[:-1], ids[1:], np.arange(len(ids) - 1)
    position = np.arange(len(ids)) - np.repeat(split.offsets[:-1], np.diff(split.offsets))
    return np.where(position == 0, split.special.bos, np.roll(ids, 1)), ids, position


def windows_at(ids: TokenFile, starts: Array, offsets: Array, special: Special) -> Batch[Array]:
    """The windows of `ids` that begin at `starts` (B,)."""
    window = ids.take(starts[:, None] + offsets).astype(np.int64)  # (B, T + 1)
    return _batch(window[:, :-1], window[:, 1:].copy(), starts, special)


def _batch(tokens: Array, targets: Array, position: Array, special: Special) -> Batch[Array]:
    targets[targets == special.unk] = IGNORE
    return Batch(tokens, targets, int((targets != IGNORE).sum()), position=position)


def lines_at(ids: TokenFile, pieces: Pieces, items: Array, special: Special) -> Batch[Array]:
    """The pieces with the numbers `items` (B,), padded to the longest."""
    start, end = pieces.start[items][:, None], pieces.end[items][:, None]
    positions = start + np.arange(int((end - start).max()))  # (B, T), of the targets
    inside = positions < end
    targets = np.where(inside, ids.take(np.minimum(positions, len(ids) - 1)), special.pad).astype(np.int64)
    tokens = np.empty_like(targets)
    tokens[:, 1:] = targets[:, :-1]  # padded inputs are `<pad>`, but for an <eos> as the first: nothing reads it
    first = start[:, 0]
    begins = first == pieces.row[items]
    tokens[:, 0] = special.bos if begins.all() else np.where(begins, special.bos, ids.take(np.maximum(first - 1, 0)))
    targets[~inside] = IGNORE
    return _batch(tokens, targets, first, special)
