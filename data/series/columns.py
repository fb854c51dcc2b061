"""The number columns of CSV and TSV files as series."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data import reading
from data.errors import UserError, nearest
from data.table_rows import is_column_number, table_rows

MISSING = {"", "nan", "na", "n/a", "null", "none"}  # cells without a value, in lower case
NAMED = 5  # lines that a note names
THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+")
PUNCTUATED = re.compile(r"[+-]?\d[\d.,]*")
COMMA_HINT = (
    "; whether its comma parts thousands or decimals cannot be told: write points for decimals, and no thousands"
)


class Series(NamedTuple):
    """A column: its name, and its values (T,) float64 in the order of the rows."""

    name: str
    values: np.ndarray


class _Cell(NamedTuple):
    line: int
    text: str


def read_columns(path: Path, wanted: Sequence[str], encoding: str = "utf-8") -> tuple[list[Series], list[str]]:
    """The columns of a table that are `wanted`, by name or number from 1, or all that are numbers; and notes on what
    was left out and filled in. A first row without a single number names the columns.

    Decimal commas are read in a column that has no points, and where one comma at least does not part thousands. A cell
    without a value takes the last one before it, at the beginning the first one after it. Raises UserError, with
    file and line, for a wanted column that is none, or holds something else, and for a table without numbers."""
    rows = list(table_rows(path, reading.read_chunks([path], encoding)))
    file = reading.shown(path)
    if not rows:
        raise UserError(f"{file} is empty: it holds no series")
    width = len(rows[0][1])
    names = [str(n) for n in range(1, width + 1)]
    if not any(_number(cell.replace(",", ".", 1)) is not None for cell in rows[0][1]):
        names = [name.strip() or number for name, number in zip(rows[0][1], names, strict=True)]
        rows = rows[1:]
    for line, row in rows:
        if len(row) > width:
            raise UserError(f"{file} line {line:,} has {len(row)} cells, and the first line {width}")
    chosen = [_index(name, names, file) for name in wanted]
    if len(set(chosen)) < len(chosen):
        raise UserError(f"--column names a column of {file} twice: {', '.join(wanted)}")
    found: list[Series] = []
    notes: list[str] = []
    left_out: list[str] = []
    for index in chosen or range(width):
        cells = [_Cell(line, row[index] if index < len(row) else "") for line, row in rows]
        values = _values([cell.text for cell in cells])
        if not np.isnan(values).all() and not np.isinf(values).any():
            found.append(Series(names[index], _filled(values, cells, names[index], notes)))
            continue
        what = _not_numbers(values, cells)
        if chosen:
            raise UserError(f"{file} column '{names[index]}' is no series of numbers: {what}")
        left_out.append(f"column '{names[index]}' of {file} is left out: {what}")
        if np.isfinite(values).any() or COMMA_HINT in what:  # of names and dates nothing is said
            notes.append(left_out[-1])
    if not found:
        raise UserError(f"{file} has no column of numbers: {'; '.join(left_out)}")
    return found, notes


def _index(name: str, names: list[str], file: str) -> int:
    """Which of the columns `name` is."""
    if name in names:
        return names.index(name)
    if is_column_number(name, names):
        return int(name) - 1
    raise UserError(f"{file} has no column '{name}'; it has: {', '.join(names)[:200]}.{nearest(name, names)}")


def _number(text: str) -> float | None:
    """The finite number that a cell holds; None for anything else."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None


def _value(text: str) -> float:
    """The number of a cell: NaN where it has no value, infinity for what is no number."""
    if text.strip().lower() in MISSING:
        return math.nan
    number = _number(text)
    return math.inf if number is None else number


def _values(texts: list[str]) -> np.ndarray:
    """`_value` of each of these cells of a column, whose commas are decimal ones where they can be nothing else."""
    values = np.array([_value(text) for text in texts], float)
    with_comma = [text for text in texts if "," in text]
    if not with_comma or any("." in text for text in texts) or all(THOUSANDS.fullmatch(each) for each in with_comma):
        return values
    pointed = np.array([_value(text.replace(",", ".", 1)) for text in texts], float)
    return values if np.isinf(pointed).any() else pointed


def _not_numbers(values: np.ndarray, cells: list[_Cell]) -> str:
    """Why a column is no series."""
    if not np.isinf(values).any():
        return "it has no value at all"
    first = cells[int(np.isinf(values).argmax())]
    hint = COMMA_HINT if "," in first.text and PUNCTUATED.fullmatch(first.text.strip()) else ""
    return f"line {first.line:,} holds {first.text[:40]!r}{hint}"


def _filled(values: np.ndarray, cells: list[_Cell], name: str, notes: list[str]) -> np.ndarray:
    """The values with the missing ones filled in, of which a note tells."""
    missing = np.isnan(values)
    if not missing.any():
        return values
    lines = [f"{cells[i].line:,}" for i in np.flatnonzero(missing)]
    more = f" and {len(lines) - NAMED:,} more" if len(lines) > NAMED else ""
    which = f"{'line' if len(lines) == 1 else 'lines'} {', '.join(lines[:NAMED])}{more}"
    instead = "the last one before stands there" + (", at the beginning the first one after" if missing[0] else "")
    notes.append(f"column '{name}' has no value in {which}: {instead}")
    last = np.maximum.accumulate(np.where(missing, -1, np.arange(len(values))))
    return values[np.where(last < 0, np.flatnonzero(~missing)[0], last)]
