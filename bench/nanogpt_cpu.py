"""nanoGPT's CPU README run and ours at the same settings, one after the other: milliseconds a step and validation loss.

    CHARLM_DATA=DIR python -m bench.nanogpt_cpu --nanogpt CHECKOUT [--steps 2000]

4 layers, 4 heads, 128 wide, context 64, batch 12, 2,000 steps, no dropout. Ours is `--preset nanogpt-cpu`; its
validation loss is over the whole split in windows of 64. nanoGPT prints an estimate from 20 random batches, which is
shown as it is.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

from bench import peers
from data.sources import resolve

README_FLAGS = (
    "--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=1", "--block_size=64", "--batch_size=12",
    "--n_layer=4", "--n_head=4", "--n_embd=128", "--lr_decay_iters=2000", "--dropout=0.0",
)  # fmt: skip


def prepare_nanogpt(checkout: Path) -> None:
    """nanoGPT's own data preparation, from our copy of the text."""
    folder = checkout / "data" / "shakespeare_char"
    if not (folder / "train.bin").exists():
        shutil.copy(resolve("shakespeare").files[0], folder / "input.txt")
        subprocess.run([sys.executable, "prepare.py"], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.nanogpt_cpu", description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT to run beside")
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()
    print("| who | ms/step | validation loss |\n|---|---|---|")
    theirs = None
    if args.nanogpt:
        prepare_nanogpt(args.nanogpt)
        printed = peers.nanogpt(args.nanogpt, *README_FLAGS, f"--max_iters={args.steps}")
        theirs = peers.step_times(printed, r"iter \d+: .*time ([\d.]+)ms")
        estimate = re.findall(r"val loss ([\d.]+)", printed)[-1]
        print(f"| nanoGPT | {theirs:.1f} | {estimate} (its estimate) |", flush=True)
    flags = ["--preset", "nanogpt-cpu", "--data", "shakespeare", "--steps", str(args.steps)]
    summary = peers.ours(*flags)
    ms = 1000 * summary["seconds"] / summary["steps"]
    ratio = f" ({theirs / ms:.2f}x)" if theirs else ""
    print(f"| ours | {ms:.1f}{ratio} | {summary['val_loss']:.4f} |")


if __name__ == "__main__":
    main()
