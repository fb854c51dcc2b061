"""The token store on disk: flat ids of both splits, row offsets where the kind has rows, the tokenizer, and notes.

    <folder>/meta.json  tokenizer.json  train.bin  val.bin  [train.offsets.bin  val.offsets.bin]

Ids are uint16 or uint32, offsets uint64 (rows + 1 of them). Large files are memory-mapped. `meta.json` has the size and
the CRC-32 of every other file, and its own; a store of an earlier version has none, and is used without.
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


_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)  # not a failure of the disk


class Damaged(UserError):
    """A prepared text is damaged: a file is missing, cut short, or not its own."""


class TokenFile:
    """A flat file of ids, read by position.

    A large one is memory-mapped, and its pages are released before each read: pages once read count as memory of this
    process (up to 2 MB around every window), so training would soon hold the whole file. It costs 25 us."""

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
        """The ids, (tokens,): in memory when small, a memory map otherwise. To be called for every read."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
        return self._array

    def check(self, limit: int | None, crc: int | None) -> None:
        """Raise ValueError where an id is not below `limit`, or the CRC-32 of the file is not `crc` (None: not
        checked). One pass does both, in 0.7 s a GB."""
        computed, buffer = 0, np.empty(SCAN // self.dtype.itemsize, self.dtype)
        with open(self.path, "rb", buffering=0) as file:
            while size := file.readinto(buffer.data):
                ids = buffer[: size // self.dtype.itemsize]
                if crc is not None:
                    computed = zlib.crc32(ids.data, computed)
                if limit is not None and len(ids) and int(ids.max()) >= limit:
                    raise ValueError(f"{self.path.name} holds the id {int(ids.max())}, the vocabulary has {limit}")
        if crc is not None and computed != crc:
            raise ValueError(f"{self.path.name} has not the checksum that it was written with")

    def has(self, id_: int) -> bool:
        """Whether the id occurs in the file."""
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
    """A prepared text: both splits, its tokenizer, and the content of `meta.json` (kind, key, start text, notes)."""

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

    @property
    def about(self) -> dict[str, str]:
        """The entries of a run's `config.json` that identify its text."""
        return {"key": self.key, "folder": self.folder.name, "name": self.meta["name"], "start": self.meta["start"]}


def seal(folder: Path, meta: dict[str, Any]) -> None:
    """Write `meta.json`, with the sizes and checksums of the other files of a new store, and flush all of them to the
    disk: after a power failure the store is complete or absent."""
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
    """The CRC-32 of the other entries of `meta.json`."""
    return zlib.crc32(json.dumps({name: value for name, value in meta.items() if name != "crc32"}).encode())


def _crc(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while piece := file.read(SCAN):
            crc = zlib.crc32(piece, crc)
    return crc


def open_store(folder: Path) -> Store:
    """Open a prepared text and check all of it. Raises Damaged where a file is missing, cut short, has another checksum
    than when it was written, or has ids outside the vocabulary, and UserError where the disk fails."""
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
    """The CRC-32 of a file when it was written; None in a store of an earlier version."""
    return meta["files"][name]["crc32"] if "files" in meta else None
