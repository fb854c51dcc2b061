"""Running a peer's own, unmodified program beside ours. Where it lies: `--makemore DIR`, `--nanogpt DIR` (a
checkout each)."""

import argparse
import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# makemore imports TensorBoard without needing it; a writer that writes nothing saves the install.
_RUN_MAKEMORE = """
import runpy, sys, types
class SummaryWriter:
    def __init__(self, log_dir): pass
    def add_scalar(self, name, value, step): pass
    def flush(self): pass
sys.modules["torch.utils.tensorboard"] = types.SimpleNamespace(SummaryWriter=SummaryWriter)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def checkout(program: str) -> Callable[[str], Path]:
    """A type for argparse: the folder of a peer's checkout, which holds its `program`."""

    def folder(path: str) -> Path:
        if not Path(path, program).is_file():
            raise argparse.ArgumentTypeError(f"{path} holds no {program}: give a checkout")
        return Path(path)

    return folder


def ours(*flags: str) -> dict:
    """Run our train.py with these flags in a temporary directory; returns its summary, with "step_ms": the milliseconds
    of a step, as the median over the intervals between evaluations, without the first fifth of them (warm-up)."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train.py"), *flags, "--out", f"{folder}/run"]
        output(command, folder)
        summary = json.loads(Path(folder, "run", "summary.json").read_text())
        lines = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
        spans = [(b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in itertools.pairwise(lines)]
        return summary | {"step_ms": 1000 * statistics.median(spans[len(spans) // 5 :])}


def makemore(checkout: Path, names: Path, *flags: str) -> str:
    """Run makemore's own command line on `names`; returns its output."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-c",
            _RUN_MAKEMORE,
            str(checkout / "makemore.py"),
            "-i",
            str(names),
            "-o",
            folder,
            *flags,
        ]
        return output(command, folder)


def step_times(printed: str, pattern: str) -> float:
    """The median of the step times that a peer printed, in milliseconds, without the first fifth (warm-up)."""
    times = [float(ms) for ms in re.findall(pattern, printed)]
    return statistics.median(times[len(times) // 5 :])


def run(words: list[str]) -> str:
    """What one of our commands prints, as of ["train.py", "--steps", "5"]. Raises SystemExit where it fails."""
    return output([sys.executable, *words], ROOT)


def output(command: list[str], folder: str | Path | None = None) -> str:
    """What a command prints, run in `folder`. Raises SystemExit, with its errors, where it fails."""
    completed = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if completed.returncode:
        raise SystemExit(f"{' '.join(command)}\n{completed.stderr}")
    return completed.stdout
