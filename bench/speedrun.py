"""Seconds of training to a good character model, beside the peers' on the same machine in the same run.

    CHARLM_DATA=DIR python -m bench.speedrun --nanogpt CHECKOUT --makemore CHECKOUT [--rows shakespeare,names]

Settings are chosen on seeds 1 to 3; the figures quoted are those of others (`--first-seed 201 --seeds 10`), mean and
worst. Times are of training, evaluations left out, as the peers' own reports do; "in all" is the whole command.

shakespeare: to a validation loss of 1.88 without counts, against nanoGPT's CPU README run, which ends at 1.886 to
1.898: 2,000 of its steps, timed before and after ours.
mixed: the validation loss on Shakespeare after less than three minutes in all, mixed with counts.
names: on makemore's own split (see bench.makemore_losses), without counts to the 2.013 that makemore's Transformer
reaches after 5,000 steps, timed before and after ours; then the test loss after less than three minutes, with counts.
decoding: characters a second, see bench.decoding.
baby: nanoGPT's model for a GPU (6 layers, 384 wide, context 256), mixed with counts, to the 1.4697 that nanoGPT has on
an A100 after three minutes. Left out where there is no GPU, unless asked for: two cores take twenty minutes.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench import decoding, peers
from bench.makemore_losses import run, write_split
from bench.nanogpt_cpu import nanogpt_step, turn
from data.sources import resolve

NANOGPT_LOSS, NANOGPT_STEPS, TURNS = 1.88, 2000, 10
MAKEMORE_LOSS, MAKEMORE_STEPS, MAKEMORE_TIMED = 2.013, 5000, 100
MIXED_LOSS, NAMES_LOSS, LIMIT = 1.44, 1.90, 180  # nats, nats, seconds
BABY_LOSS, BABY_LIMIT = 1.4697, 20  # nats, seconds
_MODERN = ["--preset", "modern", "--activation", "relu2", "--warmup", "10", "--schedule", "linear", "--lr-floor", "0"]
_SMALL = [*_MODERN, "--n-layer", "4", "--n-head", "4", "--n-embd", "128"]
SHAKESPEARE = [  # one layer: in so few steps four learn less, each step at three times the cost
    *_MODERN, "--n-layer", "1", "--n-head", "4", "--n-embd", "128", "--data", "shakespeare", "--context", "64",
    "--batch-size", "16", "--steps", "110", "--eval-interval", "110", "--lr", "2e-2", "--hash-ngrams", "6",
    "--hash-rows", "65536",
]  # fmt: skip
_COUNTED = ["--lr", "1e-2", "--muon-lr", "0.015", "--hash-ngrams", "10", "--hash-rows", "65536", "--mix-ngram", "7"]
BEST_OF_STREAM = [*_SMALL, "--context", "128", "--batch-size", "8", *_COUNTED]
MIXED = [
    *BEST_OF_STREAM, "--n-embd", "192", "--n-head", "6", "--context", "256", "--batch-size", "4", "--count-inputs",
    "--data", "shakespeare", "--steps", "970", "--eval-interval", "970",
]  # fmt: skip
BABY = [
    *_MODERN, "--n-layer", "6", "--n-head", "6", "--n-embd", "384", "--context", "256", "--batch-size", "4", *_COUNTED,
    "--data", "shakespeare", "--steps", "980", "--eval-interval", "490",
    "--compile", "off",  # compiling would take longer than the run
]  # fmt: skip
NAMES = [
    *_MODERN, "--batch-size", "96", "--steps", "220", "--eval-interval", "220", "--lr", "2e-2", "--hash-ngrams", "5",
    "--hash-rows", "16384",
]  # fmt: skip
BEST_OF_LINES = [
    *_SMALL, "--batch-size", "128", "--lr", "5e-3", "--dropout", "0.2", "--weight-decay", "0.1", "--hash-ngrams", "3",
    "--hash-rows", "4096", "--mix-ngram", "6",
]  # fmt: skip
NAMES_MIXED = [
    *BEST_OF_LINES, "--n-layer", "2", "--hash-ngrams", "0", "--count-inputs", "--steps", "3200",
    "--eval-interval", "1600",
]  # fmt: skip


Losses = dict[str, list[float]]  # by what was measured, one a seed


def shakespeare(args: argparse.Namespace) -> Losses:
    """Print the loss and the training time of our run for each seed, beside nanoGPT's time."""
    step, losses = nanogpt_step(args.nanogpt), []
    turn(step)  # warms up
    for seed in args.seeds:
        times = [turn(step) for _ in range(TURNS)]
        summary = peers.ours(*SHAKESPEARE, "--seed", seed)
        times += [turn(step) for _ in range(TURNS)]
        theirs = NANOGPT_STEPS * statistics.median(times) / 1000
        _show(f"shakespeare, seed {seed}", summary, NANOGPT_LOSS, f"nanoGPT's {NANOGPT_STEPS:,} steps", theirs)
        losses.append(summary["val_loss"])
    return {"shakespeare": losses}


