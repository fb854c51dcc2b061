"""Reading files as clean text, a chunk at a time: encodings, byte-order marks, line ends, and files that are not
text."""

import codecs
import contextlib
import hashlib
import itertools
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from data import packed
from data.errors import UserError, nearest, warn
from data.parquet import is_parquet
from data.source_notes import Fact, noted
from data.sources import SPOOL_PREFIX, Text, cache_folder

CHUNK = 1 << 22  # bytes read at a time: no more of a text is held while it is prepared
SMALL_CHUNK = 1 << 18  # the same where nothing waits for an end: it stays in a core's cache, and costs 0.6 of the time
IN_MEMORY = 1 << 30  # characters that a packed file of examples, which are held in memory, may unpack to
NAMED = 3  # files that a note names
# Control characters that no text has; in Windows' encodings their bytes are letters and quotes.
C1 = re.compile("[\x80-\x9f]")
_LIKE_CP1252 = {"iso8859-1", "iso8859-9", "iso8859-15"}  # encodings that have nearly all letters where cp1252 has them
_SURROGATE = re.compile("[\ud800-\udfff]")
_WITHOUT_SURROGATES = {"utf-8", "utf-8-sig", "iso8859-1", "cp1252"}  # of which the decoder lets none through
_ENCODINGS = ("utf-8", "utf-16", "utf-32", "latin-1", "cp1252", "cp1251", "gb18030", "shift_jis", "euc-kr", "big5")


def check_encoding(encoding: str) -> None:
    """Raise UserError unless `encoding` is a text encoding of Python."""
    try:
        b"x".decode(encoding, "replace")  # for an empty text the codec would not be looked up
        codecs.getincrementaldecoder(encoding)
    except (LookupError, ValueError, TypeError):
        raise UserError(
            f"unknown encoding '{encoding}'.{nearest(encoding, _ENCODINGS)} Some there are: {', '.join(_ENCODINGS)}"
        ) from None


def file_or_text(value: str) -> tuple[Path | None, str]:
    """The meaning of a flag's value: the file FILE for '@FILE', or a text; '@@ana' is the text '@ana'."""
    if value.startswith("@") and not value.startswith("@@"):
        return Path(value[1:]), ""
    return None, whole_characters(value.removeprefix("@"))


def shown(path: Path) -> str:
    """The name of a file in messages: 'standard input' for the file that it was spooled to."""
    return "standard input" if path.name.startswith(SPOOL_PREFIX) else str(path)


def text_files(text: Text, encoding: str) -> tuple[list[Path], list[Path]]:
    """The files of `text` that can be read, and those of a folder that are not text. A file that was named itself
    always counts as text: reading it raises the precise error."""
    if text.folder is None and len(text.files) == 1:
        return list(text.files), []
    for path in text.files:
        packed.check_unpacker(path)
    readable = [path for path in text.files if _is_text(path, encoding)]
    if not readable:
        raise UserError(f"the folder {text.folder} holds no {encoding} text among its {len(text.files)} files")
    return readable, sorted(set(text.files) - set(readable))


def left_out(text: Text, skipped: list[Path], expected: str) -> list[str]:
    """A note that names the first of the `skipped` files of a folder, which are not `expected` ('tables', an encoding);
    no note without such files."""
    if not skipped or not text.folder:
        return []
    names = ", ".join(str(path.relative_to(text.folder)) for path in skipped[:NAMED])
    more = f" and {len(skipped) - NAMED:,} more" if len(skipped) > NAMED else ""
    count = f"{len(skipped):,} of the {len(text.files):,} files in {text.folder}"
    return [f"{count} are not {expected}: left out ({names}{more})"]


def fingerprint(path: Path, encoding: str) -> tuple[bytes, bool]:
    """The SHA-256 of a file's bytes on the disk, and whether it is an unpacked file with line ends of a "\\r" alone.
    (Earlier versions read those as characters, so that they cached another text under the same hash.)"""
    digest, has_lone_returns = known(path, f"fingerprint in {encoding}", lambda: _fingerprint(path, encoding))
    return bytes.fromhex(digest), has_lone_returns


