"""One column of a Parquet file as texts, a batch of rows at a time; pyarrow, which reads it, is optional."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.errors import UserError, nearest
from data.packed import Changed

ROWS = 256  # read at a time: of web pages about a megabyte
BUFFER = 1 << 20  # bytes of a column that are read ahead; without it a whole row group would be


def is_parquet(path: Path) -> bool:
    """Whether the name of `path` is that of a Parquet file."""
    return path.suffix.lower() == ".parquet"


def read_column(path: Path, column: str, digest: bytes | None = None) -> Iterator[str]:
    """The texts of the rows of `path` in `column`, "" for a missing one. Numbers are written out.

    Raises UserError, with the file, where it is no Parquet file or damaged, lacks the column or has no texts in it, and
    `Changed` at the end where the SHA-256 of the file is not `digest`."""
    arrow, parquet = _library(path)
    try:
        with parquet.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:
            _check_column(path, column, file.schema_arrow, arrow)
            for batch in file.iter_batches(ROWS, columns=[column], use_threads=False):
                for value in batch.column(0).to_pylist():
                    yield "" if value is None else str(value)
        if digest is not None and _digest(path) != digest:
            raise Changed(path)
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


def _check_column(path: Path, column: str, schema: Any, arrow: Any) -> None:
    names = list(schema.names)
    if column not in names:
        listed = ", ".join(names)[:200] or "nothing"
        raise UserError(
            f"{path} has no column '{column}'; it has: {listed}.{nearest(column, names)} --text-column NAME says which "
            "has the texts"
        )
    kind = schema.field(column).type
    kind = kind.value_type if arrow.types.is_dictionary(kind) else kind
    types = arrow.types
    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_integer, types.is_floating)
    if not any(is_of(kind) for is_of in (*tests, types.is_null)):
        raise UserError(f"{path}: the column '{column}' holds neither texts nor numbers, but {kind}")


def _digest(path: Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