def mixed(args: argparse.Namespace) -> Losses:
    """Print the loss of our best run of three minutes on Shakespeare, for each seed."""
    losses = []
    for seed in args.seeds:
        started = time.perf_counter()
        summary = peers.ours(*MIXED, "--seed", seed)
        seconds = time.perf_counter() - started
        _show_within(f"mixed, seed {seed}", summary, MIXED_LOSS, seconds, seconds <= LIMIT)
        losses.append(summary["val_loss"])
    return {"mixed": losses}


def names(args: argparse.Namespace) -> Losses:
    """Print the test losses and times of our two runs on makemore's split, for each seed."""
    losses: Losses = {"names": [], "names mixed": [], "names mixed, unseen": []}
    with tempfile.TemporaryDirectory() as folder:
        split = write_split(Path(folder))
        for seed in args.seeds:
            times = [_makemore_step(args.makemore)]
            summary, _ = run([*NAMES, "--seed", seed], split, Path(folder, f"alone-{seed}"))
            times.append(_makemore_step(args.makemore))
            theirs = MAKEMORE_STEPS * statistics.mean(times) / 1000
            _show(f"names, seed {seed}", summary, MAKEMORE_LOSS, f"makemore's {MAKEMORE_STEPS:,} steps", theirs)
            losses["names"].append(summary["val_loss"])
            started = time.perf_counter()
            summary, unseen = run([*NAMES_MIXED, "--seed", seed], split, Path(folder, f"mixed-{seed}"))
            seconds = time.perf_counter() - started
            _show_within(f"names mixed, seed {seed}", summary, NAMES_LOSS, seconds, seconds <= LIMIT)
            print(f"  on the names that training has not seen: {unseen:.4f}", flush=True)
            losses["names mixed"].append(summary["val_loss"])
            losses["names mixed, unseen"].append(unseen)
    return losses


def decode(args: argparse.Namespace) -> Losses:
    """Print the characters a second of both sides."""
    print("decoding,", decoding.report(args.nanogpt))
    return {}


def baby(args: argparse.Namespace) -> Losses:
    """Print the loss and the times of nanoGPT's model for a GPU, for each seed."""
    losses = []
    for seed in args.seeds:
        started = time.perf_counter()
        summary = peers.ours(*BABY, "--seed", seed)
        in_time = summary["seconds"] <= BABY_LIMIT
        _show_within(f"baby, seed {seed}", summary, BABY_LOSS, time.perf_counter() - started, in_time)
        losses.append(summary["val_loss"])
    return {"baby": losses}


ROWS: dict[str, Callable[[argparse.Namespace], Losses]] = {
    "shakespeare": shakespeare, "mixed": mixed, "names": names, "decoding": decode, "baby": baby,
}  # fmt: skip
NEEDS = {"shakespeare": "nanogpt", "names": "makemore", "decoding": "nanogpt"}


def _makemore_step(checkout: Path) -> float:
    """Milliseconds of a step of makemore's Transformer."""
    flags = ("--type", "transformer", "--max-steps", str(MAKEMORE_TIMED))
    return peers.step_times(peers.makemore(checkout, resolve("names32k").files[0], *flags), r"step time ([\d.]+)ms")


def _show(row: str, summary: dict, target: float, peer: str, theirs: float) -> None:
    verdict = "reached" if summary["val_loss"] <= target else "MISSED"
    print(
        f"{row}: {target} {verdict} with {summary['val_loss']:.4f} in {summary['seconds']:.1f} s; "
        f"{peer} take {theirs:.1f} s: {theirs / summary['seconds']:.1f}x",
        flush=True,
    )


def _show_within(row: str, summary: dict, target: float, seconds: float, in_time: bool) -> None:
    verdict = "reached" if summary["val_loss"] <= target and in_time else "MISSED"
    print(
        f"{row}: {target} {verdict} with {summary['val_loss']:.4f} in {summary['seconds']:.1f} s of training, "
        f"{seconds:.1f} s in all",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.speedrun", description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=peers.checkout("model.py"), help="a checkout of nanoGPT")
    parser.add_argument("--makemore", type=peers.checkout("makemore.py"), help="a checkout of makemore")
    usual = ",".join(row for row in ROWS if row != "baby" or torch.cuda.is_available())
    parser.add_argument("--rows", default=usual, help=f"which of {', '.join(ROWS)}, with commas between")
    parser.add_argument("--seeds", type=int, default=3, help="how many runs of ours")
    parser.add_argument("--first-seed", type=int, default=1337, help="the seed of the first of them")
    args = parser.parse_args()
    args.seeds = [str(args.first_seed + i) for i in range(args.seeds)]
    rows = args.rows.split(",")
    for row in rows:
        if row not in ROWS:
            parser.error(f"there is no row '{row}'; there are: {', '.join(ROWS)}")
        if row in NEEDS and getattr(args, NEEDS[row]) is None:
            parser.error(f"the row '{row}' needs --{NEEDS[row]}, a checkout of it")
    for row in rows:
        for what, losses in ROWS[row](args).items():
            print(
                f"{what}: mean {statistics.mean(losses):.4f}, worst {max(losses):.4f} of {len(losses)} seeds",
                flush=True,
            )


if __name__ == "__main__":
    main()
