"""Files of `source<TAB>target` lines, as Anki's and Tatoeba's are: what follows in further columns is left out.

Tatoeba's downloads have the numbers of the sentences beside them (id, source, id, target): these are read as they come.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from data import reading
from data.errors import UserError, warn
from data.packed import unpacked_name
from data.pairs.generated import GENERATED
from data.pairs.pair import TextPair
from data.sources import path_of

FAULTY_ALLOWED = 0.1  # of the lines
LANGUAGE = re.compile(r"[a-z]{3}")  # as Tatoeba names it
BEGINNING = 20  # lines that show whether the columns have numbers between them


def read_pairs(data: str, encoding: str = "utf-8") -> tuple[str, list[TextPair]]:
    """The short name of the file `data` and its pairs. Lines without a tab, or with nothing on one side of it, are left
    out and counted, up to a tenth of all. Raises UserError, with file and line, for more, for a file that is not there
    and for one without pairs."""
    reading.check_encoding(encoding)
    path = path_of(data) or Path(data)
    if not path.is_file():
        raise UserError(f"no such file: {data}; pairs by name there are: {', '.join(GENERATED)}")
    lines = [(n, line.split("\t")) for n, line in _lines(path, encoding) if line.strip()]
    _refuse_sentences(path, [fields for _, fields in lines[:BEGINNING]])
    source, target = _columns(fields for _, fields in lines)
    pairs, faulty = [], []
    for n, fields in lines:
        text, wanted = (fields[i].strip() if i < len(fields) else "" for i in (source, target))
        if text and wanted:
            pairs.append(TextPair(text, wanted, f"{path} line {n}"))
        else:
            faulty.append(n)
    if len(faulty) > FAULTY_ALLOWED * len(lines):
        raise UserError(
            f"{path} line {faulty[0]} ({len(faulty):,} of {len(lines):,} lines): no source<TAB>target; every line has "
            "a text, a tab and what it becomes"
        )
    if not pairs:
        raise UserError(f"{path} holds no pair: every line has a text, a tab and what it becomes")
    if faulty:
        warn(f"{len(faulty):,} of {len(lines):,} lines of {path} have no source<TAB>target (the first: {faulty[0]})")
    return unpacked_name(path.resolve()).stem, pairs


def _lines(path: Path, encoding: str) -> Iterable[tuple[int, str]]:
    for n, line in reading.numbered_lines(reading.read_chunks([path], encoding)):
        yield n, line.rstrip("\r\n")


def _refuse_sentences(path: Path, rows: list[list[str]]) -> None:
    """Raise UserError for Tatoeba's other list: number, language, sentence, without a translation."""
    if rows and all(len(row) >= 3 and row[0].strip().isdigit() and LANGUAGE.fullmatch(row[1].strip()) for row in rows):
        raise UserError(
            f"{path} has sentences (number, language, text) and not their translations; take Tatoeba's sentence pairs, "
            "or a file of source<TAB>target"
        )


def _columns(rows: Iterable[list[str]]) -> tuple[int, int]:
    """Which columns are source and target: 0 and 1, or 1 and 3 where the first and the third hold numbers alone."""
    some = [row for row, _ in zip(rows, range(BEGINNING), strict=False)]
    numbered = some and all(len(row) >= 4 and row[0].strip().isdigit() and row[2].strip().isdigit() for row in some)
    return (1, 3) if numbered else (0, 1)
