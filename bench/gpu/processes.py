"""One training in several processes, a GPU each, beside one process: tokens/s, and whether the losses are the same.

The real command under the real launcher, on the sources of Python's library. On one GPU there is nothing to measure.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from bench.gpu.jobs import job_parser, numbered
from bench.gpu.rows import Row, append

STEPS = 120  # evaluated at the half: the first is left out of the speed
ONE_GPU = "one GPU: the processes of a training take a GPU each"


class Way(NamedTuple):
    """So many processes, and how they divide the work."""

    processes: int
    sharded: bool = False

    def __str__(self) -> str:
        return f"{self.processes} process{'es' * (self.processes > 1)}{', --shard' * self.sharded}"


def ways(most: int) -> list[Way]:
    """One process, then 2, 4, ... up to `most`, whose last also shards."""
    counts = [n for n in (1, 2, 4, 8) if n <= most]
    return [*map(Way, counts), Way(counts[-1], sharded=True)]


def measure(way: Way, most: int, smoke: bool) -> tuple[float, list[float]]:
    """Tokens/s of the second half, and the validation losses."""
    steps = 4 if smoke else STEPS
    model = ["--data", "names", "--n-layer", 1, "--batch-size", 4, "--device", "cpu"] if smoke else [
        "--data", "stdlib", "--preset", "nanogpt"
    ]  # fmt: skip
    flags = [*model, "--steps", steps, "--eval-interval", steps // 2, "--grad-accum", most, "--eval-tokens", 20_000]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", way.processes]
        command += ["train.py", *flags, "--out", run, *["--shard"] * way.sharded]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "rror" in line]
            raise RuntimeError(said[0] if said else f"exit code {done.returncode}")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    half, end = lines[-2:]
    return (end["tokens"] - half["tokens"]) / (end["seconds"] - half["seconds"]), [line["val_loss"] for line in lines]


def main() -> int:
    args = job_parser("processes", __doc__).parse_args()
    most = 2 if args.smoke else torch.cuda.device_count()
    if most < 2:
        append(args.rows, Row("processes", "baby GPT", "several processes", outcome="left out", note=ONE_GPU))
        return 0
    alone: list[float] = []
    names = ways(most)
    for number in numbered(list(map(str, names)), args.skip):
        way = names[number]
        try:
            speed, losses = measure(way, most, args.smoke)
        except RuntimeError as error:
            append(args.rows, Row("processes", "baby GPT", str(way), outcome="failed", note=str(error)))
            continue
        alone = alone or losses
        apart = max(abs(loss - other) for loss, other in zip(losses, alone, strict=True))
        note = f"validation losses at most {apart:.1e} from the first row's" if losses is not alone else ""
        append(args.rows, Row("processes", "baby GPT", str(way), value=speed, unit="tokens/s", note=note))
    return 0


if __name__ == "__main__":
    sys.exit(main())