def _fingerprint(path: Path, encoding: str) -> tuple[str, bool]:
    """The same, with the hash in hexadecimal digits."""
    sha, lone, held = hashlib.sha256(), False, ""
    plain = "\r\n".encode(encoding) == b"\r\n"  # then the byte of "\r" is never part of another character
    decoder = codecs.getincrementaldecoder("latin-1" if plain else encoding)("replace")
    is_plain = not packed.is_packed(path) and not is_parquet(path)
    try:
        with open(path, "rb") as file:
            while raw := file.read(CHUNK):
                sha.update(raw)
                if not lone and is_plain and (not plain or held or b"\r" in raw):
                    with contextlib.suppress(UnicodeError):  # reading it gives the message
                        text = held + decoder.decode(raw)
                        held = "\r" if text.endswith("\r") else ""
                        lone = text.count("\r") - len(held) != text.count("\r\n")
    except OSError as error:
        raise UserError(f"cannot read {shown(path)}: {error.strerror}") from error
    return sha.hexdigest(), lone or bool(held)


def known(path: Path, what: str, find: Callable[[], Fact]) -> Fact:
    """`source_notes.noted`, but for standard input, whose file is deleted after use."""
    return find() if path.name.startswith(SPOOL_PREFIX) else noted(cache_folder(), path, what, find)


def read_chunks(
    files: Iterable[Path], encoding: str, digests: Mapping[Path, bytes] | None = None, size: int | None = None
) -> Iterator[str]:
    """The text of the files in chunks of `size` bytes (CHUNK by default): unpacked, without byte-order marks, "\\r\\n"
    and "\\r" as "\\n", a line end between files.

    Raises UserError for bytes that are not in `encoding` (with their offset), for NUL bytes (a binary file), and at the
    end of a file whose SHA-256 is no longer that in `digests`."""
    unfinished = False
    for path in files:
        for n, chunk in enumerate(_file_chunks(path, encoding, None if digests is None else digests[path], size)):
            if n == 0 and unfinished:
                yield "\n"
            unfinished = not chunk.endswith("\n")
            yield chunk


def numbered_lines(chunks: Iterable[str]) -> Iterator[tuple[int, str]]:
    """All lines, empty ones too, with their numbers from 1. At most one line and one chunk are held."""
    n, pieces = 1, []
    for chunk in chunks:
        first, *more = chunk.split("\n")
        pieces.append(first)
        for line in more:
            yield n, "".join(pieces)
            n, pieces = n + 1, [line]
    yield n, "".join(pieces)


def read_whole(path: Path, encoding: str, digests: Mapping[Path, bytes] | None = None) -> str:
    """The text of a file of examples. Warns of control characters that indicate one of Windows' encodings."""
    pieces, size = [], 0
    for chunk in read_chunks([path], encoding, digests):
        pieces.append(chunk)
        size += len(chunk)
        if size > IN_MEMORY and packed.is_packed(path):
            raise UserError(f"{shown(path)} unpacks to more than {IN_MEMORY:,} characters: too many to hold in memory")
    text = "".join(pieces)
    for note in note_c1(set(C1.findall(text)) if may_be_windows(encoding) else set(), shown(path), encoding):
        warn(note)
    return text


def may_be_windows(encoding: str) -> bool:
    """Whether `encoding` has control characters where Windows' encodings have letters and quotes."""
    return codecs.lookup(encoding).name.startswith("iso8859-")


def note_c1(characters: set[str], name: str, encoding: str) -> list[str]:
    """A note on the control `characters` of the text `name` in `encoding`, if there are any."""
    if not characters:
        return []
    examples = " ".join(map(repr, sorted(characters)[:8])) + (" ..." if len(characters) > 8 else "")
    likely = " cp1252" if codecs.lookup(encoding).name in _LIKE_CP1252 else ""
    return [
        f"{name} has control characters that no text has ({examples}); it looks like Windows': see --encoding{likely}"
    ]


