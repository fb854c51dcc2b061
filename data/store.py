"""The token store on disk: flat ids of both splits, row offsets where the kind has rows, the tokenizer, and notes.

    <folder>/meta.json  tokenizer.json  train.bin  val.bin  [train.offsets.bin  val.offsets.bin]

Ids are uint16 or uint32, in shards where they are many (token_file.py), offsets uint64 (rows + 1 of them). `meta.json`
has the size and the CRC-32 of every other file, and its own; a store of an earlier version has none, and is used
without.
"""

import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.checked import Checks
from data.disk import sync_folder
from data.errors import UserError
from data.json_files import Whole, check_schema, read_json
from data.token_file import SCAN, TokenFile, names_of
from data.tokenizers import AFTER_EOS, Special, Tokenizer
from data.vocabulary import from_json

FORMAT = 2  # of what is prepared, part of its key: rises with every change of how a text is split or tokenized
_META = {
    "key": str, "kind": str, "name": str, "start": str, "notes": [str], "tokens": {"train": Whole(), "val": Whole()},
    "files?": dict, "unit?": str, "series?": dict,
}  # fmt: skip

ROWS = ("lines", "documents")  # the kinds that have offsets; the others are streams
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)  # not a failure of the disk


class Damaged(UserError):
    """A prepared text is damaged: a file is missing, cut short, or not its own."""


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
    def unit(self) -> str:
        """What the bits of this text are counted by, 'character', 'byte' or 'value'."""
        return self.meta.get("unit", "character")

    def characters(self) -> np.ndarray:
        """The number of characters of each id, (V,), as the tokenizer counts them, or of bytes, if they are the unit;
        but none of the `<eos>` after a document of a stream, for which no character of the text stands."""
        counts = self.tokenizer.n_bytes() if self.unit == "byte" else self.tokenizer.characters()
        if self.meta["start"] == AFTER_EOS:
            counts[self.tokenizer.special.eos] = 0
        return counts

    @property
    def about(self) -> dict[str, Any]:
        """The entries of a run's `config.json` that identify its text, and how numbers became it."""
        about = {"key": self.key, "folder": self.folder.name, "name": self.meta["name"], "start": self.meta["start"]}
        return about | ({"series": self.meta["series"]} if "series" in self.meta else {})


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
    """Open a prepared text and check all of it; ids and offsets only where their files are not those that were checked
    already. Raises Damaged where a file is missing, cut short, has another checksum than when it was written, or has
    ids outside the vocabulary, and UserError where the disk fails."""
    try:
        meta = read_json(folder / "meta.json", _META)
        crc = _meta_crc(meta)
        if meta.get("crc32", crc) != crc:
            raise ValueError("meta.json has not the checksum that it was written with")
        for name, sealed in meta.get("files", {}).items():
            check_schema(sealed, {"size": Whole(), "crc32": Whole()}, str(folder / "meta.json"), f"files.{name}")
            if (size := (folder / name).stat().st_size) != sealed["size"]:
                raise ValueError(f"{name} has {size:,} bytes, not {sealed['size']:,}")
        if _sealed_crc(meta, "tokenizer.json") not in (None, _crc(folder / "tokenizer.json")):
            raise ValueError("tokenizer.json has not the checksum that it was written with")
        tokenizer = from_json(read_json(folder / "tokenizer.json"))
        checks = Checks(folder, [crc, tokenizer.vocab_size])
        splits = {name: _open_split(folder, name, meta, tokenizer, checks) for name in ("train", "val")}
        checks.keep()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError) as error:
        cause = error.__cause__ if isinstance(error, UserError) else error
        if isinstance(cause, OSError) and not isinstance(cause, _MISSING):
            raise UserError(f"cannot read the prepared text {folder}: {cause.strerror}; try again") from error
        raise Damaged(f"{folder} is not a prepared text ({error}); delete it to prepare the text again") from error
    return Store(folder, meta, tokenizer, **splits)


def _open_split(folder: Path, name: str, meta: dict[str, Any], tokenizer: Tokenizer, checks: Checks) -> Split:
    tokens = TokenFile([folder / file for file in names_of(name, meta.get("files", ()))], tokenizer.dtype)
    if len(tokens) != meta["tokens"][name]:
        raise ValueError(f"{name}.bin holds {len(tokens)} ids, not {meta['tokens'][name]}")
    for path in tokens.paths:
        checks.check(path, tokens.dtype, tokenizer.vocab_size, _sealed_crc(meta, path.name))
    if meta["kind"] not in ROWS:
        return Split(tokens, None, tokenizer.special)
    file = TokenFile(folder / f"{name}.offsets.bin", np.uint64)
    checks.check(file.paths[0], file.dtype, None, _sealed_crc(meta, f"{name}.offsets.bin"))
    offsets = file.array()
    if not len(offsets) or int(offsets[-1]) != len(tokens) or np.any(offsets[1:] <= offsets[:-1]):
        raise ValueError(f"{name}.offsets.bin does not fit {name}.bin")
    return Split(tokens, offsets.astype(np.int64), tokenizer.special)


def _sealed_crc(meta: dict[str, Any], name: str) -> int | None:
    """The CRC-32 of a file when it was written; None in a store of an earlier version."""
    return meta["files"][name]["crc32"] if "files" in meta else None
