"""The token store on disk: flat ids of both splits, row offsets where the kind has rows, the tokenizer, and notes.

    <folder>/meta.json  tokenizer.json  train.bin  val.bin  [train.offsets.bin  val.offsets.bin]

Ids are uint16 or uint32, offsets uint64 (rows + 1 of them). Everything is read through memory maps. `meta.json` has the
size and the CRC-32 of every other file, and its own; what earlier versions prepared has none, and is used all the same.
"""

import json
import mmap
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.disk import sync_folder
from data.errors import UserError
from data.json_files import Whole, check_schema, read_json
from data.tokenizers import Special, Tokenizer
from data.vocabulary import from_json

FORMAT = 2  # of what is prepared, part of its key: rises with every change of how a text is split or tokenized
IN_MEMORY = 64 << 20  # bytes: smaller files are simply loaded
_META = {
    "key": str, "kind": str, "name": str, "start": str, "notes": [str], "tokens": {"train": Whole(), "val": Whole()},
    "files?": dict,
}  # fmt: skip
SCAN = 1 << 18  # bytes checked at a time: they stay in the processor's cache


_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)  # errors that say what there is


class Damaged(UserError):
    """A prepared text of which something is missing, torn or foreign."""


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

    def check(self, limit: int | None, crc: int | None) -> None:
        """Raise ValueError when an id is not below `limit`, or the file has not the CRC-32 `crc` (None: not asked).
        One pass does both, in 0.7 s a GB."""
        found, buffer = 0, np.empty(SCAN // self.dtype.itemsize, self.dtype)
        with open(self.path, "rb", buffering=0) as file:
            while size := file.readinto(buffer.data):
                ids = buffer[: size // self.dtype.itemsize]
                if crc is not None:
                    found = zlib.crc32(ids.data, found)
                if limit is not None and len(ids) and int(ids.max()) >= limit:
                    raise ValueError(f"{self.path.name} holds the id {int(ids.max())}, the vocabulary has {limit}")
        if crc is not None and found != crc:
            raise ValueError(f"{self.path.name} has not the checksum that it was written with")

    def has(self, id_: int) -> bool:
        """Whether this id occurs."""
        return any(bool((ids == id_).any()) for ids in self._scan())

    def _scan(self) -> Iterator[np.ndarray]:
        for start in range(0, self.size, SCAN):
            yield np.fromfile(self.path, self.dtype, SCAN, offset=start * self.dtype.itemsize)


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


def seal(folder: Path, meta: dict[str, Any]) -> None:
    """Write `meta.json` beside the other files of a new store, with their sizes and checksums, and have all of it on
    the disk: after a power failure the store is whole or not there."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    files = {path.name: {"size": path.stat().st_size, "crc32": _crc(path)} for path in paths}
    meta = meta | {"files": files}
    meta["crc32"] = _meta_crc(meta)
    (folder / "meta.json").write_text(json.dumps(meta, indent=1), "utf-8")
    for path in (*paths, folder / "meta.json"):
        with open(path, "r+b") as file:
            os.fsync(file.fileno())
    sync_folder(folder)


def _meta_crc(meta: dict[str, Any]) -> int:
    """The CRC-32 of what `meta.json` says besides."""
    return zlib.crc32(json.dumps({name: value for name, value in meta.items() if name != "crc32"}).encode())


def _crc(path: Path) -> int:
    found = 0
    with open(path, "rb") as file:
        while piece := file.read(SCAN):
            found = zlib.crc32(piece, found)
    return found


def open_store(folder: Path) -> Store:
    """Open a prepared text and check all of it. Raises Damaged when a file is missing, torn, has another checksum than
    when it was written, or holds foreign ids, and UserError when the disk fails: what is there may be whole."""
    try:
        meta = read_json(folder / "meta.json", _META)
        if meta.get("crc32", crc := _meta_crc(meta)) != crc:
            raise ValueError("meta.json has not the checksum that it was written with")
        for name, sealed in meta.get("files", {}).items():
            check_schema(sealed, {"size": Whole(), "crc32": Whole()}, str(folder / "meta.json"), f"files.{name}")
            if (size := (folder / name).stat().st_size) != sealed["size"]:
                raise ValueError(f"{name} has {size:,} bytes, not {sealed['size']:,}")
        if _sealed_crc(meta, "tokenizer.json") not in (None, _crc(folder / "tokenizer.json")):
            raise ValueError("tokenizer.json has not the checksum that it was written with")
        tokenizer = from_json(read_json(folder / "tokenizer.json"))
        splits = {name: _open_split(folder, name, meta, tokenizer) for name in ("train", "val")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError) as error:
        cause = error.__cause__ if isinstance(error, UserError) else error
        if isinstance(cause, OSError) and not isinstance(cause, _MISSING):
            raise UserError(f"cannot read the prepared text {folder}: {cause.strerror}; try again") from error
        raise Damaged(f"{folder} is not a prepared text ({error}); delete it to prepare the text again") from error
    return Store(folder, meta, tokenizer, **splits)


def _open_split(folder: Path, name: str, meta: dict[str, Any], tokenizer: Tokenizer) -> Split:
    tokens = TokenFile(folder / f"{name}.bin", tokenizer.dtype)
    if len(tokens) != meta["tokens"][name]:
        raise ValueError(f"{name}.bin holds {len(tokens)} ids, not {meta['tokens'][name]}")
    tokens.check(tokenizer.vocab_size, _sealed_crc(meta, f"{name}.bin"))
    if meta["kind"] == "stream":
        return Split(tokens, None, tokenizer.special)
    file = TokenFile(folder / f"{name}.offsets.bin", np.uint64)
    file.check(None, _sealed_crc(meta, f"{name}.offsets.bin"))
    offsets = file.array()
    if not len(offsets) or int(offsets[-1]) != len(tokens) or np.any(offsets[1:] <= offsets[:-1]):
        raise ValueError(f"{name}.offsets.bin does not fit {name}.bin")
    return Split(tokens, offsets.astype(np.int64), tokenizer.special)


def _sealed_crc(meta: dict[str, Any], name: str) -> int | None:
    """The CRC-32 that a file was written with; None where an earlier version wrote it."""
    return meta["files"][name]["crc32"] if "files" in meta else None
