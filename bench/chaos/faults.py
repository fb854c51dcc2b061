"""Fault injection: a system call that fails, or at which a signal arrives, and damaged files."""

import _pyio
import builtins
import errno
import io
import mmap
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

# The calls into which errors are injected. As in the system, errors of reading and writing carry no file name.
BY_PATH = ("open", "mkdir", "rename", "replace", "rmdir", "unlink")
BY_NUMBER = ("read", "write", "fsync")
CALLS = BY_PATH + BY_NUMBER
ERRORS = ("EIO", "EROFS", "EACCES", "ENOSPC", "ESTALE")


class Trap:
    """Counts the system calls on files below `folder`, and calls `act(path)` at the `nth` of `calls`: at that one
    alone, or with `lasting` from there on. The counts of a child process are shared with its parent, in `counts`."""

    def __init__(self, folder: Path, calls: tuple[str, ...], nth: int, act: Callable, lasting: bool = False):
        self.folder, self.calls, self.nth, self.act, self.lasting = f"{folder}/", calls, nth, act, lasting
        self.paths: dict[int | None, str] = {}  # of the files that are open
        self._shared = memoryview(mmap.mmap(-1, 8 * len(CALLS))).cast("Q")

    @property
    def counts(self) -> dict[str, int]:
        """The number of calls so far, by name."""
        return dict(zip(CALLS, self._shared, strict=True))

    @property
    def met(self) -> bool:
        """Whether the nth call has been made."""
        return sum(self.counts[name] for name in self.calls) >= self.nth

    def set(self) -> None:
        """Replace the functions of `os`, and `open` by one that is written in Python and calls these functions."""
        self._close, self._open = os.close, builtins.open
        for name in CALLS:
            setattr(os, name, self._watched(name, getattr(os, name)))
        os.close = self._closed
        io.open = builtins.open = self._opened

    def _watched(self, name: str, original: Callable) -> Callable:
        def call(first, *args, **options):
            path = self._path(first, options.get("dir_fd"))
            if path:
                self._shared[CALLS.index(name)] += 1
                count = sum(self.counts[name] for name in self.calls)
                if name in self.calls and (count == self.nth or (self.lasting and count > self.nth)):
                    self.act(path if name in BY_PATH else None)
            result = original(first, *args, **options)
            if path and name == "open":
                self.paths[result] = path
            return result

        return call

    def _path(self, first, folder: int | None) -> str | None:
        """The path of a call, if it is below the folder."""
        if isinstance(first, int):
            return self.paths.get(first)
        path = os.path.join(self.paths.get(folder) or os.getcwd(), os.fspath(first))
        return path if path.startswith(self.folder) else None

    def _closed(self, fd: int) -> None:
        self.paths.pop(fd, None)
        self._close(fd)

    def _opened(self, file, mode="r", *args, **options):
        is_ours = not isinstance(file, int) and self._path(file, None)
        return (_pyio.open if is_ours else self._open)(file, mode, *args, **options)


def fail(name: str) -> Callable:
    """An action that raises the OSError of this name."""
    number = getattr(errno, name)

    def act(path: str | None) -> None:
        raise OSError(number, os.strerror(number), *([path] if path else []))

    return act


def send(*signals: int) -> Callable:
    """An action that sends the process these signals."""

    def act(path: str | None) -> None:
        for signum in signals:
            os.kill(os.getpid(), signum)

    return act


def stop(path: str | None) -> None:
    """Stop the process until its parent continues it."""
    os.kill(os.getpid(), signal.SIGSTOP)


def damage(path: Path, kind: str, rng: random.Random) -> None:
    """Damage a file as crashes and bad disks do: 'cut', 'empty', 'zeroed', 'hole' or 'flipped' (one bit)."""
    content = bytearray(path.read_bytes())
    index = rng.randrange(len(content)) if content else 0
    if kind == "cut":
        del content[index:]
    elif kind == "empty":
        content.clear()
    elif kind == "zeroed":
        content = bytearray(len(content))
    elif kind == "hole":
        content[index : index + 64] = bytes(len(content[index : index + 64]))
    elif content:
        content[index] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
