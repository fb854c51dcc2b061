"""The rows of TSV and CSV files, read alike for a text to learn from and for labelled texts."""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from data import packed, reading
from data.documents import MAX_DOCUMENT
from data.errors import UserError


def table_rows(path: Path, chunks: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """The rows of the table `path`, whose text is `chunks`, without blank ones: of each the number of its last line and
    its fields. In TSV quotes are data, and tabs beyond the number of the first line belong to the last column.

    Raises UserError, with the file and the line, for invalid CSV."""
    lines = reading.numbered_lines(chunks)
    return _tab_separated(lines) if packed.unpacked_name(path).suffix.lower() == ".tsv" else _quoted(path, lines)


def _tab_separated(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    width = None
    for n, line in lines:
        if line.strip():
            width = line.count("\t") if width is None else width
            yield n, line.split("\t", width)


def _quoted(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(MAX_DOCUMENT)
    reader = csv.reader((f"{line}\n" for _, line in lines), strict=True)
    begins = 1  # the line on which the next row begins
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
            begins = reader.line_num + 1
    except csv.Error as error:
        reason = "a quote that begins here never ends" if "unexpected end" in str(error) else str(error)
        raise UserError(f"{path} line {begins}: {reason}") from error
