"""A text cut into documents: texts of several lines each, with blank lines or a text of one's own between them."""

import itertools
import re
from collections.abc import Iterable, Iterator

from data.errors import UserError

LONGEST = 1 << 24  # characters of a document: as much as is held while its end is searched
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
_LEADING = re.compile(r"(?:[^\S\n]*\n)+")
_ESCAPES = {r"\n": "\n", r"\r": "\r", r"\t": "\t", r"\\": "\\"}


def unescaped(separator: str) -> str:
    r"""What `--separator` means: \n and \r are line ends, \t is a tab and \\ a backslash. "\r\n" and "\r" become "\n",
    as they do in every text."""
    meant = re.sub(r"\\[nrt\\]", lambda found: _ESCAPES[found[0]], separator)
    return meant.replace("\r\n", "\n").replace("\r", "\n")


def read_documents(chunks: Iterable[str], separator: str | None, called: str) -> Iterator[str]:
    """The documents of one file, in one pass: what stands between blank lines, or between the places where `separator`
    stands. Without the line ends, or blank lines, before and after them; those of white space alone are left out.

    The begin and the end of the file count as the line ends that `separator` has there, and the line ends that close
    one separator open the next.
    Raises UserError for a document of more than 16 million characters; `called` is the file's name in it."""
    border, before, after = _border(separator)
    held, n = "", 0
    for chunk in itertools.chain([before], chunks, [after]):
        *whole, held = border.split(held + chunk)
        for document in filter(None, map(stripped, whole)):
            n += 1
            _check(document, n, separator, called)
            yield document
        _check(held, n + 1, separator, called)
    if document := stripped(held):
        yield document


def occurs(separator: str, chunks: Iterable[str]) -> bool:
    """Whether a file is cut anywhere by `separator`."""
    border, before, after = _border(separator)
    held = ""
    for chunk in itertools.chain([before], chunks, [after]):
        held += chunk
        if border.search(held):
            return True
        held = held[-len(separator) :]
    return False


def _border(separator: str | None) -> tuple[re.Pattern[str], str, str]:
    """What matches between two documents, and the line ends to think before and after the file. Line ends around a
    document are no part of it, so those that a separator shares with the next one may be left before that."""
    if separator is None:
        return _BLANK_LINES, "", ""
    if not separator.strip("\n"):
        return re.compile(re.escape(separator)), "", ""
    before = separator[: len(separator) - len(separator.lstrip("\n"))]
    after = separator[len(separator.rstrip("\n")) :]
    shared = min(before, after)
    own = separator[: len(separator) - len(shared)]
    return re.compile(f"{re.escape(own)}(?={shared})"), before, after


def stripped(text: str) -> str:
    """`text` without blank lines before and after it; nothing where it is white space alone."""
    if not text.strip():
        return ""
    leading, trailing = _LEADING.match(text), text.find("\n", len(text.rstrip()))
    return text[leading.end() if leading else 0 : trailing if trailing >= 0 else len(text)]


def _check(text: str, n: int, separator: str | None, called: str) -> None:
    if len(text) > LONGEST:
        ends = (
            "; see --separator for what ends a document, or"
            if separator is None
            else f": {separator!r} occurs nowhere in it;"
        )
        raise UserError(f"document {n:,} of {called} has more than {LONGEST:,} characters{ends} use --kind stream")
