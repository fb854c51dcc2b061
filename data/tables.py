"""The texts of one column of tables: TSV, CSV, JSON, JSON lines and Parquet, a row at a time (a list in a JSON file is
held whole)."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from data import packed, reading
from data.documents import stripped
from data.errors import UserError, nearest
from data.json_items import json_items, line_objects
from data.parquet import is_parquet, read_column
from data.table_rows import is_column_number, table_rows

TABLES = (".tsv", ".csv", ".json", ".jsonl", ".parquet")


def is_table(path: Path) -> bool:
    """Whether the name of `path`, unpacked, is that of a table."""
    return is_parquet(path) or packed.unpacked_name(path).suffix.lower() in TABLES


def read_texts(path: Path, column: str, encoding: str, digests: Mapping[Path, bytes] | None = None) -> Iterator[str]:
    """The texts of the rows of a table in `column`, a name or (of TSV and CSV) a number from 1, without blank lines
    around them; empty ones are left out. `digests` as in `reading.read_chunks`.

    Raises UserError, with the file and the row, for a file that is not a table or lacks the column."""
    for text in read_unstripped(path, column, encoding, digests):
        if row := stripped(text).rstrip():
            yield row


def read_unstripped(
    path: Path, column: str, encoding: str, digests: Mapping[Path, bytes] | None = None
) -> Iterator[str]:
    """The same texts as they stand in the table."""
    if is_parquet(path):
        texts = read_column(path, column, None if digests is None else digests[path])
    elif _suffix(path) in (".tsv", ".csv"):
        texts = _of_rows(path, column, encoding, digests)
    elif is_table(path) or line_objects(path, encoding):
        texts = _of_items(path, column, encoding, digests)
    else:
        raise UserError(
            f"--text-column is for tables, and {reading.shown(path)} is none by its name ({', '.join(TABLES)}), nor "
            "are its lines JSON objects"
        )
    return (text for text in texts if text and not text.isspace())


def has_line_ends(files: list[Path], column: str, encoding: str) -> bool:
    """Whether a text of the column has several lines."""

    def find(path: Path) -> bool:
        return any("\n" in text for text in read_texts(path, column, encoding))

    return any(reading.known(path, f"line ends in {column!r} in {encoding}", partial(find, path)) for path in files)


def _suffix(path: Path) -> str:
    return packed.unpacked_name(path).suffix.lower()


def _of_items(path: Path, column: str, encoding: str, digests: Mapping[Path, bytes] | None) -> Iterator[str]:
    for where, item in json_items(path, encoding, digests):
        if not isinstance(item, dict):
            raise UserError(f"{where} is not an object with a text")
        if column not in item:
            keys = list(map(str, item))
            raise UserError(
                f"{where} has no key '{column}'; it has: {', '.join(keys)[:200] or 'nothing'}."
                f"{nearest(column, keys)} --text-column KEY says which has the texts"
            )
        if not isinstance(item[column], str | int | float | None):
            raise UserError(f"{where}: '{column}' is neither a text nor a number")
        yield "" if item[column] is None else str(item[column])


def _of_rows(path: Path, column: str, encoding: str, digests: Mapping[Path, bytes] | None) -> Iterator[str]:
    rows = table_rows(path, reading.read_chunks([path], encoding, digests))
    n, header = next(rows, (1, []))
    names = [name.strip() for name in header]
    lower = [name.lower() for name in names]
    if is_column_number(column, names):
        index = int(column) - 1
        if "text" not in lower:  # the first line has no names
            yield header[index]
    elif column.lower() in lower:
        index = lower.index(column.lower())
    else:
        listed = ", ".join(names)[:200] or "nothing"
        raise UserError(f"{path} has no column '{column}'; it has: {listed}.{nearest(column, names)}")
    for n, row in rows:
        if len(row) <= index:
            raise UserError(f"{path} line {n} has {len(row)} columns where {index + 1} are needed")
        yield row[index]
