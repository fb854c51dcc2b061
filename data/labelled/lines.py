"""Labelled texts as lines that begin with their label: fastText's, TREC's, a number, or a name and a tab."""

import re
from collections.abc import Iterator
from pathlib import Path

from data import reading
from data.errors import UserError, note
from data.labelled.example import MOST_FAULTS, Columns, Example, Fault
from data.labelled.several import distinct
from data.labelled.tables import examples_of_rows
from data.table_rows import tab_separated

_FASTTEXT = re.compile(r"((?:__label__\S+[ \t]+)+)(.*)", re.DOTALL)
_TREC = re.compile(r"([A-Z]+):(\w+)\s+(.*)", re.DOTALL)
_NUMBER = re.compile(r"(-?\d+)\s+(.*)", re.DOTALL)
SHAPES = "__label__NAME text, LABEL:fine text, NUMBER text, or two columns with a tab between them"
COARSE, FINE = "coarse", "fine"

Lines = list[tuple[int, str]]


def read_lines(path: Path, columns: Columns, encoding: str) -> Iterator[Example | Fault]:
    """The examples of a text file whose lines, but for a tenth, have one of the `SHAPES`. Of LABEL:fine the label is
    the part before the colon, or all of it with the label column 'fine'.

    Raises UserError for a file of other lines."""
    text = reading.read_whole(path, encoding)
    lines = [(n, line) for n, line in reading.numbered_lines([text]) if line.strip()]
    if _most(lines, _TREC):
        yield from _trec(path, lines, columns)
    elif _most(lines, re.compile(r"[^\t]+\t.*\S.*")):
        yield from examples_of_rows(path, list(tab_separated(lines)), columns)
    elif any(columns):
        name = "text" if columns.text is not None else "label"
        raise UserError(f"--{name}-column is for tables and JSON, and {path} is none by its name nor by its lines")
    elif _most(lines, _FASTTEXT):
        yield from _fasttext(path, lines)
    elif _most(lines, _NUMBER) and 2 * len({line.split()[0] for _, line in lines}) <= len(lines):
        yield from _matching(path, lines, _NUMBER, "begins with no number")
    else:
        raise UserError(
            f"{path} is no labelled data: give a .tsv, .csv, .json, .jsonl, .parquet file, lines of one kind "
            f"({SHAPES}), or a folder with one text file a class"
        )


def _most(lines: Lines, shape: re.Pattern) -> bool:
    matching = sum(shape.fullmatch(line) is not None for _, line in lines)
    return bool(lines) and len(lines) - matching <= MOST_FAULTS * len(lines)


def _fasttext(path: Path, lines: Lines) -> Iterator[Example | Fault]:
    for item in _matching(path, lines, _FASTTEXT, "begins with no __label__"):
        if isinstance(item, Example):
            labels = item.label.replace("__label__", " ").split()
            if len(labels) > 1:
                item = item._replace(label="", labels=distinct(labels))
            else:
                item = item._replace(label=labels[0])
        yield item


def _trec(path: Path, lines: Lines, columns: Columns) -> Iterator[Example | Fault]:
    if columns.text is not None or columns.label not in (None, COARSE, FINE):
        raise UserError(
            f"{path} has lines LABEL:fine text: --label-column may be {COARSE} or {FINE}, and no other flag"
        )
    if columns.label is None:
        note(f"{path}: the labels are what stands before the colon; with --label-column {FINE} all of LABEL:fine")
    for n, line in lines:
        where = f"{path} line {n}"
        if match := _TREC.fullmatch(line):
            coarse, fine, text = match.groups()
            yield Example(text.strip(), f"{coarse}:{fine}" if columns.label == FINE else coarse, where)
        else:
            yield Fault(f"{where} begins with no LABEL:fine")


def _matching(path: Path, lines: Lines, shape: re.Pattern, otherwise: str) -> Iterator[Example | Fault]:
    for n, line in lines:
        match = shape.fullmatch(line)
        if match:
            yield Example(match[2].strip(), match[1].strip(), f"{path} line {n}")
        else:
            yield Fault(f"{path} line {n} {otherwise}")
