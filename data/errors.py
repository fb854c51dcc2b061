"""How this project speaks to its user: a mistake of theirs, and a thing worth a warning."""

import difflib
import errno
import os
import sys
from collections.abc import Callable, Iterable

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """A mistake of the user, or of their files: shown as one readable message with exit code 2, never as a
    traceback."""


def warn(message: str) -> None:
    """Print one warning line on standard error."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def nearest(word: str, choices: Iterable[str]) -> str:
    """' Did you mean 'x'?' for the choice that looks most like `word`, or '' when none does."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def run_command(main: Callable[[], int]) -> int:
    """The exit code of a command: 2 with one message for a mistake of the user or a disk that is full, 130 for
    Ctrl-C."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        # Lines appear at once through a pipe too, and what the terminal cannot show is shown as its code.
        stream.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        return main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in _FULL:
            raise
        place = f" while writing {error.filename}" if error.filename else ""
        print(f"error: {error.strerror}{place}; free some space and try again", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
