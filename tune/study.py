"""The folder of a search: what was asked, and what became of every trial, so that it goes on after any kill.

FOLDER/  study.json    what is searched: the command, its flags, the values, the method, the metric
         trials.jsonl  a line each time that a trial begins, is interrupted or ends; the last one of a trial counts
         trials/0003/  the run of trial 3; trials/0003.txt  what it printed
         report.md  report.png
         lock          while a search writes here
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data.disk import append_line, remove, replace_file
from data.errors import UserError
from data.json_files import Whole, as_stored, parse_json, read_json
from tune.space import Space, Values

FORMAT = 1
ENDED = ("done", "pruned", "failed")  # never run again
STATES = ("running", "interrupted", *ENDED)
_SETTINGS = {"format": Whole(1), "settings": dict}
_NUMBER = (float, None)
_LINE = {
    "number": Whole(), "values": dict, "state": str, "score": _NUMBER, "curve": [float], "seconds": float, "why": str,
    "facts": dict,
}  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One trial, as far as it has come."""

    number: int
    values: Values
    state: str = "running"  # one of STATES
    score: float | None = None  # the metric: of the summary where it is done, of the last evaluation where pruned
    curve: list[float] = field(default_factory=list)  # the metric at each evaluation, where the run records it
    seconds: float = 0.0  # spent in it, all attempts together
    why: str = ""  # it failed
    facts: dict[str, Any] = field(default_factory=dict)  # of the summary, for the report


class Study:
    """The trials in a folder. One process at a time writes there, which holds its lock."""

    def __init__(self, folder: Path, space: Space, is_max: bool):
        self.folder, self.space, self.is_max = folder, space, is_max
        self.trials: dict[int, Trial] = {}

    def open(self, settings: dict[str, Any]) -> None:
        """Begin a search with these settings, or go on with it. Raises UserError where the folder holds another, or
        something else. One of which every trial failed is begun anew: the command was mistaken, or has been mended."""
        settings = as_stored(settings)
        if (self.folder / "study.json").exists():
            stored = read_json(self.folder / "study.json", _SETTINGS)
            if stored["format"] > FORMAT:
                raise UserError(f"{self.folder} was written by a newer version: its format is {stored['format']}")
            self.trials = self._read()
            if any(trial.state != "failed" for trial in self.trials.values()):
                if stored["settings"] != settings:
                    raise UserError(
                        f"{self.folder} holds another search: {_difference(stored['settings'], settings)}; repeat its "
                        "command to go on with it, or name another --out"
                    )
                self._check_values()
                return
            for name in ("trials.jsonl", "trials", "study.json"):
                remove(self.folder / name)
            self.trials = {}
        elif others := {path.name for path in self.folder.iterdir()} - {"lock", "study.json.new"}:
            raise UserError(f"{self.folder} is no folder of a search: it has {min(others)}; name another --out")
        replace_file(
            self.folder / "study.json",
            (json.dumps({"format": FORMAT, "settings": settings}, indent=1) + "\n").encode(),
        )

    def _read(self) -> dict[int, Trial]:
        """The trials so far. The line that a kill tore is dropped."""
        path = self.folder / "trials.jsonl"
        if not path.exists():
            return {}
        *lines, torn = path.read_bytes().split(b"\n")
        found = {}
        for n, line in enumerate(lines, 1):
            values = parse_json(line, f"{path}:{n}", _LINE)
            trial = Trial(**{name: values[name] for name in _LINE})
            if trial.state not in STATES:
                raise UserError(f"{path}:{n} is damaged: the state is '{trial.state}'; it may be {', '.join(STATES)}")
            if trial.state == "done" and trial.score is None:
                raise UserError(f"{path}:{n} is damaged: trial {trial.number} is done, and has no score")
            found[trial.number] = trial
        if torn:
            replace_file(path, b"".join(line + b"\n" for line in lines))
        return dict(sorted(found.items()))

    def _check_values(self) -> None:
        """Raise UserError where a trial has values that this search does not try."""
        for trial in self.trials.values():
            fits = trial.values.keys() == self.space.keys()
            if not (fits and all(self.space[name].has(value) for name, value in trial.values.items())):
                raise UserError(f"{self.folder / 'trials.jsonl'} is damaged: trial {trial.number} has other values")

    def note(self, trial: Trial) -> Trial:
        """Write down what is known of a trial now."""
        self.trials[trial.number] = trial
        append_line(self.folder / "trials.jsonl", json.dumps(asdict(trial)))
        return trial

    def run(self, number: int) -> Path:
        """The folder of a trial's run."""
        return self.folder / "trials" / f"{number:04}"

    def output(self, number: int) -> Path:
        """The file of what a trial printed."""
        return self.folder / "trials" / f"{number:04}.txt"

    @property
    def ended(self) -> list[Trial]:
        """The trials that are not run again, in order."""
        return [trial for trial in self.trials.values() if trial.state in ENDED]

    @property
    def unfinished(self) -> Trial | None:
        """The trial that was interrupted."""
        return next((trial for trial in self.trials.values() if trial.state not in ENDED), None)

    @property
    def seconds(self) -> float:
        return sum(trial.seconds for trial in self.trials.values())

    def ranked(self) -> list[Trial]:
        """The trials that ran to their end, the best first."""
        done = [trial for trial in self.trials.values() if trial.state == "done"]
        return sorted(done, key=self.cost)

    def cost(self, trial: Trial) -> float:
        """The metric with the sign that makes less better."""
        assert trial.score is not None
        return -trial.score if self.is_max else trial.score


def _difference(stored: dict[str, Any], asked: dict[str, Any]) -> str:
    """The first setting that differs."""
    name = next(name for name in (*asked, *stored) if stored.get(name) != asked.get(name))
    return f"its {name} is {json.dumps(stored.get(name))}, here {json.dumps(asked.get(name))}"
