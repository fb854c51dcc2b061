"""nanoGPT's CPU README run and ours at the same settings, one after the other: milliseconds a step and validation loss.

    CHARLM_DATA=DIR python -m bench.nanogpt_cpu --nanogpt CHECKOUT [--steps 2000]

4 layers, 4 heads, 128 wide, context 64, batch 12, 2,000 steps, no dropout. Ours is `--preset nanogpt-cpu`; its
validation loss is over the whole split in windows of 64. nanoGPT prints an estimate from 20 random batches, which is
shown as it is.
"""

import argparse
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from bench import peers
from data.sources import resolve

README_FLAGS = (
    "--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=1", "--block_size=64", "--batch_size=12",
    "--n_layer=4", "--n_head=4", "--n_embd=128", "--lr_decay_iters=2000", "--dropout=0.0",
)  # fmt: skip

STEP_TIME = r"iter \d+: .*time ([\d.]+)ms"
TURN_STEPS = 200


def prepare_nanogpt(checkout: Path) -> None:
    """nanoGPT's own data preparation, from our copy of the text."""
    folder = checkout / "data" / "shakespeare_char"
    if not (folder / "train.bin").exists():
        shutil.copy(resolve("shakespeare").files[0], folder / "input.txt")
        # It imports requests for a download that the copy makes needless.
        code = "import runpy, sys; sys.modules['requests'] = sys; runpy.run_path('prepare.py', run_name='__main__')"
        subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.nanogpt_cpu", description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT to run beside")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    ours = ["--preset", "nanogpt-cpu", "--data", "shakespeare"]
    if args.nanogpt:
        prepare_nanogpt(args.nanogpt)
        pairs = []
        for _ in range(args.turns):
            printed = peers.nanogpt(args.nanogpt, *README_FLAGS, f"--max_iters={TURN_STEPS}", "--eval_interval=10000")
            summary = peers.ours(*ours, "--steps", str(TURN_STEPS), "--eval-interval", str(TURN_STEPS))
            pairs.append((peers.step_times(printed, STEP_TIME), 1000 * summary["seconds"] / TURN_STEPS))
        theirs, mine = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"ms a step, medians of {args.turns} turns: nanoGPT {theirs:.1f}, ours {mine:.1f}, ratio {ratio:.2f}x")
        printed = peers.nanogpt(args.nanogpt, *README_FLAGS, f"--max_iters={args.steps}")
        print(f"nanoGPT after {args.steps} steps: {re.findall(r'val loss ([0-9.]+)', printed)[-1]} by its own estimate")
    summary = peers.ours(*ours, "--steps", str(args.steps))
    print(f"ours after {args.steps} steps: {summary['val_loss']:.4f} in {summary['seconds']:.0f} s of training")


if __name__ == "__main__":
    main()
