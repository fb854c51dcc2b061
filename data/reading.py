"""Files into clean text, a chunk at a time: decoding, byte-order marks, line ends, and what is not text."""

import codecs
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from data.errors import UserError, nearest
from data.sources import SPOOL_PREFIX, Text

CHUNK = 1 << 22  # bytes read at a time: the largest piece of any text that is ever held while preparing it
_SURROGATE = re.compile("[\ud800-\udfff]")
_ENCODINGS = ("utf-8", "utf-16", "utf-32", "latin-1", "cp1252", "cp1251", "gb18030", "shift_jis", "euc-kr", "big5")


def check_encoding(encoding: str) -> None:
    """Raise UserError unless Python knows `encoding` as a text encoding."""
    try:
        b"x".decode(encoding, "replace")  # an empty text would not even look the codec up
        codecs.getincrementaldecoder(encoding)
    except (LookupError, ValueError, TypeError):
        raise UserError(
            f"unknown encoding '{encoding}'.{nearest(encoding, _ENCODINGS)} Some there are: {', '.join(_ENCODINGS)}"
        ) from None


def shown(path: Path) -> str:
    """How a message calls a file: standard input is spooled to one whose name means nothing to the user."""
    return "standard input" if path.name.startswith(SPOOL_PREFIX) else str(path)


def text_files(text: Text, encoding: str) -> tuple[list[Path], int]:
    """The files of `text` that can be read, and how many of a folder's are not text. A file named by itself is kept
    whatever it holds: reading it gives the precise error."""
    if text.folder is None and len(text.files) == 1:
        return list(text.files), 0
    readable = [path for path in text.files if _is_text(path, encoding)]
    if not readable:
        raise UserError(f"the folder {text.folder} holds no {encoding} text among its {len(text.files)} files")
    return readable, len(text.files) - len(readable)


def read_chunks(files: Iterable[Path], encoding: str) -> Iterator[str]:
    """The files' text in pieces: no byte-order mark, "\\r\\n" as "\\n", a line end between files.

    Raises UserError with the byte offset for what is not `encoding`, and for NUL bytes (a binary file)."""
    unfinished = False
    for path in files:
        for n, chunk in enumerate(_file_chunks(path, encoding)):
            if n == 0 and unfinished:
                yield "\n"
            unfinished = not chunk.endswith("\n")
            yield chunk


def read_lines(chunks: Iterable[str]) -> Iterator[str]:
    """Lines split on "\\n" alone, trailing white space off, empty ones left out."""
    rest = ""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split("\n")
        yield from filter(None, (line.rstrip() for line in lines))
    if rest.rstrip():
        yield rest.rstrip()


def _file_chunks(path: Path, encoding: str) -> Iterator[str]:
    try:
        file = open(path, "rb")
    except OSError as error:
        raise UserError(f"cannot read {shown(path)}: {error.strerror}") from error
    with file:
        decoder = codecs.getincrementaldecoder(encoding)("strict")
        done, first, held_return = 0, True, ""
        while True:
            raw = file.read(CHUNK)
            done += len(raw)
            try:
                text = held_return + decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                raise _not_text(path, encoding, done - len(error.object) + error.start, error.object) from None
            except UnicodeError as error:  # UTF-16 that does not say its byte order
                raise UserError(f"{shown(path)} is not {encoding}: {error}") from None
            if not text.isascii() and _SURROGATE.search(text):
                raise UserError(f"{shown(path)} decodes from {encoding} to halves of characters: it is not text")
            if "\0" in text:
                raise UserError(f"{shown(path)} has NUL bytes: it is a binary file (or not {encoding}; see --encoding)")
            if first and text:
                text, first = text.removeprefix("\ufeff"), False
            # A "\r" at a chunk's end may be half of a "\r\n": hold it back until the next chunk tells.
            held_return = "\r" if text.endswith("\r") and raw else ""
            text = text.removesuffix("\r") if held_return else text
            if text:
                yield text.replace("\r\n", "\n")
            if not raw:
                return


def _not_text(path: Path, encoding: str, offset: int, near: bytes) -> UserError:
    if near.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return UserError(
            f"{shown(path)} is not {encoding} (byte offset {offset}) but starts like UTF-16: use --encoding utf-16"
        )
    if b"\0" in near:
        return UserError(
            f"{shown(path)} is not text: it has NUL bytes and byte {offset} is not {encoding} (a binary file?)"
        )
    return UserError(
        f"{shown(path)} is not {encoding}: invalid byte at offset {offset}; name its encoding, as in --encoding latin-1"
    )


def _is_text(path: Path, encoding: str) -> bool:
    try:
        return any([bool(chunk) for chunk in _file_chunks(path, encoding)])
    except UserError:
        return False
