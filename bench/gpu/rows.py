"""The rows of gpu.csv: a measurement each, appended as it comes by whichever process made it. Imports no torch."""

import csv
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

BAD = ("failed", "died")  # outcomes that are somebody's fault


class Row(NamedTuple):
    """One measurement, or why there is none."""

    part: str  # machine, tests, kernels, training, memory, decoding or processes
    what: str  # the operation, model or file of tests
    case: str  # its shape or settings, or the test
    who: str = "ours"
    ms: float | None = None  # of one: a call, a step, a token, a test; of a run: its training until here
    value: float | None = None  # in `unit`
    unit: str = ""
    share: float | None = None  # of what this machine does at best
    target: float | None = None
    outcome: str = "ok"  # ok, failed, died, stopped, left out, skipped
    note: str = ""


NUMBERS = ("ms", "value", "share", "target")


def append(path: Path, *rows: Row) -> None:
    """Add rows at the end of the file, in one write: several processes may do so at the same time."""
    _write(path, rows, os.O_APPEND)


def begin(path: Path, rows: Iterable[Row]) -> None:
    """Replace the file by its head and these rows."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    _write(new, [Row._fields, *rows], os.O_EXCL)
    os.replace(new, path)


def _write(path: Path, rows: Iterable[tuple], how: int) -> None:
    text = io.StringIO()
    for row in rows:
        csv.writer(text, lineterminator="\n").writerow([_cell(value) for value in row])
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | how, 0o644)
    try:
        os.write(handle, text.getvalue().encode())
    finally:
        os.close(handle)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else " ".join(str(value).split())


def read(path: Path) -> list[Row]:
    """The rows of the file; none where there is no file. A line that was cut off, as by a full disk, is left out."""
    if not path.exists():
        return []
    rows = []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for cells in csv.reader(file):
            found = dict(zip(Row._fields, cells, strict=False))
            try:
                numbers = {name: float(found[name]) if found[name] else None for name in NUMBERS}
            except (KeyError, ValueError):  # cut off; or the head
                continue
            if len(cells) == len(Row._fields):
                rows.append(Row(**(found | numbers)))  # type: ignore[arg-type]
    return rows


def select(
    rows: Iterable[Row], part: str, wanted: Callable[[Row], bool] = lambda row: row.outcome == "ok"
) -> list[Row]:
    """The rows of a part, in their order: by default those that measured something."""
    return [row for row in rows if row.part == part and wanted(row)]


def ceiling(rows: Iterable[Row], unit: str) -> float | None:
    """What this machine was measured to do at best, in GB/s or TFLOP/s."""
    found = [row.value for row in rows if (row.part, row.unit, row.outcome) == ("machine", unit, "ok")]
    return found[-1] if found else None
