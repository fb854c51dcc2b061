"""Which files of a text are tables, whose column of texts is read, and which are plain text.

By itself a file of JSON or Parquet is a table: its column is `text`, as corpora are published. So is any file that
`--text-column` is given for. Of a folder with tables nothing else is read. JSON lines under any other name are refused:
a model would learn the braces.
"""

from pathlib import Path
from typing import NamedTuple

from data import packed, reading
from data.errors import UserError
from data.json_items import first_of_list, line_objects
from data.parquet import is_parquet
from data.sources import Text
from data.table_rows import table_rows
from data.tables import TABLES, is_table

COLUMN = "text"  # of tables for which --text-column is not given


class Chosen(NamedTuple):
    """The files of a text in their order, those of them that are tables, and notes on what is left out."""

    files: list[Path]
    tables: list[Path]
    notes: list[str]


def choose(text: Text, column: str | None, encoding: str) -> Chosen:
    """The files of `text` that are read, given `--text-column`. Raises UserError where none can be read, and for plain
    text that is JSON lines."""
    if column is not None and text.folder is None:  # reading one that is no table raises the error
        return Chosen(list(text.files), list(text.files), [])
    is_of_column = _is_published if column is None else _has_column
    tables = [path for path in text.files if is_of_column(path, text, encoding)]
    if tables:
        others = sorted(set(text.files) - set(tables))
        return Chosen(tables, tables, reading.left_out(text, others, "tables"))
    if column is not None:
        raise UserError(
            f"--text-column is for tables, and the folder {text.folder} holds none among its {len(text.files)} files "
            f"({', '.join(TABLES)}, or JSON lines by any name)"
        )
    readable, skipped = reading.text_files(text, encoding)
    for path in readable:
        _check_plain(path, encoding)
    return Chosen(readable, [], reading.left_out(text, skipped, encoding))


def _has_column(path: Path, _: Text, encoding: str) -> bool:
    """Whether `--text-column` may be of a file of a folder."""
    return is_table(path) or bool(line_objects(path, encoding))


def _is_published(path: Path, text: Text, encoding: str) -> bool:
    """Whether a file is a table without `--text-column`. A .json file is one where it holds objects; in a folder, where
    it may be a file of settings, where these have a `text`."""
    if is_parquet(path) or _suffix(path) == ".jsonl":
        return True
    if _suffix(path) != ".json":
        return False
    objects = line_objects(path, encoding)
    first = objects[0] if len(objects) > 1 else first_of_list(path, encoding)
    return first is not None and (text.folder is None or COLUMN in first)


def _check_plain(path: Path, encoding: str) -> None:
    """Raise UserError where a file that is read as plain text holds JSON lines. (One line of a .json file is a file of
    settings.)"""
    if _suffix(path) in (".csv", ".tsv"):
        return
    objects = line_objects(path, encoding)
    if len(objects) > (_suffix(path) == ".json"):
        raise UserError(
            f"{reading.shown(path)} holds JSON lines, and would be learned with its braces and keys: --text-column KEY "
            f"says which key has the texts; it has: {', '.join(objects[0])[:200] or 'nothing'}"
        )


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
    if _suffix(path) == ".json":
        return []
    if _suffix(path) not in (".tsv", ".csv"):
        return None
    try:
        _, names = next(table_rows(path, reading.read_chunks([path], encoding)), (0, []))
    except UserError:
        names = []
    return names if len(names) > 1 else None


def _suffix(path: Path) -> str:
    return packed.unpacked_name(path).suffix.lower()
