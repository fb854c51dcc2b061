"""How this project speaks to its user: a mistake of theirs, and a thing worth a warning."""

import contextlib
import difflib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from data.terminal import for_stream

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MACHINE = (  # what a disk, a network or a machine at its limits may say of a file that is open
    *FULL, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT,
    errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOLCK,
)  # fmt: skip


class UserError(Exception):
    """A mistake of the user, or of their files: shown as one readable message with exit code 2, never as a
    traceback."""


def warn(message: str) -> None:
    """Print one warning line on standard error, where somebody reads it."""
    _say(f"warning: {message}")


def nearest(word: str, choices: Iterable[str]) -> str:
    """' Did you mean 'x'?' for the choice that looks most like `word`, or '' when none does."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


class Output:
    """A standard stream whose reader may leave, as a closed terminal or `head` does. From the first error on, what is
    written is dropped and the program goes on: for commands whose work is more than what they print."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            _leave_to_nobody(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            _leave_to_nobody(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def outlive_readers() -> None:
    """From here on the command does its work whether anybody reads what it prints or not."""
    sys.stdout, sys.stderr = Output(sys.stdout), Output(sys.stderr)


def run_command(main: Callable[[], int]) -> int:
    """The exit code of a command: 2 with one message for a mistake of the user or a file that cannot be read or
    written, 130 for Ctrl-C."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        # Lines appear at once through a pipe too, and what the terminal cannot show is shown as its code.
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        return main()
    except UserError as error:
        _say(f"error: {error}")
        return 2
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        _leave_to_nobody(sys.stdout)
        return 0
    except OSError as error:
        if not is_fault(error):
            raise
        _say(f"error: {fault(error)}")
        return 2
    except KeyboardInterrupt:
        _say("stopped")
        return 130


def is_fault(error: OSError) -> bool:
    """Whether it is one of a file or of the machine, not of this program. What fails while it is read or written names
    no file."""
    return error.filename is not None or error.errno in _MACHINE


def fault(error: OSError) -> str:
    """What a message says of a disk that is full, a file that may not be written, and the like."""
    place = f": {error.filename}" if error.filename else ""
    way_out = "; free some space and try again" if error.errno in FULL else ""
    return f"{error.strerror or type(error).__name__}{place}{way_out}"


def _say(message: str) -> None:
    with contextlib.suppress(OSError):
        print(for_stream(message, sys.stderr), file=sys.stderr, flush=True)


def _leave_to_nobody(stream: TextIO) -> None:
    """Drop all that `stream` still holds and is given."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _open_closed_streams() -> None:
    """Point standard streams that are closed to nowhere: the next file that is opened would take their number, and
    what is written for the user would go into it."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, this one
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))
