"""One writer at a time: a lock that the kernel frees when its holder dies, however it dies."""

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from data.errors import UserError, warn

_HELD = (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK, errno.EDEADLK, getattr(errno, "EDEADLOCK", errno.EDEADLK))
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_LOCKED_BYTE = 1 << 30  # far behind the content of the file: on Windows a locked byte cannot be read
PAUSE = 0.2  # seconds between two attempts


@contextlib.contextmanager
def hold(path: Path, name: str, wait: bool = False) -> Iterator[None]:
    """A context that holds the lock file `path`, and removes it afterwards. `name`: what the lock guards, for messages.

    Where another process or thread holds it, raises UserError with its holder and since when, or with `wait` warns once
    and waits. On a file system without locks it warns and goes on."""
    handle = _acquire(path, name, wait)
    try:
        yield
    finally:
        _release(handle, path)


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock file `path`, as far as can be seen without touching it: of a process of this host
    that was killed it stays, and does not count."""
    try:
        holder = json.loads(path.read_bytes()[:1000])
        pid, host = int(holder["pid"]), holder["host"]
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError):  # not signed yet
        return path.is_file()
    if os.name != "posix" or host != socket.gethostname():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True


def _acquire(path: Path, name: str, wait: bool) -> int:
    warned = False
    while True:
        if path.is_symlink():
            raise UserError(f"{path} is a symbolic link, which a lock must not be: remove it")
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            _lock(handle)
        except OSError as error:
            holder = _holder(handle)
            if error.errno in _NO_LOCKS:
                warn(f"{path.parent} lies on a file system without locks: see to it that nobody else writes {name}")
                return handle
            os.close(handle)
            if error.errno not in _HELD:
                raise
            if not wait:
                raise UserError(f"{name} is being written by {holder}; wait until it ends, or stop it") from None
            if not warned:
                warn(f"{name} is being written by {holder}: waiting for it")
            warned = True
            time.sleep(PAUSE)
            continue
        except BaseException:
            os.close(handle)
            raise
        if _is_still(handle, path):
            _sign(handle)
            return handle
        os.close(handle)  # its last holder removed the file after it was opened here


def _release(handle: int, path: Path) -> None:
    with contextlib.suppress(OSError):  # Windows removes no open file, and a folder may be gone
        os.unlink(path)
    os.close(handle)
    if os.name == "nt":
        with contextlib.suppress(OSError):
            os.unlink(path)


def _is_still(handle: int, path: Path) -> bool:
    """Whether `path` is still the file that was opened."""
    try:
        current = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(handle), current)


def _sign(handle: int) -> None:
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    with contextlib.suppress(OSError):  # a full disk: the lock holds without a name
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps(holder).encode())


def _holder(handle: int) -> str:
    """The holder of the lock, by the content of its file."""
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        holder = json.loads(os.read(handle, 1000))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _lock(handle: int) -> None:
    """Take the lock or raise OSError at once."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]  # there only on Windows
        os.lseek(handle, 0, os.SEEK_SET)
    else:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
