"""One pass after another over a text's files: as chunks, as the pieces of a stream, or as rows."""

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from tqdm import tqdm

from data import packed, reading, tables
from data.documents import read_documents
from data.errors import UserError
from data.parquet import is_parquet
from data.pieces import Piece

SHOW_PROGRESS = 20 << 20  # bytes of text from which preparing shows a bar


class Passes:
    """The files of a text, and perhaps of a validation text, of which never more than a chunk is held.

    `digests`: the SHA-256 that each file has to have at every reading. `separator` stands between documents (None:
    blank lines). Of the `tables` among the files each text of `text_column` is a line or document. Where there are any,
    or a `separator`, a stream `has_ends`: `<eos>` after each document, and after each file without."""

    def __init__(
        self,
        files: list[list[Path]],
        digests: Mapping[Path, bytes],
        kind: str,
        separator: str | None,
        text_column: str | None,
        encoding: str,
        tables: Collection[Path],
    ):
        self.files, self.digests, self.encoding = files, digests, encoding
        self.kind, self.separator, self.text_column, self.tables = kind, separator, text_column, tables
        self.has_ends = bool(tables) or separator is not None  # also of a stream
        self.c1: set[str] = set()  # control characters that mean another encoding, one of Windows'
        self.bar = tqdm(disable=True)
        paths = [path for text in files for path in text]
        self.size = sum(path.stat().st_size for path in paths)  # bytes on the disk
        self._is_size_of_text = not any(packed.is_packed(path) or is_parquet(path) for path in paths)

    def show(self, name: str, passes: int) -> tqdm:
        """A progress bar over so many passes, a context."""
        total = passes * self.size if self._is_size_of_text else None
        hidden = self.size < SHOW_PROGRESS or None
        self.bar = tqdm(total=total, unit="B", unit_scale=True, desc=f"preparing {name}", disable=hidden)
        return self.bar

    def rows(self, index: int) -> Iterator[str]:
        """The lines or documents of a text; a document ends with its file."""
        return itertools.chain.from_iterable(map(self._rows_of, self.files[index]))

    def _rows_of(self, path: Path) -> Iterator[str]:
        if path in self.tables:
            return self._read_table(path)
        if self.kind == "lines":
            return reading.read_lines(self.chunks([path]))
        return read_documents(self.chunks([path]), self.separator, reading.shown(path))

    def _read_table(self, path: Path) -> Iterator[str]:
        assert self.text_column is not None
        read = tables.read_unstripped if self.kind == "stream" else tables.read_texts
        for n, row in enumerate(read(path, self.text_column, self.encoding, self.digests), 1):
            if self.kind == "lines" and "\n" in row:
                raise UserError(f"text {n:,} of {reading.shown(path)} has several lines; use --kind documents")
            yield row
            self.bar.update(len(row))

    def chunks(self, files: list[Path]) -> Iterator[str]:
        """The text of some of the files."""
        size = reading.SMALL_CHUNK if self.kind == "stream" and not self.has_ends else None
        for chunk in reading.read_chunks(files, self.encoding, self.digests, size):
            if not chunk.isascii() and reading.may_be_windows(self.encoding):
                self.c1.update(reading.C1.findall(chunk))
            yield chunk
            self.bar.update(len(chunk))

    def pieces(self, index: int, cut: Callable[[Iterator[str]], Iterator[str]] = iter) -> Iterator[Piece]:
        """A text as pieces of a stream; `cut` cuts what is no document."""
        if not self.has_ends:
            yield from map(Piece, cut(self.chunks(self.files[index])))
            return
        for path in self.files[index]:
            if path in self.tables or self.separator is not None:
                yield from (Piece(document, ends=True) for document in self._rows_of(path))
            else:
                is_empty = True
                for chunk in cut(self.chunks([path])):
                    is_empty = False
                    yield Piece(chunk)
                if not is_empty:
                    yield Piece("", ends=True)
