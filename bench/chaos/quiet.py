"""An undisturbed run of a command: its files, its time, and folders with runs to begin a round with."""

import json
import shutil
import signal
import time
from functools import cached_property
from pathlib import Path

from bench.chaos import faults
from bench.chaos.faults import CALLS, Trap
from bench.chaos.processes import Command, Ended, expect

HALF = 5  # renames in a run, of which each save makes one or two, after which half of the run is done


class Quiet:
    """A command: its `words` are run undisturbed in a folder of its own in `root`, with the `texts`."""

    def __init__(self, root: Path, texts: Path, name: str, words: str):
        first, *rest = words.split()
        self.program = first if first != "-m" else f"-m {rest.pop(0)}"
        self.name, self.flags, self.root, self.texts = name, rest, root, texts
        self.folder = self._folder("whole")
        traps = {where: Trap(self.folder / where, CALLS, 0, faults.stop) for where in ("", "run")}

        def prepare() -> None:
            for trap in traps.values():
                trap.set()

        began = time.monotonic()
        ended = Command(self.folder, *self.start, prepare=prepare).end()
        self.seconds = time.monotonic() - began
        self.counts = {where: trap.counts for where, trap in traps.items()}  # of calls in all, and into the run
        expect(ended.code == 0, f"{name}: {ended.err}")
        self.left = left(self.folder / "run")
        self.sampled = {which: self.sample(self.folder, which).out for which in ("best", "last")}

    @property
    def start(self) -> list[str]:
        return [self.program, *self.flags, "--out", "run"]

    @property
    def overwrite(self) -> list[str]:
        return [*self.start, "--overwrite"]

    @property
    def resume(self) -> list[str]:
        return [self.program, "--resume", "--out", "run"]

    def sample(self, folder: Path, which: str) -> Ended:
        """Sample from the run in `folder`, or label with it."""
        if "classify" in self.name:
            words = ["-m finetune.classify", "--out", "run", "--predict", "see you"]
        else:
            words = ["sample.py", "run", "--num", "2", "--max-new-tokens", "8", "--seed", "1"]
        return Command(folder, *words, "--checkpoint", which).end()

    @cached_property
    def half(self) -> Path:
        """A folder with a run that was stopped halfway."""
        folder = self._folder("half")
        trap = Trap(folder / "run", ("rename",), HALF, faults.send(signal.SIGTERM))
        Command(folder, *self.start, prepare=trap.set).end()
        return folder

    @cached_property
    def other(self) -> Path:
        """A folder with a run of another seed, to be overwritten."""
        folder = self._folder("other")
        expect(Command(folder, *self.start, "--seed", 7).end().code == 0)
        return folder

    def _folder(self, name: str) -> Path:
        return Path(shutil.copytree(self.texts, self.root / f"{name}-{self.name}"))


def left(run: Path) -> dict:
    """The part of a run that has to be equal, bit by bit, in two equal runs: weights, and metrics without the
    seconds."""
    weights = {
        str(path.relative_to(run)): path.read_bytes()
        for path in run.glob("*/*.safetensors")
        if path.parent.suffix == ""
    }
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return weights | {"metrics": [{k: v for k, v in line.items() if k != "seconds"} for line in lines]}


def tree(folder: Path) -> dict[str, bytes]:
    """The content of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
