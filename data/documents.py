"""Cutting a text into documents of several lines each, at blank lines or at a separator."""

import itertools
import re
from collections.abc import Iterable, Iterator

from data.errors import UserError

MAX_DOCUMENT = 1 << 24  # characters of a document: so much is held in memory while its end is searched
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
_LEADING = re.compile(r"(?:[^\S\n]*\n)+")
_ESCAPES = {r"\n": "\n", r"\r": "\r", r"\t": "\t", r"\\": "\\"}


def unescaped(separator: str) -> str:
    r"""`separator` with its escapes replaced: \n and \r are line ends, \t is a tab and \\ a backslash. "\r\n" and "\r"
    become "\n", as they do in every text."""
    meant = re.sub(r"\\[nrt\\]", lambda match: _ESCAPES[match[0]], separator)
    return meant.replace("\r\n", "\n").replace("\r", "\n")


def read_documents(chunks: Iterable[str], separator: str | None, name: str) -> Iterator[str]:
    """The documents of one file, in one pass: the texts between blank lines, or between occurrences of `separator`,
    without the blank lines around them. Documents of white space alone are left out.

    The beginning and the end of the file count as the line ends that `separator` begins and ends with, and two
    separators in a row may share line ends. Raises UserError for a document of more than 16 million characters; `name`
    is the file's name in the message."""
    delimiter, before, after = _delimiter(separator)
    buffer, n = "", 0
    for chunk in itertools.chain([before], chunks, [after]):
        *whole, buffer = delimiter.split(buffer + chunk)
        for document in filter(None, map(stripped, whole)):
            n += 1
            _check(document, n, separator, name)
            yield document
        _check(buffer, n + 1, separator, name)
    if document := stripped(buffer):
        yield document


def occurs(separator: str, chunks: Iterable[str]) -> bool:
    """Whether `separator` occurs in a file, as `read_documents` finds it."""
    delimiter, before, after = _delimiter(separator)
    buffer = ""
    for chunk in itertools.chain([before], chunks, [after]):
        buffer += chunk
        if delimiter.search(buffer):
            return True
        buffer = buffer[-len(separator) :]
    return False


def _delimiter(separator: str | None) -> tuple[re.Pattern[str], str, str]:
    """The pattern between two documents, and the line ends to add before and after the file. The pattern leaves out the
    line ends that a separator may share with the next one: around a document they are dropped anyway."""
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
    """`text` without blank lines before and after it; empty where it is white space alone."""
    if not text.strip():
        return ""
    leading, trailing = _LEADING.match(text), text.find("\n", len(text.rstrip()))
    return text[leading.end() if leading else 0 : trailing if trailing >= 0 else len(text)]


def _check(text: str, n: int, separator: str | None, name: str) -> None:
    if len(text) > MAX_DOCUMENT:
        ends = (
            "; see --separator for what ends a document, or"
            if separator is None
            else f": {separator!r} occurs nowhere in it; leave it out, and"
        )
        raise UserError(f"document {n:,} of {name} has more than {MAX_DOCUMENT:,} characters{ends} use --kind stream")
