"""Errors and warnings for the user, and the exit codes of commands."""

import contextlib
import difflib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from data.program import PACKAGE, version
from data.terminal import for_stream

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MACHINE = (  # errors of a disk, a network or a machine at its limits, also for files that are open already
    *FULL, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT,
    errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOLCK,
)  # fmt: skip


class UserError(Exception):
    """A mistake of the user, or in their files: shown as one message, with exit code 2, never as a traceback.

    `neutral`: the message for who has no flags, as a server's client, where the message names some; `field`: the
    setting that it is about."""

    def __init__(self, message: str, *, neutral: str | None = None, field: str | None = None):
        super().__init__(message)
        self.neutral, self.field = message if neutral is None else neutral, field


class StepFault(UserError):
    """What stopped a training between two saves and is not the run's own: once it is mended, the run goes on."""


def warn(message: str) -> None:
    """Print a warning line on standard error; a closed one is ignored."""
    _say(f"warning: {message}")


def note(message: str) -> None:
    """Print a line on standard error that says what was decided; a closed one is ignored."""
    _say(f"note: {message}")


def flag(name: str) -> str:
    """A setting's name as the command line spells it: 'n_layer' -> '--n-layer'."""
    return "--" + name.replace("_", "-")


def nearest(word: str, choices: Iterable[str]) -> str:
    """' Did you mean 'x'?' for the choice most similar to `word`, or '' where none is."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


class BestEffortStream:
    """A standard stream whose reader may close it, as a terminal or `head` does. After the first error further output
    is dropped and the program goes on: for commands that do more than print."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            _redirect_to_devnull(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            _redirect_to_devnull(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def outlive_readers() -> None:
    """Make the command go on when the reader of its standard streams closes them."""
    sys.stdout, sys.stderr = BestEffortStream(sys.stdout), BestEffortStream(sys.stderr)


def run_command(main: Callable[[], int]) -> int:
    """Run `main` and return the exit code of the command: 2, with one message, for a mistake of the user or a file that
    cannot be read or written; 130 for Ctrl-C. With --version alone, print the version instead. Of several processes
    that torchrun has started on a host one speaks."""
    _open_closed_streams()
    if os.environ.get("LOCAL_RANK", "0") != "0":
        silence()
    for stream in (sys.stdout, sys.stderr):
        # Lines appear at once through a pipe too; characters that the encoding of the terminal lacks are escaped.
        if isinstance(stream, io.TextIOWrapper):  # a notebook has streams of its own
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    if sys.argv[1:] == ["--version"]:
        print(f"{PACKAGE} {version()}")
        return 0
    try:
        return main()
    except UserError as error:
        _say(f"error: {error}")
        return 2
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        _redirect_to_devnull(sys.stdout)
        return 0
    except OSError as error:
        if not is_fault(error):
            raise
        _say(f"error: {fault(error)}")
        return 2
    except KeyboardInterrupt:
        _say("stopped")
        return 130


def silence() -> None:
    """Drop whatever this process prints from now on."""
    sys.stdout = sys.stderr = open(os.devnull, "w")  # as long as the process


def is_fault(error: OSError) -> bool:
    """Whether `error` is one of a file or of the machine, not of this program. Errors of reading and writing an open
    file carry no file name."""
    return error.filename is not None or error.errno in _MACHINE


def fault(error: OSError) -> str:
    """The message for an error of a disk or a file: full, not permitted, and the like."""
    file = f": {error.filename}" if error.filename else ""
    way_out = "; free some space and try again" if error.errno in FULL else ""
    return f"{error.strerror or type(error).__name__}{file}{way_out}"


def _say(message: str) -> None:
    with contextlib.suppress(OSError):
        print(for_stream(message, sys.stderr), file=sys.stderr, flush=True)


def _redirect_to_devnull(stream: TextIO) -> None:
    """Make `stream` drop its buffer and everything written to it from now on."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _open_closed_streams() -> None:
    """Open closed standard streams on /dev/null: otherwise the next file opened would get their descriptor, and output
    meant for the user would go into it."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, this one
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))
