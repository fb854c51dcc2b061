"""docs/results.json: what `python -m docs.course` measured, and how the pages say it."""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data.disk import replace_file
from data.errors import UserError
from data.json_files import check_schema, read_json
from docs.experiments import Experiment, experiment

PATH = Path(__file__).parent / "results.json"
SCHEMA = {"value": float, "low": float, "high": float, "seconds": float, "machine": str, "commit": str}


@dataclass(frozen=True)
class Result:
    """A measured figure: its value, the interval it had to fall into, the CPU seconds of its commands, the machine, and
    the commit that was measured."""

    value: float
    low: float
    high: float
    seconds: float
    machine: str
    commit: str


def read() -> dict[str, Result]:
    """All results, by the key of their experiment; none where the file is missing. Raises UserError for a damaged
    one."""
    stored = read_json(PATH, dict) if PATH.exists() else {}
    for key, entry in stored.items():
        check_schema(entry, SCHEMA, str(PATH), key)
    return {key: Result(**{name: entry[name] for name in SCHEMA}) for key, entry in stored.items()}


def write(results: dict[str, Result]) -> None:
    """Replace the file: an entry a line in the order of the keys, so that the results of two people merge."""
    lines = [f"{json.dumps(key)}: {json.dumps(dataclasses.asdict(results[key]))}" for key in sorted(results)]
    replace_file(PATH, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def measured(key: str) -> tuple[Experiment, Result]:
    """The experiment with this key and its result. Raises UserError where there is none, or one of another interval."""
    wanted, results = experiment(key), read()
    again = f"run python -m docs.course --only {key}"
    if key not in results:
        raise UserError(f"{PATH.name} has no result of {key}: {again}")
    result = results[key]
    if (result.low, result.high) != (wanted.low, wanted.high):
        raise UserError(f"{PATH.name} has a result of {key} for another interval than its experiment's: {again}")
    return wanted, result


def sentence(key: str) -> str:
    """A result in one line."""
    wanted, result = measured(key)
    return (
        f"Measured: **{_number(wanted, result.value)}** {wanted.unit}; expected {_interval(wanted)}. "
        f"{_seconds(result)} of CPU time on {result.machine}, at commit {result.commit}."
    )


def table(keys: list[str]) -> str:
    """Several results as a table."""
    rows = ["| command | measured | expected | CPU time |", "|---|---|---|---|"]
    found = [measured(key) for key in keys]
    for wanted, result in found:
        command = wanted.lines[-1].replace("|", "\\|")
        value = _number(wanted, result.value)
        rows.append(f"| `{command}` | **{value}** | {_interval(wanted)} | {_seconds(result)} |")
    units = _listed(wanted.unit for wanted, _ in found)
    machines, commits = (_listed(getattr(each, name) for _, each in found) for name in ("machine", "commit"))
    return "\n".join([*rows, "", f"In {units}; measured on {machines}, at commit {commits}."])


def _listed(words: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(words))


def _number(wanted: Experiment, value: float) -> str:
    """The value with the digits that its experiment asks for; one that is too small for them as a power of ten."""
    return f"{value:.1e}" if 0 < abs(value) < 0.5 / 10**wanted.digits else f"{value:.{wanted.digits}f}"


def _interval(wanted: Experiment) -> str:
    low, high = f"{wanted.low:g}", f"{wanted.high:g}"
    if "e" not in low + high:
        places = max(len(bound.partition(".")[2]) for bound in (low, high))
        low, high = f"{wanted.low:.{places}f}", f"{wanted.high:.{places}f}"
    return f"{low} to {high}"


def _seconds(result: Result) -> str:
    return f"{result.seconds:.{0 if result.seconds >= 10 else 1}f} s"
