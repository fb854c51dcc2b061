"""A round: a folder in which a command starts, resumes or overwrites a run, and the checks afterwards."""

import json
import random
import shutil
import signal
from pathlib import Path

from bench.chaos.processes import Command, Ended, expect
from bench.chaos.quiet import Quiet, left, tree

NEVER_SAVED = "start it once more, with --overwrite"
ON_THE_WAY = (".new", ".old", ".part", ".lock")  # suffixes of temporary files


class Round:
    """One round of the command `quiet` in `folder`, with what `rng` draws."""

    def __init__(self, folder: Path, quiet: Quiet, rng: random.Random):
        self.folder, self.quiet, self.rng, self.run = folder, quiet, rng, folder / "run"
        self.story: list[str] = []  # the events so far, printed with a failure

    def begin(self, mode: str | None = None, cache: str | None = None) -> list[str]:
        """Lay out the folder for a `mode` ('start', 'resume' or 'overwrite') and a `cache` ('warm' or 'cold'), both
        drawn where not given, and return the command's words."""
        self.mode = mode or self.rng.choice(("start", "start", "resume", "overwrite"))
        cache = cache or self.rng.choice(("warm", "cold"))
        shutil.copytree(self.quiet.texts, self.folder)
        if self.mode != "start":
            shutil.copytree((self.quiet.half if self.mode == "resume" else self.quiet.other) / "run", self.run)
        if cache == "warm" and (self.quiet.folder / "cache").exists():
            shutil.copytree(self.quiet.folder / "cache", self.folder / "cache")
        self.note(f"{self.mode}, {cache} cache")
        return getattr(self.quiet, self.mode)

    def note(self, event: str) -> None:
        """Add to the story."""
        self.story.append(event)

    def do(self, *words, **options) -> Ended:
        """Run a command to its end and check how it ended."""
        return self.check(Command(self.folder, *words, **options).end(), words)

    def check(self, ended: Ended, words=(), codes: tuple[int, ...] = (0, 2), signals: tuple[int, ...] = ()) -> Ended:
        """Check the end of a command: no traceback, an expected exit code, one message where it is 2."""
        self.note(f"{' '.join(map(str, words))}: exit code {ended.code}")
        stderr = ended.err.strip()[-2000:]
        codes += tuple(code for signum in signals for code in (128 + signum, -signum))
        expect("Traceback" not in stderr and "Exception ignored" not in stderr, stderr)
        expect(ended.code in codes, f"exit code {ended.code}: {stderr}")
        messages = [line for line in stderr.splitlines() if line.startswith("error: ")]
        expect(len(messages) == (ended.code == 2), f"exit code {ended.code}: {stderr}")
        return ended

    def go_on(self) -> None:
        """Resume, overwrite or start the run, as a user would do next: it has to end like an undisturbed one."""
        self.check_samples()
        if not (self.run / "config.json").exists():
            ended = self.do(*self.quiet.start)
        elif self.is_ours():
            ended = self.do(*self.quiet.resume)
            if ended.code == 2 and NEVER_SAVED in ended.err:
                ended = self.do(*self.quiet.overwrite)
        else:
            ended = self.do(*self.quiet.overwrite)
        expect(ended.code == 0, ended.err)
        self.check_whole()
        self.check_nothing_over()

    def is_ours(self) -> bool:
        """Whether the run is the command's own, not the one that it overwrites."""
        path = self.run / "config.json"
        return path.is_file() and json.loads(path.read_text())["config"]["seed"] != 7

    def check_samples(self) -> None:
        """Check that every checkpoint can be sampled from, except for those of a run that is being overwritten."""
        for which in ("best", "last"):
            if (self.run / "config.json").is_file() and any(self.run.glob(f"{which}*/manifest.json")):
                ended = self.check(self.quiet.sample(self.folder, which), ("sample", which))
                expect(ended.code == 0 or not self.is_ours(), ended.err)

    def check_whole(self, but: tuple[str, ...] = ()) -> None:
        """Check that the run equals the undisturbed one, `but` for these parts."""
        result = left(self.run)
        for name in (result.keys() | self.quiet.left.keys()) - set(but):
            expect(result.get(name) == self.quiet.left.get(name), f"{name} is not that of a quiet run")
        for name in ("summary.json", "loss.png", "tokenizer.json", "config.json"):
            expect((self.run / name).is_file(), f"no {name}")

    def check_nothing_over(self) -> None:
        """Check that no temporary file is left."""
        over = [path for path in self.folder.rglob("*") if path.suffix in ON_THE_WAY or path.name == "lock"]
        expect(not over, f"left over: {', '.join(map(str, over))}")

    def tree(self) -> dict[str, bytes]:
        """The content of every file of the run, except for the lock."""
        return {name: content for name, content in tree(self.run).items() if name != "lock"}


def ended_by(ended: Ended) -> str:
    """The outcome of a command, for the table."""
    if ended.code in (0, 2):
        return "went through" if ended.code == 0 else "one message"
    signum = -ended.code if ended.code < 0 else ended.code - 128
    return "killed" if signum == signal.SIGKILL or ended.code < 0 else "saved and left"
