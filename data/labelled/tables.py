"""Labelled texts in tables: TSV, CSV with commas, semicolons or tabs, and Parquet."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data import parquet, reading
from data.errors import UserError
from data.labelled.columns import WAY_OUT, by_content, by_name, choose, tell
from data.labelled.example import Columns, Example, Fault
from data.labelled.several import distinct
from data.table_rows import table_rows


def read_table(path: Path, columns: Columns, encoding: str) -> Iterator[Example | Fault]:
    """The examples of a TSV or CSV file."""
    return examples_of_rows(path, list(table_rows(path, [reading.read_whole(path, encoding)])), columns)


def examples_of_rows(path: Path, rows: list[tuple[int, list[str]]], columns: Columns) -> Iterator[Example | Fault]:
    """The examples of rows, each after the number of its line."""
    if not rows:
        return
    text, label, has_header = choose(path, [row for _, row in rows], columns)
    needed = max(text, label) + 1
    for n, row in rows[has_header:]:
        if len(row) < needed:
            yield Fault(f"{path} line {n} has {len(row)} columns where {needed} are needed")
        else:
            yield Example(row[text].strip(), row[label].strip(), f"{path} line {n}")


def read_parquet(path: Path, columns: Columns) -> Iterator[Example | Fault]:
    """The examples of a Parquet file; numbers of classes whose names it notes become these names, and a column
    of lists has all labels of each text.

    Raises UserError where pyarrow is missing."""
    names = parquet.column_names(path)
    if any(columns) or {"text", "label"} <= {name.lower() for name in names}:
        text, label = by_name(path, names, columns)
    elif len(names) == 2:
        text, label = by_content(list(parquet.read_rows(path, names, lists=True)))
        tell(path, names[text], names[label])
    else:
        raise UserError(f"{path} has no columns 'text' and 'label', but: {', '.join(names)[:200]}; {WAY_OUT}")
    classes = dict(enumerate(parquet.class_names(path, names[label])))

    def name(number: Any) -> str:
        number = "" if number is None else str(number)
        return classes.get(int(number), number) if number.isdecimal() else number

    texts = parquet.read_columns(path, [names[text]])
    labels = parquet.read_rows(path, [names[label]], lists=True)
    for n, ((said,), (label_or_list,)) in enumerate(zip(texts, labels, strict=True), 1):
        where = f"{path} row {n}"
        if isinstance(label_or_list, list):
            yield Example(said.strip(), "", where, distinct(map(name, label_or_list)))
        else:
            yield Example(said.strip(), name(label_or_list).strip(), where)
