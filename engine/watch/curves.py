"""The losses of runs as they are written: what each metrics.jsonl says, and what has come since. Imports no torch."""

import os
import stat
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.json_files import Whole, parse_json
from data.locks import is_held
from engine.run.folder import LOCK, read_facts
from engine.training.metrics import LINE

EVERY = 0.5  # seconds between two looks
SCAN_EVERY = 2.0  # seconds between two looks for new runs
MOST_RUNS = 24  # of one folder: the newest
MOST_BYTES = 4 << 20  # of a file at one look
TAIL = 1000  # bytes that have to stand where they were read for a file to be the same
SHOWN = LINE | {"tokens?": Whole(), "seconds?": float}


class Follower:
    """The losses of `runs`, by name, and of the runs in `folders`, for one reader: `news` says what is new to it.

    A file may be cut back or replaced, end in half a line, come later or go away; a link is not followed."""

    def __init__(self, runs: Mapping[str, Path], folders: Iterable[Path] = ()):
        self._named, self._folders = dict(runs), list(folders)
        self._followed: dict[str, _Run] = {}
        self._next_scan = 0.0

    def news(self) -> dict[str, Any]:
        """`runs`: of each that changed its `name`, `family`, `data`, `steps` in all (or None), whether it `is_training`
        and the `lines` after the first `kept` of those told before. `gone`: the names of those that are no more."""
        gone = self._scan() if time.monotonic() >= self._next_scan else []
        return {"runs": [news for run in self._followed.values() if (news := run.news())], "gone": gone}

    def _scan(self) -> list[str]:
        """Find the runs that are there. Returns the names of those that are no more."""
        self._next_scan = time.monotonic() + SCAN_EVERY
        found = {path.resolve(): name for name, path in self._named.items() if _is_file(path / "config.json")}
        taken = set(self._named)
        for path in (path for folder in self._folders for path in _runs_in(folder)):
            if path.resolve() not in found:
                name = str(path) if path.name in taken else path.name
                taken.add(name)
                found[path.resolve()] = name
        there = {name: path for path, name in found.items()}
        gone = [name for name, run in self._followed.items() if there.get(name) != run.path]
        for name in gone:
            del self._followed[name]
        for name, path in there.items():
            if name not in self._followed and (about := _about(path)) is not None:
                self._followed[name] = _Run(name, path, about)
        return [name for name in gone if name not in self._followed]


@dataclass
class _Run:
    """A run, and how far its metrics.jsonl was read."""

    name: str
    path: Path
    about: dict[str, Any]
    offset: int = 0
    tail: bytes = b""  # what stands before the offset
    lines: int = 0  # told so far
    seen: tuple[int, ...] = ()  # size, time and inode at the last look
    was_training: bool | None = None  # None: not told yet

    def news(self) -> dict[str, Any] | None:
        """What is new, None where nothing is."""
        kept, lines = self._read()
        is_training = is_held(self.path / LOCK)
        if not lines and kept == self.lines and is_training == self.was_training:
            return None
        self.lines, self.was_training = kept + len(lines), is_training
        return {"name": self.name, **self.about, "is_training": is_training, "kept": kept, "lines": lines}

    def _read(self) -> tuple[int, list[dict[str, Any]]]:
        """How many of the lines told before still hold, and those that follow."""
        path = self.path / "metrics.jsonl"
        state = _state(path)
        if state == self.seen:
            return self.lines, []
        kept = self.lines
        try:
            if state is None:
                raise FileNotFoundError
            with open(path, "rb", opener=_open) as file:
                file.seek(self.offset - len(self.tail))
                if file.read(len(self.tail)) != self.tail:  # another file, or cut back
                    self.offset, self.tail, kept = 0, b"", 0
                    file.seek(0)
                new = file.read(MOST_BYTES)
        except OSError:
            self.offset, self.tail, self.seen = 0, b"", ()
            return 0, []
        whole = new[: new.rfind(b"\n") + 1]
        is_more = len(new) == MOST_BYTES
        if is_more and not whole:  # a line without an end is none of ours
            whole = new
        self.offset += len(whole)
        self.tail = (self.tail + whole)[-TAIL:]
        self.seen = () if is_more else state
        return kept, [line for each in whole.split(b"\n") if (line := _line(each, path))]


def _open(path: str, flags: int) -> int:
    """Open a file, but no link, and without waiting where a pipe has come in its place."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def _about(path: Path) -> dict[str, Any] | None:
    """What a run says of itself; None where it cannot be read."""
    try:
        facts = read_facts(path)
    except UserError:
        return None
    config = facts["config"]
    return {"family": str(config.get("model")), "data": facts["data"]["name"], "steps": config.get("steps")}


def _line(content: bytes, path: Path) -> dict[str, Any] | None:
    """The numbers of a line that are shown; None for one that is torn or damaged."""
    try:
        line = parse_json(content, path, SHOWN)
    except UserError:
        return None
    return {name: line.get(name) for name in ("step", "train_loss", "val_loss", "tokens", "seconds")}


def _runs_in(folder: Path) -> list[Path]:
    """The newest runs in a folder, oldest first."""
    try:
        with os.scandir(folder) as entries:
            paths = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    runs = [path for path in paths if _is_file(path / "config.json")]
    return sorted(runs, key=_age_of)[-MOST_RUNS:]


def _age_of(path: Path) -> tuple[int, str]:
    """What sorts runs by the time of their last line, or of their beginning."""
    state = _state(path / "metrics.jsonl") or _state(path / "config.json") or (0, 0)
    return state[1], path.name


def _is_file(path: Path) -> bool:
    return _state(path) is not None


def _state(path: Path) -> tuple[int, ...] | None:
    """Size, time and inode of a file; None where there is no such file, or a link or a pipe instead."""
    try:
        found = path.lstat()
    except (OSError, ValueError):
        return None
    return (found.st_size, found.st_mtime_ns, found.st_ino) if stat.S_ISREG(found.st_mode) else None
