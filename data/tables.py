"""The texts of one column of tables: TSV, CSV, JSON and JSONL, a row at a time (a JSON file is held whole)."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from data import packed, reading
from data.documents import stripped
from data.errors import UserError, nearest
from data.json_items import json_items
from data.table_rows import table_rows

TABLES = (".tsv", ".csv", ".json", ".jsonl")


def is_table(path: Path) -> bool:
    """Whether the name of `path`, unpacked, is that of a table."""
    return packed.unpacked_name(path).suffix.lower() in TABLES


def read_texts(path: Path, column: str, encoding: str, digests: Mapping[Path, bytes] | None = None) -> Iterator[str]:
    """The texts of the rows of a table in `column`, a name or a number from 1, without blank lines around them; empty
    ones are left out. `digests` as in `reading.read_chunks`.

    Raises UserError, with the file and the row, for a file that is not a table or lacks the column."""
    if not is_table(path):
        raise UserError(
            f"--text-column is for tables, and {reading.shown(path)} is none by its name ({', '.join(TABLES)})"
        )
    reader = _of_items if _suffix(path) in (".json", ".jsonl") else _of_rows
    for text in reader(path, column, encoding, digests):
        if row := stripped(text).rstrip():
            yield row


def has_line_ends(files: list[Path], column: str, encoding: str) -> bool:
    """Whether a text of the column has several lines."""
    return any("\n" in text for path in files for text in read_texts(path, column, encoding))


def only_tables(folder: Path | None, files: list[Path]) -> tuple[list[Path], list[Path]]:
    """The `files` of a folder that are tables, and the others. Files that were named one by one (`folder` is None) all
    count as tables: reading one that is not raises the error. Raises UserError for a folder without tables."""
    if folder is None:
        return files, []
    tables = [path for path in files if is_table(path)]
    if not tables:
        raise UserError(
            f"--text-column is for tables, and the folder {folder} holds none among its {len(files)} files of text "
            f"({', '.join(TABLES)})"
        )
    return tables, [path for path in files if not is_table(path)]


def note_tables(files: list[Path], encoding: str) -> list[str]:
    """A note on the tables of several columns among files that are read as plain text, if there are any."""
    columns = {path: names for path in files if (names := _columns(path, encoding)) is not None}
    if not columns:
        return []
    path, names = next(iter(columns.items()))
    listed = f" ({'it' if len(files) == 1 else path.name} has: {', '.join(names)[:200]})" if names else ""
    way_out = f"for the texts of one column say --text-column NAME{listed}"
    if len(files) == 1:
        return [f"{path} is a table, and read as it stands; {way_out}"]
    examples = ", ".join(map(str, [*columns][: reading.NAMED]))
    more = f" and {len(columns) - reading.NAMED:,} more" if len(columns) > reading.NAMED else ""
    count = f"{len(columns):,} of the {len(files):,} files ({examples}{more})"
    return [f"{count} are tables, and read as they stand; {way_out}"]


def _columns(path: Path, encoding: str) -> list[str] | None:
    """The column names of a table that has several, as far as its beginning shows them; None for any other file."""
    if not is_table(path):
        return None
    try:
        if _suffix(path) in (".tsv", ".csv"):
            _, names = next(table_rows(path, reading.read_chunks([path], encoding)), (0, []))
        else:
            names = list(next(json_items(path, encoding))[1]) if _suffix(path) == ".jsonl" else []
    except (UserError, StopIteration, TypeError):
        names = []
    if len(names) == 1 or (not names and _suffix(path) != ".json"):
        return None
    return list(map(str, names))


def _suffix(path: Path) -> str:
    return packed.unpacked_name(path).suffix.lower()


def _of_items(path: Path, column: str, encoding: str, digests: Mapping[Path, bytes] | None) -> Iterator[str]:
    for where, item in json_items(path, encoding, digests):
        if not isinstance(item, dict):
            raise UserError(f"{where} is not an object with a text")
        if column not in item:
            keys = list(map(str, item))
            raise UserError(f"{where} has no key '{column}'; it has: {', '.join(keys)[:200]}.{nearest(column, keys)}")
        if not isinstance(item[column], str | int | float | None):
            raise UserError(f"{where}: '{column}' is neither a text nor a number")
        yield "" if item[column] is None else str(item[column])


def _of_rows(path: Path, column: str, encoding: str, digests: Mapping[Path, bytes] | None) -> Iterator[str]:
    rows = table_rows(path, reading.read_chunks([path], encoding, digests))
    n, header = next(rows, (1, []))
    names = [name.strip() for name in header]
    lower = [name.lower() for name in names]
    if column.lower() in lower:
        index = lower.index(column.lower())
    elif column.isdecimal() and 1 <= int(column) <= len(names):
        index = int(column) - 1
        if "text" not in lower:  # the first line has no names
            yield header[index]
    else:
        listed = ", ".join(names)[:200] or "nothing"
        raise UserError(f"{path} has no column '{column}'; it has: {listed}.{nearest(column, names)}")
    for n, row in rows:
        if len(row) <= index:
            raise UserError(f"{path} line {n} has {len(row)} columns where {index + 1} are needed")
        yield row[index]
