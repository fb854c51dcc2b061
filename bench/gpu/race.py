"""nanoGPT's model for a GPU trained on Shakespeare to a validation loss of 1.4697; python -m bench.gpu.race.

The run is that of bench/speedrun.py (BABY), with counts, or `--alone` without them. A row for each evaluation, as it
comes: the loss, and the seconds of training until then.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.gpu.jobs import ROOT, die_with_parent, job_parser
from bench.gpu.rows import Row, append
from bench.speedrun import BABY, BABY_LIMIT, BABY_LOSS

EVALUATIONS = 14  # in all; they cost none of the seconds that are counted
TOY = [
    "--data", __file__,  "--n-layer", "1", "--n-head", "1", "--n-embd", "8", "--context", "8",
    "--hash-rows", "16", "--steps", "4", "--eval-interval", "2", "--eval-tokens", "64",
]  # fmt: skip


def flags(alone: bool, smoke: bool) -> list[str]:
    """The flags of the run."""
    words = [*BABY]
    if alone:
        at = words.index("--mix-ngram")
        del words[at : at + 2]
    steps = int(words[words.index("--steps") + 1])
    return [*words, "--eval-interval", str(steps // EVALUATIONS), *(TOY if smoke else [])]


def evaluations(command: list[str], metrics: Path) -> Iterator[dict]:
    """Run the command, and yield the lines of its metrics as they come. Raises SystemExit where it fails."""
    process = subprocess.Popen(command, preexec_fn=die_with_parent)
    seen = 0
    while True:
        is_over = process.poll() is not None
        lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
        for line in lines[seen:]:
            if line.endswith("\n"):
                seen += 1
                yield json.loads(line)
        if is_over:
            break
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"train.py ended with exit code {process.returncode}; its message stands above")


def main() -> int:
    parser = job_parser("race", __doc__)
    parser.add_argument("--alone", action="store_true", help="without counts")
    args = parser.parse_args()
    case, reached, seconds = "without counts" if args.alone else "with counts", None, 0.0
    best, started = float("inf"), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train.py"), *flags(args.alone, args.smoke), "--out", f"{folder}/run"]
        for line in evaluations(command, Path(folder, "run", "metrics.jsonl")):
            seconds, best = line["seconds"], min(best, line["val_loss"])
            who = f"step {line['step']}"
            append(args.rows, Row("training", "baby GPT, a run", case, who, 1000 * seconds, line["val_loss"], "nats"))
            if reached is None and line["val_loss"] <= BABY_LOSS:
                reached = seconds
    about = f"best loss {best:.4f}; {seconds:.1f} s of training and {time.monotonic() - started:.1f} s in all"
    goal = None if args.smoke else BABY_LOSS
    ms = None if reached is None else 1000 * reached
    note = f"{about}; {'' if reached is not None else 'did not '}reach{'ed' * (reached is not None)} {BABY_LOSS}"
    append(
        args.rows, Row("training", "baby GPT, to the loss", case, "ours", ms, best, "nats", None, goal, note=note)
    )  # fmt: skip
    print(f"{note} (goal: {BABY_LIMIT} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
