"""One trial as a process: its command started, watched, stopped; what it left. The command is one of a user's: nothing
of its insides is imported, and it goes on by itself from its last save."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.errors import note
from data.json_files import parse_json
from data.locks import is_held
from data.program import IS_INSTALLED, PACKAGE, ROOT
from engine.run.folder import LOCK

PAUSE = 0.1  # seconds between two looks at a run
DISTURBED = {130, 143, -2, -15}  # exit codes of who was asked to stop


def start(command: str, flags: list[str], run: Path, output: Path) -> subprocess.Popen:
    """Start the command of this name, or go on with its run; what it prints is appended to `output`.

    It is in a session of its own: Ctrl-C reaches the search alone, which stops the run in order."""
    await_orphan(run)
    environ = dict(os.environ)
    if not IS_INSTALLED:
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), environ.get("PYTHONPATH"))))
    words = [sys.executable, "-m", PACKAGE, command, *flags, "--out", str(run), "--go-on"]
    run.parent.mkdir(exist_ok=True)
    with open(output, "ab") as file:
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environ, start_new_session=True
        )


def await_orphan(run: Path) -> None:
    """Wait for the process of a search that was killed, where it still trains this run."""
    if is_held(run / LOCK):
        note(f"{run} is still being trained by a search that was killed: waiting for it")
    while is_held(run / LOCK):
        time.sleep(PAUSE)


def stop(process: subprocess.Popen) -> None:
    """Have a run finish its step, save and end; a Ctrl-C meanwhile has it leave at once."""
    process.terminate()
    try:
        process.wait()
    except KeyboardInterrupt:
        process.kill()
        process.wait()


def watch(process: subprocess.Popen, look: Callable[[], bool]) -> int | None:
    """Wait for a run. Returns its exit code, or None where `look`, called several times a second, had it stopped."""
    while (code := process.poll()) is None:
        if look():
            stop(process)
            return None
        time.sleep(PAUSE)
    return code


class Curve:
    """A metric at the evaluations of a run, as its metrics.jsonl grows."""

    def __init__(self, run: Path, metric: str):
        self._path, self._size = run / "metrics.jsonl", -1
        self._metric = metric.replace(".", "_")  # what a summary has as val.accuracy is val_accuracy here
        self.values: list[float] = []
        self.known: list[str] = []  # what the last evaluation measured
        self._lines: list[dict[str, Any]] = []

    def read(self) -> list[float]:
        """The values so far."""
        size = self._path.stat().st_size if self._path.is_file() else 0
        if size and size != self._size:
            self._size = size
            lines = self._path.read_bytes().split(b"\n")[:-1]  # what follows the last end of a line is half written
            read = [parse_json(line, self._path, dict) for line in lines]
            self._lines = read
            self.known = [name for name, value in read[-1].items() if isinstance(value, float)] if read else []
            trained = [line for line in read if line.get("step") != 0]  # at first every run is as good as chance
            self.values = [float(line[self._metric]) for line in trained if is_number(line.get(self._metric))]
        return self.values

    def at(self, step: object) -> float | None:
        """The value at the evaluation of this step, the first one too; None where it was not measured."""
        self.read()
        values = [line.get(self._metric) for line in self._lines if line.get("step") == step]
        return next((float(value) for value in values if isinstance(value, int | float)), None)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def complaint(output: Path, begin: int, code: int) -> str:
    """Why a run failed: the last error that it printed behind byte `begin` of its output, or what ended it."""
    said = output.read_bytes()[begin:].decode("utf-8", "replace").strip().splitlines()
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    if errors:
        return errors[-1]
    if code < 0:
        return f"it was ended by signal {-code}" + (", as where memory is out" if code == -9 else "")
    return said[-1].strip() if said else f"exit code {code}"
