"""The rows of TSV and CSV files, read alike for a text to learn from and for labelled texts."""

import csv
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from data import packed, reading
from data.documents import MAX_DOCUMENT
from data.errors import UserError

DELIMITERS = (",", ";", "\t")
BEGINNING = 1 << 16  # characters of a file that show what its fields are separated by ...
FIRST_ROWS = 20  # ... or so many rows
DECIMAL = re.compile(r"[+-]?\d+,\d+")


def table_rows(path: Path, chunks: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """The rows of the table `path`, whose text is `chunks`, without blank ones: of each the number of its last line and
    its fields. In TSV quotes are data, and tabs beyond the number of the first line belong to the last column. A .csv
    file may have semicolons or tabs for commas.

    Raises UserError, with the file and the line, for invalid CSV."""
    if packed.unpacked_name(path).suffix.lower() == ".tsv":
        return tab_separated(reading.numbered_lines(chunks))
    chunks, held = iter(chunks), [""]
    while sum(map(len, held)) <= BEGINNING and (chunk := next(chunks, "")):
        held.append(chunk)
    delimiter = _delimiter("".join(held))
    return _quoted(path, reading.numbered_lines(itertools.chain(held, chunks)), delimiter)


def is_column_number(column: str, names: Sequence[str]) -> bool:
    """Whether `column` counts the columns of a table, from 1, rather than names one of them. The first row of a table
    without a header may have numbers, too; names that are numbers count up from 0 or 1, as pandas writes them."""
    if not column.isdecimal() or not 1 <= int(column) <= len(names):
        return False
    return not any(list(names) == list(map(str, range(start, start + len(names)))) for start in (0, 1))


def tab_separated(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    """The rows of numbered lines whose fields have tabs between them."""
    width = None
    for n, line in lines:
        if line.strip():
            width = line.count("\t") if width is None else width
            yield n, line.split("\t", width)


def _delimiter(beginning: str) -> str:
    """What separates the fields of a CSV file that begins so: a comma where every row has one, or where nothing else
    makes rows of one width of it. Where others part
    fields that have commas within numbers alone, those are decimal ones."""
    lines = beginning[:BEGINNING].split("\n")
    if len(beginning) > BEGINNING and len(lines) > 1:
        lines.pop()  # it may go on
    decimal = [delimiter for delimiter in DELIMITERS[1:] if _has_decimal_commas(lines, delimiter)]
    for delimiter in (*decimal, *DELIMITERS):
        widths = _widths(lines, delimiter)
        if widths and min(widths) > 1 and (delimiter == "," or len(set(widths)) == 1):
            return delimiter
    return ","


def _has_decimal_commas(lines: list[str], delimiter: str) -> bool:
    """Whether in the first rows, with this delimiter, commas stand within numbers and nowhere else."""
    fields = [field.strip() for line in filter(None, lines[:FIRST_ROWS]) for field in line.split(delimiter)]
    with_comma = [field for field in fields if "," in field]
    return bool(with_comma) and all(DECIMAL.fullmatch(field) for field in with_comma)


def _widths(lines: list[str], delimiter: str) -> list[int]:
    """How many fields the first rows have; none where they are no CSV with this delimiter."""
    csv.field_size_limit(MAX_DOCUMENT)
    widths: list[int] = []
    try:
        reader = csv.reader((f"{line}\n" for line in lines), strict=True, delimiter=delimiter)
        widths.extend(len(row) for row in itertools.islice(filter(None, reader), FIRST_ROWS))
    except csv.Error as error:
        return widths if "unexpected end" in str(error) else []
    return widths


def _quoted(path: Path, lines: Iterable[tuple[int, str]], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(MAX_DOCUMENT)
    reader = csv.reader((f"{line}\n" for _, line in lines), strict=True, delimiter=delimiter)
    begins = 1  # the line on which the next row begins
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
            begins = reader.line_num + 1
    except csv.Error as error:
        reason = "a quote that begins here never ends" if "unexpected end" in str(error) else str(error)
        raise UserError(f"{path} line {begins}: {reason}") from error
