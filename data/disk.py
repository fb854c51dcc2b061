"""Writing files so that a crash, a full disk or a link in their place loses nothing.

Every OSError from here names its file, which `write` and `fsync` by themselves do not.
"""

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

TRIES, PAUSE = 10, 0.05  # seconds; on Windows a file cannot be renamed while a process reads it


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """A context in which an OSError without a file name gets this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_file(path: Path, content: bytes) -> None:
    """Write a new file and flush it to the disk. Raises FileExistsError where a file or a link exists."""
    write_parts(path, [content])


def write_parts(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """The same, of content that comes in parts: one at a time is in memory."""
    with naming(path), open(path, "xb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, content: bytes) -> None:
    """Replace one file atomically: readers see the old or the new content. A link is replaced, not followed."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)  # left over from a crash, or a link
    write_file(new, content)
    patiently(lambda: os.replace(new, path))


def append_line(path: Path, line: str) -> None:
    """Append one line to a file and flush it to the disk. Raises OSError (ELOOP) where `path` is a link."""
    with naming(path):
        if path.is_symlink():
            raise OSError(errno.ELOOP, "it is a symbolic link, which is not followed", str(path))
        with open(path, "a", encoding="utf-8", newline="\n") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())


def remove(path: Path) -> None:
    """Remove a file, a folder with its content, or a link (never its target), where it exists."""
    is_folder = path.is_dir() and not path.is_symlink()
    patiently(lambda: shutil.rmtree(path) if is_folder else path.unlink(missing_ok=True))


def rename(old: Path, new: Path) -> None:
    """Rename a file or a folder."""
    patiently(lambda: os.rename(old, new))


def reopened(path: Path, size: int) -> BinaryIO:
    """The file `path`, cut off behind `size` bytes, to be written on. Raises ValueError where it has fewer."""
    file = open(path, "r+b")
    if path.stat().st_size < size:
        file.close()
        raise ValueError(f"{path.name} has fewer than {size:,} bytes")
    file.truncate(size)
    file.seek(size)
    return file


def sync_file(file: BinaryIO) -> None:
    """Flush what was written to an open file to the disk."""
    with naming(Path(file.name)):
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of files to the disk, where the system supports it: on Windows a folder cannot be opened,
    and some file systems have no such call."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES):
            error.filename = str(folder)
            raise
    finally:
        os.close(handle)


def patiently(act: Callable[[], None]) -> None:
    """Call `act`, and retry for half a second while it raises PermissionError."""
    for _ in range(TRIES - 1):
        try:
            return act()
        except PermissionError:
            time.sleep(PAUSE)
    act()
