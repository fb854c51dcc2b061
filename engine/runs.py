"""A list of the runs in a folder: family, data, loss, size and date of each. Imports no torch."""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from data.errors import UserError, run_command, warn
from data.program import command
from data.terminal import show
from engine.run import checkpoint
from engine.run.folder import RUNS, read_facts, task_of
from engine.run.results import read_summary

DATED = ("config.json", "metrics.jsonl", "summary.json")  # the files that are written as a run goes on

MOST = 5  # names of other folders that are said


@dataclass(frozen=True)
class Row:
    """One run of the list."""

    run: str
    family: str  # 'gru', or 'gru + 5-gram' of a mixture
    task: str | None  # what it was fine-tuned for
    data: str
    loss: float | None  # of validation, nats a token, or a label; None before the first evaluation
    size: int  # parameters, or counts
    steps: int
    date: str  # when it was last written to, ISO 8601


ORDERS = {
    "loss": lambda row: (row.task or "", row.data, math.inf if row.loss is None else row.loss, row.run),
    "size": lambda row: (row.size, row.run),
    "date": lambda row: (row.date, row.run),
    "name": lambda row: row.run,
}


def read_run(path: Path) -> Row:
    """The row of the run in `path`. Raises UserError for one that cannot be read."""
    facts, summary = read_facts(path), read_summary(path)
    config, step, loss = facts["config"], summary.get("steps"), summary.get("val_loss")
    if not summary:  # it has not ended
        which = next((name for name in ("last", "best") if checkpoint.find(path / name)), None)
        step = checkpoint.load(path / which, (), "numpy")[1].get("step") if which else 0
        loss = (
            checkpoint.load(path / "best", (), "numpy")[1].get("val_loss") if checkpoint.find(path / "best") else None
        )
    order = config.get("mix_ngram") or 0
    return Row(
        run=str(path),
        family=f"{config.get('model', '?')}{f' + {order}-gram' if order else ''}",
        task=task_of(facts),
        data=facts["data"]["name"],
        loss=loss,
        size=summary.get("params") or _size(path),
        steps=step or 0,
        date=datetime.fromtimestamp(_written(path)).isoformat(timespec="seconds"),
    )


def _size(path: Path) -> int:
    """How many numbers the newest checkpoint has, what is frozen included."""
    which = next((name for name in ("last", "best") if checkpoint.find(path / name)), None)
    shapes = checkpoint.shapes(path / "base") | (checkpoint.shapes(path / which) if which else {})
    return sum(math.prod(shape) for shape in shapes.values())


def _written(path: Path) -> float:
    """When the run was last written to, in seconds since 1970."""
    return max((path / name).stat().st_mtime for name in DATED if (path / name).exists())


def read_folder(folder: Path) -> tuple[list[Row], dict[str, str], list[str]]:
    """The runs directly in `folder`, or `folder` itself where it is one; those that cannot be read, with the reason;
    and the names of the folders that are no runs. Raises UserError where
    there is no such folder, but the one that the first run makes."""
    if not folder.is_dir():
        if folder == RUNS:
            return [], {}, []
        raise UserError(f"there is no folder {folder}; {command('train')} makes runs in {RUNS}")
    rows, broken, others = [], {}, []
    for path in [folder] if is_run(folder) else sorted(path for path in folder.iterdir() if path.is_dir()):
        if not is_run(path):
            others.append(path.name)
            continue
        try:
            rows.append(read_run(path))
        except (UserError, OSError) as error:
            broken[str(path)] = str(error)
    return rows, broken, others


def is_run(path: Path) -> bool:
    return (path / "config.json").is_file()


def table(rows: list[Row]) -> Iterator[str]:
    """The list as text, a line each."""
    lines = [("run", "family", "data", "loss", "size", "steps", "date")]
    for row in rows:
        loss = "-" if row.loss is None else f"{row.loss:.4f}"
        family = row.family if row.task is None else f"{row.family}, {row.task}"
        date = row.date[:16].replace("T", " ")
        lines.append((row.run, family, row.data, loss, f"{row.size:,}", f"{row.steps:,}", date))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (
            cell.rjust(width) if column in (3, 4, 5) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def main() -> int:
    parser = argparse.ArgumentParser(prog=command("runs"), description="List the runs in a folder.")
    parser.add_argument("folder", nargs="?", type=Path, default=RUNS, help="default: runs")
    parser.add_argument(
        "--sort", choices=ORDERS, default="loss", help="loss (default; within a text), size, date, name"
    )
    parser.add_argument("--json", action="store_true", help="one JSON line a run")
    options = parser.parse_args()
    rows, broken, others = read_folder(options.folder)
    rows.sort(key=ORDERS[options.sort])
    if options.json:
        for row in rows:
            print(json.dumps(asdict(row)))
    elif rows:
        for line in table(rows):
            show(line)
    else:
        print(f"no runs in {options.folder}; {command('train')} makes one")
    for path, why in broken.items():
        warn(why if path in why else f"{path}: {why}")
    if others:
        more = f" and {len(others) - MOST:,} more" if len(others) > MOST else ""
        warn(f"no runs, as they have no config.json: {', '.join(others[:MOST])}{more}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
