"""The project's commands as real processes: forked from this one, where torch is loaded, or new interpreters."""

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import errors

ROOT = Path(__file__).resolve().parent.parent.parent
TIMEOUT = 120  # seconds after which a command counts as hanging


class Failed(Exception):
    """A round that does not end as it has to."""


def expect(holds: object, reason: str = "") -> None:
    """Raise Failed, with the reason, unless `holds`. An `assert` would say nothing under python -O."""
    if not holds:
        raise Failed(reason)


@dataclass
class Ended:
    """The end of a command: its exit code, or minus the signal, and its output."""

    code: int
    out: str
    err: str


class Command:
    """A command that runs in `folder`: `words` are the script, or '-m MODULE', and its flags. A forked one does
    `prepare()` first, in its own process."""

    count = 0

    def __init__(self, folder: Path, *words, prepare: Callable[[], None] = lambda: None, fresh: bool = False):
        Command.count += 1
        self.words = [str(word) for word in words]
        self.streams = [folder.parent / f"{folder.name}.{Command.count}.{name}" for name in ("out", "err", "crash")]
        self.pid = (self._fresh if fresh else self._fork)(folder, prepare)
        self._status: int | None = None

    def _fork(self, folder: Path, prepare: Callable[[], None]) -> int:
        reader, writer = os.pipe()
        if pid := os.fork():
            os.close(writer)
            os.read(reader, 1)  # until the command begins, or has died
            os.close(reader)
            return pid
        code = 70
        try:
            os.close(reader)
            code = self._run(folder, prepare, lambda: os.close(writer))
        finally:
            os._exit(code)

    def _run(self, folder: Path, prepare: Callable[[], None], begin: Callable[[], None]) -> int:
        """Run the command in this process, and return its exit code."""
        os.chdir(folder)
        os.environ["CHARLM_CACHE"] = str(folder / "cache")
        for number, path in enumerate((Path(os.devnull), *self.streams[:2])):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
        sys.stdin = os.fdopen(0, "r", closefd=False)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)  # as at a terminal, even under nohup
        script, *flags = self.words
        sys.argv = [script, *flags]
        whole = errors.run_command

        def begun(main: Callable[[], int]) -> int:
            begin()
            return whole(main)

        errors.run_command = begun
        prepare()
        try:
            if script.startswith("-m "):
                runpy.run_module(script[3:], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(str(ROOT / script), run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            self.streams[2].write_text(traceback.format_exc())  # standard error may lead nowhere
            code = 1
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        return code

    def _fresh(self, folder: Path, prepare: Callable[[], None]) -> int:
        script, *flags = self.words
        program = script.split() if script.startswith("-m ") else [str(ROOT / script)]
        env = os.environ | {"CHARLM_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
        with open(self.streams[0], "wb") as out, open(self.streams[1], "wb") as err:
            options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err}
            options |= {"cwd": folder, "env": env}
            options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
            process = subprocess.Popen([sys.executable, *program, *flags], **options)
        process.returncode = 0  # waited for here, not by it
        return process.pid

    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._look(os.WNOHANG)

    def stands(self) -> bool:
        """Wait until it has stopped itself (True) or ended (False)."""
        self._look(os.WUNTRACED)
        return self._status is None

    def send(self, signum: int) -> None:
        """Send it a signal, if it still runs."""
        if not self.is_over():
            os.kill(self.pid, signum)

    def end(self) -> Ended:
        """Wait for its end. Failed where it hangs."""
        deadline = time.monotonic() + TIMEOUT
        while not self.is_over():
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
                raise Failed(f"{' '.join(self.words)} hangs")
            time.sleep(0.002)
        out, *err = (stream.read_text("utf-8", "replace") if stream.exists() else "" for stream in self.streams)
        for stream in self.streams:
            stream.unlink(missing_ok=True)
        assert self._status is not None
        return Ended(self._status, out, "".join(err))

    def _look(self, options: int) -> bool:
        if self._status is None:
            pid, status = os.waitpid(self.pid, options)
            if pid and not os.WIFSTOPPED(status):
                self._status = os.waitstatus_to_exitcode(status)
        return self._status is not None
