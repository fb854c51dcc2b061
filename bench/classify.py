"""Accuracy and macro-F1 of `finetune.classify` from scratch over several splits, beside the n-gram baseline.

python -m bench.classify --data sms_spam.tsv [--seeds 5] [--first 0] [any flags of finetune.classify]
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.peers import ROOT


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.classify", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--data", required=True, help="as finetune.classify takes it")
    parser.add_argument("--seeds", type=int, default=5, help="how many splits")
    parser.add_argument("--first", type=int, default=0, help="the seed of the first")
    args, flags = parser.parse_known_args()
    results = []
    print("| split | accuracy | macro-F1 | n-grams | n-grams' macro-F1 | seconds |\n|---|---|---|---|---|---|")
    for seed in range(args.first, args.first + args.seeds):
        started = time.perf_counter()
        summary = one(args.data, seed, flags)
        numbers = [summary["test"], summary["baselines"]["character n-grams"]]
        row = [n.get(key, math.nan) for n in numbers for key in ("accuracy", "macro_f1")]  # a baseline may be left out
        results.append([*row, time.perf_counter() - started])
        print(f"| {seed} | " + " | ".join(f"{x:.4f}" for x in row) + f" | {results[-1][-1]:.0f} |", flush=True)
    for name, reduce in (("mean", statistics.mean), ("deviation", statistics.stdev)) if len(results) > 1 else ():
        row = [reduce(column) for column in zip(*results, strict=True)]
        print(f"| {name} | " + " | ".join(f"{x:.4f}" for x in row[:-1]) + f" | {row[-1]:.0f} |")


def one(data: str, seed: int, flags: list[str]) -> dict:
    """The summary of one run of the command."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "finetune.classify", "--data", data, "--split-seed", str(seed), *flags]
        completed = subprocess.run([*command, "--out", f"{folder}/run"], cwd=ROOT, capture_output=True, text=True)
        if completed.returncode:
            raise SystemExit(f"{' '.join(command)}\n{completed.stderr}")
        return json.loads(Path(folder, "run", "summary.json").read_text())


if __name__ == "__main__":
    main()
