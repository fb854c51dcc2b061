"""The way to a good character model, in seconds, beside the peers' on the same machine in the same run.

    CHARLM_DATA=DIR python -m bench.speedrun --nanogpt CHECKOUT [--rows shakespeare,decoding]

shakespeare: training time (evaluations left out, as nanoGPT's own report does) to a validation loss of 1.88, against
that of nanoGPT's CPU README run, which ends at 1.886 to 1.898: 2,000 of its steps, timed before and after ours.
decoding: characters a second, see bench.decoding.
"""

import argparse
import statistics
from pathlib import Path

from bench import decoding, peers
from bench.nanogpt_cpu import nanogpt_step, turn

TARGET, NANOGPT_STEPS, TURNS = 1.88, 2000, 10
SHAKESPEARE = [
    "--data", "shakespeare", "--preset", "modern", "--n-layer", "4", "--n-head", "4", "--n-embd", "128",
    "--context", "64", "--hash-ngrams", "6", "--hash-rows", "65536", "--steps", "80", "--batch-size", "16",
    "--lr", "2e-2", "--warmup", "10", "--schedule", "linear", "--lr-floor", "0", "--eval-interval", "80",
]  # fmt: skip


def shakespeare(nanogpt: Path, seeds: list[int]) -> None:
    """Print the loss and the training time of our run for each seed, beside nanoGPT's time."""
    step = nanogpt_step(nanogpt)
    turn(step)  # warms up
    for seed in seeds:
        times = [turn(step) for _ in range(TURNS)]
        found = peers.ours(*SHAKESPEARE, "--seed", str(seed))
        times += [turn(step) for _ in range(TURNS)]
        theirs = NANOGPT_STEPS * statistics.median(times) / 1000
        verdict = "reached" if found["val_loss"] <= TARGET else "MISSED"
        print(
            f"shakespeare, seed {seed}: {TARGET} {verdict} with {found['val_loss']:.4f} in {found['seconds']:.1f} s; "
            f"nanoGPT's {NANOGPT_STEPS} steps take {theirs:.1f} s: {theirs / found['seconds']:.1f}x",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.speedrun", description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT")
    parser.add_argument("--rows", default="shakespeare,decoding", help="which of them, with commas between")
    parser.add_argument("--seeds", type=int, default=3, help="how many runs of ours")
    args = parser.parse_args()
    for row in args.rows.split(","):
        if row == "shakespeare":
            shakespeare(args.nanogpt, list(range(1337, 1337 + args.seeds)))
        elif row == "decoding":
            print("decoding,", decoding.report(args.nanogpt))
        else:
            parser.error(f"there is no row '{row}'; there are: shakespeare, decoding")


if __name__ == "__main__":
    main()
