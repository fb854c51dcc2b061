"""Which columns of a table are the text and the label, and whether its first row is a header."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.errors import UserError, nearest, note
from data.labelled.example import Columns
from data.table_rows import is_column_number

_TEXTS = {
    "text", "texts", "sentence", "sentences", "review", "message", "content", "tweet", "question", "comment", "title",
    "body", "description", "utterance", "query", "document", "email", "sms", "post", "v2",
}  # fmt: skip
_LABELS = {
    "label", "labels", "class", "classes", "category", "sentiment", "intent", "target", "polarity", "topic", "language",
    "emotion", "type", "tag", "rating", "score", "y", "v1",
}  # fmt: skip
_NAME = re.compile(r"\w[\w ./-]{0,39}")  # what may be the name of a column, not a text
ENOUGH = 10  # rows beside which a first one with a label of its own is a header, whatever it says
WAY_OUT = "--text-column and --label-column say which are meant"


class Chosen(NamedTuple):
    """The indices of the two columns, and whether the first row names the columns."""

    text: int
    label: int
    has_header: bool


def choose(path: Path, rows: Sequence[Sequence[str]], columns: Columns) -> Chosen:
    """The columns of a table with these `rows`, of which the first may be a header. By name 'text' and 'label' are the
    default, by number both are given; of two columns the one with fewer distinct values is the label.

    Raises UserError where that does not say which they are."""
    header = [name.strip() for name in rows[0]]
    lower = [name.lower() for name in header]
    has_names = {"text", "label"} <= set(lower)
    if any(columns) and all(name is None or (name.isdecimal() and not _is_name(name, lower)) for name in columns):
        text, label = _by_number(path, columns, len(header))
        return Chosen(text, label, has_names or _is_header(rows, text, label))
    if has_names or any(columns):
        text, label = by_name(path, header, columns)
        return Chosen(text, label, True)
    if len(header) != 2:
        raise UserError(
            f"{path} line 1 names no columns 'text' and 'label' (it has: {', '.join(header)[:200]}); say which they "
            "are with --text-column and --label-column, by name or by number"
        )
    text, label = by_content(rows)
    if not _is_header(rows, text, label):
        return Chosen(text, label, False)
    if _as_many(rows) and lower[text] in _LABELS:
        text, label = label, text
    tell(path, header[text], header[label])
    return Chosen(text, label, True)


def by_name(path: Path, names: Sequence[str], columns: Columns) -> tuple[int, int]:
    """The indices of the text and the label among these names, in any case; of two columns one may go without."""
    lower = [name.lower() for name in names]
    wanted = [columns.text or "text", columns.label or "label"]
    found = [lower.index(name.lower()) if name.lower() in lower else None for name in wanted]
    for this, other in ((0, 1), (1, 0)) if len(names) == 2 else ():
        given = found[other]
        if columns[this] is None and columns[other] is not None and given is not None and found[this] in (None, given):
            found[this] = 1 - given
    for name, index in zip(wanted, found, strict=True):
        if index is None:
            listed = ", ".join(names)[:200]
            raise UserError(f"{path} has no column '{name}'; it has: {listed}.{nearest(name, names)} {WAY_OUT}")
    text, label = found
    assert text is not None and label is not None
    return text, label


def by_content(rows: Sequence[Sequence[Any]], label_first: bool = True) -> tuple[int, int]:
    """The indices of the text and the label among two columns: the label has lists, or fewer distinct values.
    `label_first`: which it is where both have as many."""
    lists = {index for row in rows for index, value in enumerate(row[:2]) if isinstance(value, list)}
    if len(lists) == 1:
        return (1, 0) if 0 in lists else (0, 1)
    first, second = _distinct(rows)
    return (0, 1) if second < first or (second == first and not label_first) else (1, 0)


def tell(path: Path, text: str, label: str) -> None:
    """Say which columns were chosen by what they hold."""
    note(f"{path}: '{text}' is taken for the text and '{label}' for the label, by what they hold; {WAY_OUT}")


def _is_name(column: str, lower: list[str]) -> bool:
    return column in lower and not is_column_number(column, lower)


def _by_number(path: Path, columns: Columns, width: int) -> tuple[int, int]:
    if missing := [name for name, column in zip(Columns._fields, columns, strict=True) if column is None]:
        raise UserError(f"{path}: give --{missing[0]}-column too, as a number from 1")
    text, label = (int(number or 0) - 1 for number in columns)
    for index in (text, label):
        if not 0 <= index < width:
            raise UserError(f"{path} has {width} columns; there is no column {index + 1}")
    return text, label


def _is_header(rows: Sequence[Sequence[str]], text: int, label: int) -> bool:
    """Whether the first row names the columns: its label is no other row's, and its cells are names by what they say,
    or beside numbers, or because the other labels come again and again."""
    first, *others = [(row[text].strip(), row[label].strip()) for row in rows if len(row) > max(text, label)]
    labels = [other for _, other in others]
    if not labels or first[1] in labels or not all(map(_NAME.fullmatch, first)):
        return False
    if first[0].lower() in _TEXTS or first[1].lower() in _LABELS:
        return True
    of_numbers = all(other.lstrip("-").isdecimal() for other in labels) and not first[1].lstrip("-").isdecimal()
    return of_numbers or len(labels) >= max(ENOUGH, 2 * len(set(labels)))


def _distinct(rows: Sequence[Sequence[Any]]) -> tuple[int, int]:
    pairs = [tuple(map(str, row)) for row in rows if len(row) == 2]
    return len({row[0] for row in pairs}), len({row[1] for row in pairs})


def _as_many(rows: Sequence[Sequence[str]]) -> bool:
    first, second = _distinct(rows)
    return first == second
