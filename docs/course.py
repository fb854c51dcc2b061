"""Measures the course: `python -m docs.course [--only KEY ...] [--steps N]`, and `make docs`.

Runs the commands of docs/experiments one after the other on one thread, holds each figure against its interval, writes
docs/results.json, draws the pictures and fills the pages. A figure outside its interval is not written, and the exit
code is 1 after all have run. `--steps N` is a trial: every training takes N steps, no figure is judged or written, and
the pictures go into a temporary folder.
"""

import argparse
import importlib
import json
import math
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data.errors import UserError, run_command
from docs import fill, results
from docs.commands import Command, command_of, shortened
from docs.experiments import Experiment, Picture, experiment, experiments, pictures_of
from docs.figures import PICTURES
from docs.results import Result
from docs.sources import ROOT


@dataclass(frozen=True)
class Ran:
    """What an experiment's commands left: the last one's output and its run or file, if it made one; and the CPU
    seconds of all."""

    output: str
    run: Path | None
    seconds: float


def run(wanted: Experiment, folder: Path, steps: int | None = None) -> Ran:
    """Run the commands of an experiment in `folder`, each with `steps` steps if given. Raises UserError with the last
    lines of one that fails."""
    started = _cpu_seconds()
    for line in wanted.lines:
        command = command_of(line)
        done = _start(shortened(command, steps) if steps else command, folder)
        if done.returncode:
            last = "\n".join(done.stderr.strip().splitlines()[-5:])
            raise UserError(f"'{line}' ended with exit code {done.returncode}:\n{last}")
    return Ran(done.stdout, run_of(command, folder), _cpu_seconds() - started)


def _start(command: Command, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder`, on one thread, to its end."""
    started = command.script.split() if command.script.startswith("-m ") else [str(ROOT / command.script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | command.environment
    words = [sys.executable, *started, *command.arguments]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)


def _cpu_seconds() -> float:
    """The processor time of all commands so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_of(command: Command, folder: Path) -> Path | None:
    """What a command left in `folder`: its --out, else the newest run."""
    if "--out" in command.arguments:
        return folder / command.arguments[command.arguments.index("--out") + 1]
    runs = [path.parent for path in folder.glob("runs/*/config.json")]
    return max(runs, key=lambda run: run.stat().st_mtime, default=None)


def figure_of(wanted: Experiment, ran: Ran) -> float:
    """The figure of an experiment. Raises UserError where its commands did not give it."""
    if not wanted.figure.isidentifier():
        if not (found := re.findall(wanted.figure, ran.output, re.MULTILINE)):
            raise UserError(f"nothing in the output of '{wanted.lines[-1]}' matches {wanted.figure}")
        try:
            return float(found[-1])
        except ValueError as error:
            raise UserError(f"{wanted.figure} finds '{found[-1]}', which is no number") from error
    if ran.run is None:
        raise UserError(f"'{wanted.lines[-1]}' made no run, whose {wanted.figure} is to be read")
    path = ran.run / "summary.json"
    summary = json.loads(path.read_text("utf-8")) if path.exists() else {}
    if not isinstance(summary.get(wanted.figure), int | float):
        raise UserError(f"the summary.json of '{wanted.lines[-1]}' has no number {wanted.figure}")
    return float(summary[wanted.figure])


def judge(wanted: Experiment, value: float) -> None:
    """Raise UserError for a figure outside its interval."""
    if not wanted.low <= value <= wanted.high or math.isnan(value):
        raise UserError(f"{value:.6g} {wanted.unit} is not between {wanted.low:g} and {wanted.high:g}")


def machine() -> str:
    """The processor, in words."""
    names = re.findall(r"^model name\s*: (.*)$", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    name = names[0] if names else platform.processor() or platform.machine()
    return f"one core of {name.replace('(R)', '')}"


def _read(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


def commit() -> str:
    """The commit that is checked out, with a mark where files were changed since."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty= with changes", "--exclude=*", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def measure(wanted: Iterable[Experiment], folder: Path, steps: int | None = None) -> tuple[dict[str, Ran], list[str]]:
    """Run experiments, each in a folder of its own below `folder`, and store their figures unless `steps` makes it a
    trial. Returns what ran, by key, and what went wrong."""
    ran: dict[str, Ran] = {}
    wrong: list[str] = []
    known = experiments()
    stored, where = {key: each for key, each in results.read().items() if key in known}, (machine(), commit())
    for each in wanted:
        (place := folder / each.key).mkdir()
        try:
            # Two figures of the same commands are of one run of them.
            same = (ran[key] for key in ran if known[key].command == each.command)
            ran[each.key] = next(same, None) or run(each, place, steps)
            value = figure_of(each, ran[each.key])
            if not steps:
                judge(each, value)
        except UserError as error:
            wrong.append(f"{each.key}: {error}")
            print(wrong[-1], flush=True)
            continue
        seconds = ran[each.key].seconds
        print(f"{each.key:24} {value:.4f} {each.unit}, {seconds:.1f} s of CPU time", flush=True)
        if not steps:
            stored[each.key] = Result(value, each.low, each.high, round(seconds, 1), *where)
            results.write(stored)
    return ran, wrong


def draw(wanted: Iterable[Picture], ran: dict[str, Ran], folder: Path) -> list[Path]:
    """Draw the pictures of which all runs are among `ran`, into `folder`; their files."""
    drawn = []
    for picture in wanted:
        if set(picture.of) <= ran.keys():
            drawn.append(folder / f"{picture.name}.svg")
            runs = [str(run) for key in picture.of if (run := ran[key].run)]
            importlib.import_module(f"docs.figures.{picture.name}").main([*runs, "--out", str(drawn[-1])])
    return drawn


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.course", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="KEY", help="these experiments (default: all), and their pictures")
    parser.add_argument("--steps", type=int, help="a trial of so many steps: judges and writes nothing")
    args = parser.parse_args()
    wanted = [experiment(key) for key in args.only] if args.only else [*experiments().values()]
    with tempfile.TemporaryDirectory() as work:
        ran, wrong = measure(wanted, Path(work), args.steps)
        draw(pictures_of(ran), ran, Path(work) if args.steps else PICTURES)
    if wrong:
        print(f"\n{len(wrong)} of {len(wanted)} went wrong:\n" + "\n".join(wrong))
    elif not args.steps:
        return fill.fill_pages()
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(run_command(main))
