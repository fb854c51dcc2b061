"""The token store on disk: flat ids of both splits, row offsets where the kind has rows, the tokenizer, and notes.

    <folder>/meta.json  tokenizer.json  train.bin  val.bin  [train.offsets.bin  val.offsets.bin]

Ids are uint16 or uint32, offsets uint64 (rows + 1 of them). Everything is read through memory maps.
"""

import json
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import UserError
from data.tokenizers import Special, Tokenizer
from data.vocabulary import from_json

FORMAT = 2  # of what is prepared, part of its key: rises with every change of how a text is split or tokenized
IN_MEMORY = 64 << 20  # bytes: smaller files are simply loaded
SCAN = 1 << 22  # ids checked at a time


class TokenFile:
    """A flat file of ids, read by position.

    A large one is memory-mapped, and its pages are given back before each read: what was once touched counts as this
    process's memory (up to 2 MB around every window), so training would soon hold the whole file. It costs 25 us."""

    def __init__(self, path: Path, dtype: type[np.unsignedinteger]):
        self.path, self.dtype = path, np.dtype(dtype)
        self.size = path.stat().st_size // self.dtype.itemsize
        self._map = None
        if path.stat().st_size <= IN_MEMORY:
            self._array = np.fromfile(path, dtype)
        else:
            with open(path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._array = np.frombuffer(self._map, dtype)

    def __len__(self) -> int:
        return self.size

    def array(self) -> np.ndarray:
        """The ids, shape (tokens,): in memory when small, a memory map otherwise. Ask anew for every read."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
        return self._array

    def check(self, vocab_size: int) -> None:
        """Raise ValueError when an id is outside the vocabulary."""
        for start in range(0, self.size, SCAN):
            ids = np.fromfile(self.path, self.dtype, SCAN, offset=start * self.dtype.itemsize)
            if len(ids) and int(ids.max()) >= vocab_size:
                raise ValueError(f"{self.path.name} holds the id {int(ids.max())}, the vocabulary has {vocab_size}")


@dataclass
class Split:
    """One side of a prepared text. `offsets`, shape (rows + 1,), is None for a stream."""

    tokens: TokenFile
    offsets: np.ndarray | None
    special: Special = Special()


@dataclass
class Store:
    """A prepared text: both splits, its tokenizer, and what `meta.json` says (kind, key, start text, notes)."""

    folder: Path
    meta: dict[str, Any]
    tokenizer: Tokenizer
    train: Split
    val: Split

    @property
    def kind(self) -> str:
        return self.meta["kind"]

    @property
    def key(self) -> str:
        return self.meta["key"]


def open_store(folder: Path) -> Store:
    """Open and check a prepared text. Raises UserError when a file is missing, torn or holds foreign ids."""
    try:
        meta = json.loads((folder / "meta.json").read_text("utf-8"))
        tokenizer = from_json(json.loads((folder / "tokenizer.json").read_text("utf-8")))
        splits = {name: _open_split(folder, name, meta, tokenizer) for name in ("train", "val")}
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(f"{folder} is not a prepared text ({error}); delete it to prepare the text again") from error
    return Store(folder, meta, tokenizer, **splits)


def _open_split(folder: Path, name: str, meta: dict[str, Any], tokenizer: Tokenizer) -> Split:
    tokens = TokenFile(folder / f"{name}.bin", tokenizer.dtype)
    if len(tokens) != meta["tokens"][name]:
        raise ValueError(f"{name}.bin holds {len(tokens)} ids, not {meta['tokens'][name]}")
    tokens.check(tokenizer.vocab_size)
    if meta["kind"] == "stream":
        return Split(tokens, None, tokenizer.special)
    offsets = TokenFile(folder / f"{name}.offsets.bin", np.uint64).array()
    if not len(offsets) or int(offsets[-1]) != len(tokens) or np.any(offsets[1:] <= offsets[:-1]):
        raise ValueError(f"{name}.offsets.bin does not fit {name}.bin")
    return Split(tokens, offsets.astype(np.int64), tokenizer.special)
