"""A text cut into documents: texts of several lines each, with blank lines or a text of one's own between them."""

import re
from collections.abc import Iterable, Iterator

from data.errors import UserError

LONGEST = 1 << 24  # characters of a document: as much as is held while its end is searched
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
_LEADING = re.compile(r"(?:[^\S\n]*\n)+")
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}


def unescaped(separator: str) -> str:
    r"""What `--separator` means: \n is a line end, \t a tab and \\ a backslash."""
    return re.sub(r"\\[nt\\]", lambda found: _ESCAPES[found[0]], separator)


def read_documents(chunks: Iterable[str], separator: str | None, called: str) -> Iterator[str]:
    """The documents of one file, in one pass: what stands between blank lines, or between the places where `separator`
    stands. Without the line ends, or blank lines, before and after them; those of white space alone are left out.

    Raises UserError for a document of more than 16 million characters; `called` is the file's name in it."""
    held, n = "", 0
    for chunk in chunks:
        *whole, held = _split(held + chunk, separator)
        for document in filter(None, map(stripped, whole)):
            n += 1
            _check(document, n, called)
            yield document
        _check(held, n + 1, called)
    if document := stripped(held):
        yield document


def _split(text: str, separator: str | None) -> list[str]:
    return _BLANK_LINES.split(text) if separator is None else text.split(separator)


def stripped(text: str) -> str:
    """`text` without blank lines before and after it; nothing where it is white space alone."""
    if not text.strip():
        return ""
    leading, trailing = _LEADING.match(text), text.find("\n", len(text.rstrip()))
    return text[leading.end() if leading else 0 : trailing if trailing >= 0 else len(text)]


def _check(text: str, n: int, called: str) -> None:
    if len(text) > LONGEST:
        raise UserError(
            f"document {n:,} of {called} has more than {LONGEST:,} characters; see --separator for what ends a "
            "document, or use --kind stream"
        )
