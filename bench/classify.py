"""How well `finetune.classify` does from scratch over several splits, beside the n-gram baseline.

python -m bench.classify --data sms_spam.tsv [--seeds 5] [--first 0] [any flags of finetune.classify]

With --published the test side is the data's own (a folder or JSON with a split, or --test-data): seeds then differ in
how a run begins and in what is held out for validation, while the n-grams learn from all that is not the test.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.peers import ROOT, output
from data.errors import UserError, run_command
from engine.config.flags import parse
from finetune.classify.baselines import ngram_baseline
from finetune.classify.examples import read_labelled
from finetune.classify.measure import HEADLINES, headlines, measure
from finetune.classify.options import ClassifyConfig


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.classify", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--data", required=True, help="as finetune.classify takes it")
    parser.add_argument("--seeds", type=int, default=5, help="how many splits")
    parser.add_argument("--first", type=int, default=0, help="the seed of the first")
    parser.add_argument("--published", action="store_true", help="the n-grams get the validation side to learn from")
    args, flags = parser.parse_known_args()
    results: list[list[float]] = []
    ngrams = of_all_training(args.data, flags) if args.published else None
    for seed in range(args.first, args.first + args.seeds):
        started = time.perf_counter()
        more = ["--seed", str(seed), "--no-baseline"] if args.published else []
        summary = one(args.data, seed, [*flags, *more])
        ours = headlines(summary["test"])
        theirs = ngrams or summary["baselines"]["character n-grams"]
        if not results:
            print("| split | " + " | ".join(HEADLINES[key] for key in ours), end=" | ")
            print(" | ".join(f"n-grams' {HEADLINES[key]}" for key in ours) + " | seconds |")
            print("|---" * (2 * len(ours) + 2) + "|")
        row = [n.get(key, math.nan) for n in (ours, theirs) for key in ours]  # a baseline may be left out
        results.append([*row, time.perf_counter() - started])
        _show(str(seed), results[-1])
    for name, reduce in (("mean", statistics.mean), ("deviation", statistics.stdev)) if len(results) > 1 else ():
        _show(name, [reduce(column) for column in zip(*results, strict=True)])
    return 0


def _show(name: str, row: list[float]) -> None:
    print(f"| {name} | " + " | ".join(f"{x:.4f}" for x in row[:-1]) + f" | {row[-1]:.0f} |", flush=True)


def of_all_training(data: str, flags: list[str]) -> dict:
    """What the n-grams reach on the test side when they learn from all other examples."""
    config, _ = parse(["--data", data, *flags], ClassifyConfig)
    labelled = read_labelled(config)
    if labelled.is_multi:
        raise UserError("--published is for texts with one label each")
    learn, test = labelled.sides["train"] + labelled.sides["val"], labelled.sides["test"]
    numbers = np.concatenate([labelled.numbers("train"), labelled.numbers("val")])
    texts = ([e.text for e in learn], [e.text for e in test])
    predicted, _ = ngram_baseline(texts[0], numbers, texts[1], len(labelled.labels))
    return measure(predicted, labelled.numbers("test"), labelled.labels)


def one(data: str, seed: int, flags: list[str]) -> dict:
    """The summary of one run of the command."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "finetune.classify", "--data", data, "--split-seed", str(seed), *flags]
        output([*command, "--out", f"{folder}/run"], ROOT)
        return json.loads(Path(folder, "run", "summary.json").read_text())


if __name__ == "__main__":
    sys.exit(run_command(main))
