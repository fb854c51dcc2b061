"""Milliseconds a step and tokens a second of every family at makemore's sizes, with makemore run beside it.

    CHARLM_DATA=DIR python -m bench.families --makemore CHECKOUT

Batch 32 on names32k, fetching batches included on both sides; makemore's time is the median of what it prints, ours the
mean over all steps. Without --makemore only ours.
"""

import argparse
from pathlib import Path

from bench import peers
from data.sources import resolve

FAMILIES = {"bigram": "bigram", "mlp": "mlp", "rnn": "rnn", "gru": "gru", "transformer": "transformer",
            "lstm": None, "cnn": None}  # fmt: skip

SAME_SIZE = {"mlp": ("--order", "16")}  # makemore's MLP sees the whole name; the preset's sees 8 characters


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.families", description=__doc__.splitlines()[0])
    parser.add_argument("--makemore", type=Path, help="a checkout of makemore to run beside")
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    names = resolve("names32k").files[0]
    print("| family | makemore ms/step | ours ms/step | ratio | ours tokens/s |\n|---|---|---|---|---|")
    for ours_name, theirs in FAMILIES.items():
        peer_ms = None
        if args.makemore and theirs:
            printed = peers.makemore(args.makemore, names, "--type", theirs, "--max-steps", str(args.steps))
            peer_ms = peers.step_times(printed, r"step time ([\d.]+)ms")
        summary = peers.ours(
            "--preset", "makemore", "--model", ours_name, "--data", "names32k", "--steps", str(args.steps),
            "--eval-interval", str(args.steps), *SAME_SIZE.get(ours_name, ()),
        )  # fmt: skip
        ms = 1000 * summary["seconds"] / args.steps
        ratio = f"{peer_ms / ms:.1f}x" if peer_ms else ""
        print(
            f"| {ours_name} | {f'{peer_ms:.2f}' if peer_ms else ''} | {ms:.2f} | {ratio} "
            f"| {summary['tokens_per_second']:,} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
