"""Columns of a Parquet file as texts, a batch of rows at a time; pyarrow, which reads it, is optional."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.errors import UserError, nearest
from data.packed import Changed

ROWS = 256  # read at a time: of web pages about a megabyte
BUFFER = 1 << 20  # bytes of a column that are read ahead; without it a whole row group would be


def is_parquet(path: Path) -> bool:
    """Whether the name of `path` is that of a Parquet file."""
    return path.suffix.lower() == ".parquet"


def column_names(path: Path) -> list[str]:
    """The names of the columns of `path`. Raises UserError as `read_column` does."""
    arrow, parquet = _library(path)
    with _readable(path, arrow), parquet.ParquetFile(path) as file:
        return list(file.schema_arrow.names)


def class_names(path: Path, column: str) -> list[str]:
    """The names of the classes that the numbers of a column, or in its lists, stand for, as Hugging Face's `datasets`
    notes them in the file; none where it has no such note."""
    arrow, parquet = _library(path)
    with _readable(path, arrow), parquet.ParquetFile(path) as file:
        noted = (file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    try:
        feature = json.loads(noted)["info"]["features"][column]
        feature = feature[0] if isinstance(feature, list) else feature.get("feature", feature)
        names = feature["names"]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return []
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def read_column(path: Path, column: str, digest: bytes | None = None) -> Iterator[str]:
    """The texts of the rows of `path` in `column`, "" for a missing one. Numbers are written out.

    Raises UserError, with the file, where it is no Parquet file or damaged, lacks the column or has no texts in it, and
    `Changed` at the end where the SHA-256 of the file is not `digest`."""
    return (text for (text,) in read_columns(path, [column], digest))


def read_columns(path: Path, columns: Sequence[str], digest: bytes | None = None) -> Iterator[tuple[str, ...]]:
    """The same of several columns, together."""
    for row in read_rows(path, columns, digest=digest):
        yield tuple(_written(value) for value in row)


def read_rows(
    path: Path, columns: Sequence[str], lists: bool = False, digest: bytes | None = None
) -> Iterator[tuple[Any, ...]]:
    """The same as they are: numbers as such, None for a missing one. `lists`: whether a column may have lists of texts
    or numbers, too."""
    arrow, parquet = _library(path)
    with _readable(path, arrow):
        with parquet.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:
            for column in columns:
                _check_column(path, column, file.schema_arrow, arrow, lists)
            for batch in file.iter_batches(ROWS, columns=list(columns), use_threads=False):
                yield from zip(*(batch.column(column).to_pylist() for column in columns), strict=True)
        if digest is not None and _digest(path) != digest:
            raise Changed(path)


@contextlib.contextmanager
def _readable(path: Path, arrow: Any) -> Iterator[None]:
    """Inside, what pyarrow and the system say of `path` becomes a UserError."""
    try:
        yield
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None and error.strerror:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is no whole .parquet file, or damaged: {reason}") from error


def _library(path: Path) -> tuple[Any, Any]:
    """pyarrow and its module of Parquet files."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path} takes a package that is not installed: pip install pyarrow") from error
    return pyarrow, pyarrow.parquet


def _written(value: Any) -> str:
    return "" if value is None else str(value)


def _check_column(path: Path, column: str, schema: Any, arrow: Any, lists: bool) -> None:
    names = list(schema.names)
    if column not in names:
        listed = ", ".join(names)[:200] or "nothing"
        raise UserError(
            f"{path} has no column '{column}'; it has: {listed}.{nearest(column, names)} --text-column NAME says which "
            "has the texts"
        )
    kind = schema.field(column).type
    if lists and (arrow.types.is_list(kind) or arrow.types.is_large_list(kind)):
        kind = kind.value_type
    kind = kind.value_type if arrow.types.is_dictionary(kind) else kind
    types = arrow.types
    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_integer, types.is_floating)
    if not any(is_of(kind) for is_of in (*tests, types.is_null)):
        raise UserError(f"{path}: the column '{column}' holds neither texts nor numbers, but {kind}")


def _digest(path: Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
