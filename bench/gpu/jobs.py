"""Jobs: each a process of its own with a limit of time, so that a fault or a hang costs no more than itself.

What a job measures it appends to gpu.csv itself. It prints "at: ..." before each thing that may end it, so that what
it died of can be named; where that begins with a number, the job is started again with what comes after it.
Imports no torch.
"""

import argparse
import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from bench.gpu.rows import Row, append

ROOT = Path(__file__).resolve().parent.parent.parent
POLL = 0.05  # seconds between two looks at the running jobs
UNREACHED = "the time of the part was over before it"
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here: not in a child that was just forked


class Job(NamedTuple):
    """`python -m module *args`, which measures `what` at `case`."""

    part: str
    what: str
    case: str
    module: str
    args: tuple[str, ...] = ()
    limit: float = 300.0  # seconds
    env: tuple[tuple[str, str], ...] = ()
    skip: int = 0  # how many of its measurements it leaves out: those that an earlier process came to


class Place(NamedTuple):
    """Where the jobs of a run write, and in which environment they run."""

    rows: Path
    logs: Path
    env: dict[str, str]


class Running:
    """A started job."""

    def __init__(self, job: Job, place: Place, until: float):
        self.job, self.started = job, time.monotonic()
        self.until = min(until, self.started + job.limit)
        name = re.sub(r"[^\w.-]+", "-", " ".join(filter(None, (job.part, job.what, job.case))))
        self.log = place.logs / f"{name}{f'-from-{job.skip}' if job.skip else ''}.txt"
        skip = ["--skip", str(job.skip)] if job.skip else []
        words = [sys.executable, "-m", job.module, "--rows", str(place.rows), *skip, *job.args]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT,
                env=place.env | {"PYTHONUNBUFFERED": "1"} | dict(job.env), start_new_session=True,
                preexec_fn=die_with_parent,
            )  # fmt: skip

    def kill(self) -> None:
        """End it and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def row(self, outcome: str, why: str) -> Row:
        """The row of a job that did not end well: why, and where it was."""
        where = f", at {self.at}" if self.at else ""
        ms = 1000 * (time.monotonic() - self.started)
        return Row(self.job.part, self.job.what, self.job.case, ms=ms, outcome=outcome, note=why + where)

    @property
    def lines(self) -> list[str]:
        text = self.log.read_text("utf-8", "replace")
        return [line for line in text.splitlines() if line.strip()]

    @property
    def at(self) -> str:
        """What it said last that it was at."""
        return next((line[4:] for line in reversed(self.lines) if line.startswith("at: ")), "")

    def ended(self) -> str | None:
        """Why it died; None where it ended as it should."""
        code = self.process.returncode
        if code == 0:
            return None
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        said = [line for line in self.lines if not line.startswith("at: ")]
        return f"exit code {code}: {said[-1].strip()[:300]}" if said else f"exit code {code}"

    def rest(self) -> Job | None:
        """The job of what is left after the measurement at which it died; None where it has no numbers."""
        number = re.match(r"(\d+) ", self.at)
        return self.job._replace(skip=int(number[1]) + 1) if number else None


def run(
    jobs: Iterable[Job], place: Place, until: float, at_once: int = 1, watch: Callable[[], None] = lambda: None
) -> None:
    """Run the jobs in their order, `at_once` at a time, until the time `until` of time.monotonic(). A row says which
    died, was stopped at its limit, or was not reached. `watch` is called again and again meanwhile."""
    waiting, running = deque(jobs), list[Running]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once and time.monotonic() < until:
                running.append(Running(waiting.popleft(), place, until))
            for each in [*running]:
                if each.process.poll() is not None:
                    running.remove(each)
                    each.kill()  # what it may have left behind
                    if why := each.ended():
                        append(place.rows, each.row("died", why))
                        if rest := each.rest():
                            waiting.appendleft(rest)
                elif time.monotonic() >= each.until:
                    running.remove(each)
                    each.kill()
                    own = each.until < until
                    seconds = time.monotonic() - each.started
                    rest = each.rest()
                    why = f"after {seconds:.0f} s, its limit" if own else "the time of the part was over"
                    append(place.rows, each.row("stopped", why + (", before what follows" if rest and not own else "")))
                    if own and rest:
                        waiting.appendleft(rest)
            if time.monotonic() >= until:
                late = [Row(job.part, job.what, job.case, outcome="left out", note=UNREACHED) for job in waiting]
                append(place.rows, *late)
                waiting.clear()
            watch()
            time.sleep(POLL)
    finally:
        for each in running:
            each.kill()


def job_parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """The flags that every job takes."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.gpu.{module}", description=(doc or "").splitlines()[0])
    parser.add_argument("--rows", type=Path, required=True, help="the file that rows are appended to")
    parser.add_argument("--smoke", action="store_true", help="toy sizes")
    parser.add_argument("--skip", type=int, default=0, help="leave out this many of the measurements")
    return parser


def numbered(names: list[str], skip: int) -> Iterator[int]:
    """The numbers of the measurements from `skip` on, each announced before it is taken."""
    for number in range(skip, len(names)):
        print(f"at: {number} {names[number]}", flush=True)
        yield number


def die_with_parent() -> None:
    """In a new process: be killed when the one that started it ends, however that ends (Linux)."""
    if LIBC:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
