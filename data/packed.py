"""The bytes of a file, a chunk at a time: decompressed where it is packed, and hashed as they are read.

A packed file may unpack to more than fits into memory: never more than a chunk of it is held.
"""

import bz2
import gzip
import hashlib
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from data.errors import UserError

PACKED = (".gz", ".bz2", ".xz", ".zst")
READ = 1 << 16  # packed bytes read at a time
ZSTD_READ = 1 << 10  # the same for Zstandard, whose library does not bound its output: 4 bytes may stand for 128 KB
XZ_MEMORY = 256 << 20  # bytes: a file that asks for a larger dictionary is refused (xz -9 takes 65 MB)


class Changed(UserError):
    """The file `name` has changed since its text was first read."""

    def __init__(self, name: object):
        super().__init__(f"{name} changed while it was read; prepare its text again when nothing writes to it any more")


def unpacked_name(path: Path) -> Path:
    """`path` without the suffix of its compression: 'a/poems.txt' for 'a/poems.txt.gz'."""
    return path.with_suffix("") if path.suffix.lower() in PACKED else path


def is_packed(path: Path) -> bool:
    """Whether the suffix of `path` is one of a packed file."""
    return path.suffix.lower() in PACKED


def check_unpacker(path: Path) -> None:
    """Raise UserError where unpacking `path` needs a package that is not installed."""
    if path.suffix.lower() == ".zst":
        _zstd()


def read_bytes(path: Path, size: int, name: str, digest: bytes | None = None) -> Iterator[bytes]:
    """The content of `path`, unpacked, about `size` bytes at a time. `name`: its name in messages.

    Raises UserError for a file that cannot be read or is damaged, and `Changed` at the end where the SHA-256 of its
    bytes on the disk is not `digest`."""
    try:
        with open(path, "rb") as plain:
            hashed = None if digest is None else _Hashed(plain)
            unpack = _UNPACKERS.get(path.suffix.lower(), _plain)
            yield from unpack(hashed or plain, size)
            if hashed and hashed.digest() != digest:
                raise Changed(name)
    except (EOFError, OSError, lzma.LZMAError, zlib.error, _Damaged) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"cannot read {name}: {error.strerror}") from error
        raise UserError(f"{name} is no whole {path.suffix} file, or damaged: {error}") from error


class _Damaged(Exception):
    """A decompressor cannot unpack the bytes."""


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class _Hashed:
    """A file with the SHA-256 of its content, read from its beginning."""

    def __init__(self, file: _Readable):
        self._file, self._sha = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self._sha.update(content)
        return content

    def digest(self) -> bytes:
        """The digest of the whole file, whose rest is read first."""
        while self.read(READ):
            pass
        return self._sha.digest()


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def _plain(file: _Readable, size: int) -> Iterator[bytes]:
    return iter(lambda: file.read(size), b"")


def _gzip(file: _Readable, size: int) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:  # type: ignore[call-overload]  # it need not seek
        yield from _plain(unpacked, size)


def _bz2(file: _Readable, size: int) -> Iterator[bytes]:
    return _streams(file, bz2.BZ2Decompressor, size, READ)


def _xz(file: _Readable, size: int) -> Iterator[bytes]:
    return _streams(file, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY), size, READ)


def _zst(file: _Readable, size: int) -> Iterator[bytes]:
    return _streams(file, _zstd(), size, ZSTD_READ)


_UNPACKERS = {".gz": _gzip, ".bz2": _bz2, ".xz": _xz, ".zst": _zst}


def _streams(file: _Readable, make: Callable[[], _Decompressor], size: int, read: int) -> Iterator[bytes]:
    """The content of all compressed streams of a file, one after the other, `size` bytes or a little more at a time."""
    decompressor, buffer = make(), bytearray()
    while True:
        if decompressor.eof:
            data = decompressor.unused_data.lstrip(b"\0") or file.read(read).lstrip(b"\0")  # xz pads with zeros
            if not data:
                break
            decompressor = make()
        elif decompressor.needs_input:
            data = file.read(read)
            if not data:
                raise EOFError("it ends too early")
        else:
            data = b""
        buffer += decompressor.decompress(data, size)
        if len(buffer) >= size:
            yield bytes(buffer)
            buffer.clear()
    yield bytes(buffer)


def _zstd() -> Callable[[], _Decompressor]:
    """A function that makes a decompressor for Zstandard: Python's own from 3.14 on, else that of a package."""
    try:
        from compression import zstd

        make, error_class = zstd.ZstdDecompressor, zstd.ZstdError
    except ImportError:
        try:
            import zstandard
        except ImportError as error:
            raise UserError("a .zst file takes a package that is not installed: pip install zstandard") from error

        make, error_class = lambda: zstandard.ZstdDecompressor().decompressobj(), zstandard.ZstdError

    class Zstandard:
        needs_input = True

        def __init__(self) -> None:
            self._frame = make()

        def decompress(self, data: bytes, max_length: int = -1) -> bytes:
            try:
                return self._frame.decompress(data)
            except error_class as error:
                raise _Damaged(error) from error

        @property
        def eof(self) -> bool:
            return self._frame.eof

        @property
        def unused_data(self) -> bytes:
            return self._frame.unused_data

    return Zstandard
