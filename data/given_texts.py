"""A text that the command line gives: itself, or the file after an @."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from data.errors import UserError
from data.reading import file_or_text


def text_of(value: str, flag: str) -> str:
    """The text itself, or that of the file after an @."""
    file, text = file_or_text(value)
    return text if file is None else text_of_file(file, flag)


def text_of_file(file: Path, flag: str) -> str:
    """All of a file but its last line end."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
        return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
    except OSError as error:
        raise UserError(f"cannot read {file} ({flag}): {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} ({flag}) is not UTF-8: invalid byte at offset {error.start}") from error


@contextlib.contextmanager
def naming_line(n: int, file: str) -> Iterator[None]:
    """Say of an error in which line of the file it is."""
    try:
        yield
    except UserError as error:
        raise UserError(f"line {n:,} of {file}: {error}") from error
