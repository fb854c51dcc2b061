"""What was found by reading a source file in full, so that a large one is read once and not at every start.

    <cache>/sources/<hash of the path>.json

Each note is about one file in one state (data/file_state.py), with a checksum of its own: one that is missing, damaged
or about another state only means that the file is read again, and so does a cache that cannot be written.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from data.file_state import SETTLED, state_of

FOLDER = "sources"
FORMAT = 1  # rises with every change of what a fact means
LARGE = 1 << 22  # bytes from which on a file has a note, which takes up to 4 KB of the disk
NAME = re.compile(r"[0-9a-f]{32}\.json(\.[0-9a-f]{8}\.new)?")  # of notes, and of those that a crash left unfinished

Fact = TypeVar("Fact")  # of what JSON can hold


def noted(cache: Path, path: Path, what: str, find: Callable[[], Fact]) -> Fact:
    """The fact that `find()` finds by reading the file `path`: from the note in the folder `cache`, where the file is
    the one that the note is about, else found now. `what` names the fact, with all that it depends on besides the file.

    It is noted unless `find` raises, the file changes meanwhile, or has changed within the last seconds."""
    state, now = _state(path), time.time()
    if state is None or state["size"] < LARGE:
        return find()
    note = _note_of(cache, path)
    facts = _read(note, state)
    if what not in facts:
        facts[what] = find()
        if now - max(state["mtime_ns"], state["ctime_ns"]) / 1e9 > SETTLED and _state(path) == state:
            _write(note, {"format": FORMAT, "path": os.path.abspath(path), "state": state, "facts": facts})
    return facts[what]


def forget(cache: Path, paths: Iterable[Path]) -> None:
    """Remove the notes about these files."""
    for path in paths:
        with contextlib.suppress(OSError):
            _note_of(cache, path).unlink()


def _state(path: Path) -> dict[str, int] | None:
    """The state of a file; None where it cannot be opened. (On a network file system opening it brings the state up to
    date.)"""
    try:
        with open(path, "rb") as file:
            return state_of(os.fstat(file.fileno()))
    except OSError:
        return None


def _note_of(cache: Path, path: Path) -> Path:
    return cache / FOLDER / f"{hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:32]}.json"


def _read(note: Path, state: dict[str, int]) -> dict[str, Any]:
    """The facts of a note about this state of its file."""
    try:
        content = json.loads(note.read_text("utf-8"))
        crc = content.pop("crc32")
        if (crc, content["format"], content["state"]) == (_crc(content), FORMAT, state):
            return content["facts"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return {}


def _write(note: Path, content: dict[str, Any]) -> None:
    """Write a note where the cache can be written; readers see the old or the new one."""
    new = note.with_name(f"{note.name}.{secrets.token_hex(4)}.new")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(json.dumps(content | {"crc32": _crc(content)}, indent=1), "utf-8")
        os.replace(new, note)
    except OSError:  # a cache of another user, a full disk: the next start reads the file again
        with contextlib.suppress(OSError):
            new.unlink()


def _crc(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content).encode())
