"""The texts that `--data` names: of a table one column, of anything else its lines, or all of it for a model that reads
one stream."""

import itertools
from collections.abc import Iterator
from pathlib import Path

from data import published
from data.errors import UserError
from data.reading import check_encoding, read_chunks, read_lines, text_files
from data.tables import is_table, read_texts

MOST = 200_000  # texts that are read


def texts_of(data: str, column: str | None, encoding: str, lines: bool) -> list[str]:
    """At most `MOST` texts of `data`. UserError where there are none, and for a column of what is no table."""
    check_encoding(encoding)
    text = published.resolve(data)
    try:
        files, _ = text_files(text, encoding)
        texts = list(itertools.islice(_texts(files, data, column, encoding, lines), MOST))
    finally:
        if text.temporary:
            text.files[0].unlink(missing_ok=True)
    if not texts:
        raise UserError(f"{data} holds no texts")
    return texts


def _texts(files: list[Path], data: str, column: str | None, encoding: str, lines: bool) -> Iterator[str]:
    found: Iterator[str]
    if tables := [path for path in files if is_table(path)]:
        found = itertools.chain.from_iterable(read_texts(path, column or "text", encoding) for path in tables)
    elif column is not None:
        raise UserError(f"--text-column is for tables, and {data} is none by its name")
    elif lines:
        found = read_lines(read_chunks(files, encoding))
    else:
        found = iter(["".join(itertools.islice(read_chunks(files, encoding), 1))])
    return (text for text in found if text.strip())