def whole_characters(text: str) -> str:
    """`text` without lone surrogates, as which bytes outside the terminal's encoding arrive: they become the characters
    that they are in UTF-8, else U+FFFD."""
    if text.isascii() or not _SURROGATE.search(text):
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return _SURROGATE.sub("\ufffd", text)


def check_characters(text: str, where: str) -> None:
    """Raise UserError, with `where`, when `text` has a lone surrogate, half of a character, as an escape in JSON may
    be. No reader accepts one: two halves at the edges of joined texts would become another character."""
    if not text.isascii() and (half := _SURROGATE.search(text)):
        raise UserError(f"{where} has half of a character (\\u{ord(half[0]):04x}): it is not text")


def read_lines(chunks: Iterable[str]) -> Iterator[str]:
    """The lines of a text, which end at "\\n" alone, without trailing white space and empty lines."""
    rest = ""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split("\n")
        yield from filter(None, (line.rstrip() for line in lines))
    if rest.rstrip():
        yield rest.rstrip()


def _file_chunks(path: Path, encoding: str, digest: bytes | None = None, size: int | None = None) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    n_read, at_start, held = 0, True, ""
    may_have_halves = codecs.lookup(encoding).name not in _WITHOUT_SURROGATES
    limit = _free_space() if packed.is_packed(path) else None
    for raw in itertools.chain(packed.read_bytes(path, size or CHUNK, shown(path), digest), [b""]):
        n_read += len(raw)
        if limit is not None and n_read > limit:
            raise UserError(
                f"{shown(path)} unpacks to more than the {limit:,} bytes that are free where texts are prepared "
                f"({cache_folder()}); free some space, or name another folder in $CHARLM_CACHE"
            )
        try:
            text = held + decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            raise _not_text(path, encoding, n_read - len(error.object) + error.start, error.object) from None
        except UnicodeError as error:  # UTF-16 that does not say its byte order
            raise UserError(f"{shown(path)} is not {encoding}: {error}") from None
        if may_have_halves and _SURROGATE.search(text):
            raise UserError(f"{shown(path)} decodes from {encoding} to halves of characters: it is not text")
        if "\0" in text:
            raise UserError(f"{shown(path)} has NUL bytes: it is a binary file (or not {encoding}; see --encoding)")
        if at_start and text:
            text, at_start = text.removeprefix("\ufeff"), False
        # A "\r" at the end of a chunk may be half of a "\r\n": it is held until the next chunk.
        held = "\r" if text.endswith("\r") and raw else ""
        text = text.removesuffix("\r") if held else text
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        if text:
            yield text


def _free_space() -> int:
    """The bytes that are free on the disk of the cache: a packed file may not unpack to more."""
    folder = cache_folder().absolute()
    return shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free


def _not_text(path: Path, encoding: str, offset: int, near: bytes) -> UserError:
    if near.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return UserError(
            f"{shown(path)} is not {encoding} (byte offset {offset}) but starts like UTF-16: use --encoding utf-16"
        )
    if b"\0" in near:
        return UserError(
            f"{shown(path)} is not text: it has NUL bytes and byte {offset} is not {encoding} (a binary file?)"
        )
    # Whether a byte that is not UTF-8 is a control character in latin-1, and a quote or letter in cp1252.
    windows = any("\udc80" <= character <= "\udc9f" for character in near.decode("utf-8", "surrogateescape"))
    likely = "cp1252" if windows else "latin-1"
    where = f"{shown(path)} is not {encoding}: invalid byte at offset {offset}"
    return UserError(f"{where}; name its encoding, as in --encoding {likely}")


def _is_text(path: Path, encoding: str) -> bool:
    try:  # of a file that is none nothing is noted: it may be for want of a package or of space
        return known(path, f"text in {encoding}", lambda: _has_text(path, encoding))
    except UserError:
        return False


def _has_text(path: Path, encoding: str) -> bool:
    return any([bool(chunk) for chunk in _file_chunks(path, encoding)])
