"""The cache of downloads, prepared texts and notes on sources: its entries, its size, and freeing it.

Nothing outside of it is touched: links are neither followed nor removed, and only files of this project are removed.
"""

import contextlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data import source_notes
from data.errors import UserError, nearest
from data.sources import cache_folder

UNFINISHED_FOR = 24 * 3600  # seconds after which an unfinished file is taken to be abandoned
_PREPARED = re.compile(r"(?P<name>.+)-[0-9a-f]{16}")
_PART = re.compile(r"(?P<name>.+)-[0-9a-f]{16}\.\w+\.part")


@dataclass(frozen=True)
class Entry:
    """One entry of the cache. `about` describes it, `size` is in bytes, `changed` in seconds since the epoch; a `busy`
    one may be being written by another process. `files`: those of an entry that has no folder to itself."""

    path: Path
    name: str
    about: str
    size: int
    changed: float
    busy: bool = False
    files: tuple[Path, ...] = ()


def entries() -> list[Entry]:
    """All entries of the cache: downloads first, then prepared texts, each by name, then the notes on sources."""
    prepared = sorted(_prepared(), key=lambda e: (e.name, e.changed))
    return [*sorted(_downloads(), key=lambda e: e.name), *prepared, *_source_notes()]


def size() -> int:
    """The size of the cache in bytes."""
    return sum(entry.size for entry in entries())


def listing() -> str:
    """A table of the cache, with the total."""
    cached = entries()
    rows = [("name", "what", "size", "last change")]
    for entry in cached:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.changed))
        rows.append((entry.name, entry.about, in_words(entry.size), when))
    rows.append(("total", f"{len(cached):,} in {cache_folder()}", in_words(sum(e.size for e in cached)), ""))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        f"{name:<{widths[0]}}  {about:<{widths[1]}}  {size:>{widths[2]}}  {when}".rstrip()
        for name, about, size, when in rows
    )


def clear(names: list[str]) -> tuple[list[Entry], list[Entry]]:
    """Remove the entries with these names (as `listing` shows them, or as their folders are called), or all of them
    where no name is given. Returns the entries removed, and those left because they may still be written to.

    Raises UserError for an unknown name."""
    cached = entries()
    known = {entry.name for entry in cached} | {entry.path.name for entry in cached}
    for name in names:
        if name not in known:
            raise UserError(f"nothing in {cache_folder()} is called '{name[:200]}'.{nearest(name[:200], known)}")
    chosen = [entry for entry in cached if not names or {entry.name, entry.path.name} & set(names)]
    for entry in chosen:
        if not entry.busy:
            for path in entry.files or [entry.path]:
                _remove(path)
    return [e for e in chosen if not e.busy], [e for e in chosen if e.busy]


def in_words(size: int) -> str:
    """`size` in bytes as text: '1.4 MB'."""
    for unit, power in (("GB", 9), ("MB", 6), ("KB", 3)):
        if size >= 10**power:
            return f"{size / 10**power:.1f} {unit}"
    return f"{size} bytes"


def _remove(path: Path) -> None:
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    except FileNotFoundError:
        pass  # another process was faster
    except OSError as error:
        raise UserError(f"cannot remove {path}: {error.strerror}") from error


def _children(name: str) -> Iterator[Path]:
    folder = cache_folder() / name
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in folder.iterdir():
        if not path.is_symlink():
            yield path


def _downloads() -> Iterator[Entry]:
    for path in _children("downloads"):
        if path.is_file():
            stat, part = path.stat(), path.suffix == ".part"
            about = "an unfinished download" if part else "downloaded"
            name = path.name.split(".")[0]
            yield Entry(path, name, about, stat.st_size, stat.st_mtime, part and _is_recent(stat.st_mtime))


def _prepared() -> Iterator[Entry]:
    for path in _children("prepared"):
        part, whole = _PART.fullmatch(path.name), _PREPARED.fullmatch(path.name)
        if not path.is_dir() or not (part or whole):
            continue
        stats = [file.lstat() for file in (path, *path.iterdir())]
        changed = max(stat.st_mtime for stat in stats)
        bytes_ = sum(stat.st_size for stat in stats[1:])
        if part:
            yield Entry(path, part["name"], "unfinished", bytes_, changed, _is_recent(changed))
        elif whole:
            yield Entry(path, whole["name"], _describe(path), bytes_, changed)


def _source_notes() -> Iterator[Entry]:
    stats = {}
    for path in _children(source_notes.FOLDER):
        if source_notes.NAME.fullmatch(path.name) and not path.is_dir():
            with contextlib.suppress(FileNotFoundError):  # it has just got its final name
                stats[path] = path.lstat()
    if stats:
        folder, changed = cache_folder() / source_notes.FOLDER, max(stat.st_mtime for stat in stats.values())
        bytes_ = sum(stat.st_size for stat in stats.values())
        yield Entry(folder, folder.name, "notes on large sources", bytes_, changed, files=tuple(stats))


def _is_recent(changed: float) -> bool:
    return time.time() - changed < UNFINISHED_FOR


def _describe(folder: Path) -> str:
    """Kind, tokenizer and tokens of a prepared text."""
    try:
        meta = json.loads((folder / "meta.json").read_text("utf-8"))
        tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        name = f"bpe:{len(tokenizer['tokens'])}" if tokenizer["type"] == "bpe" else tokenizer["type"]
        return f"{meta['kind']}, {name}, {sum(meta['tokens'].values()):,} tokens"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "damaged"
