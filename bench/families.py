"""Milliseconds a step and tokens a second of every family at makemore's sizes, with makemore run beside it.

    CHARLM_DATA=DIR python -m bench.families --makemore CHECKOUT

Batch 32 on names32k, fetching batches included on both sides: the median of the step times that makemore prints (of
every tenth step), and of ours over each tenth of the run. The two take turns; the table has the medians over the turns.
Without --makemore only ours are measured.
"""

import argparse
import statistics

from bench import peers
from data.sources import resolve

FAMILIES = {"bigram": "bigram", "mlp": "mlp", "rnn": "rnn", "gru": "gru", "transformer": "transformer",
            "lstm": None, "cnn": None}  # fmt: skip

SAME_SIZE = {"mlp": ("--order", "16")}  # makemore's MLP sees the whole name; the preset's sees 8 characters


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.families", description=__doc__.splitlines()[0])
    parser.add_argument("--makemore", type=peers.checkout("makemore.py"), help="a checkout of makemore to run beside")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    names = resolve("names32k").files[0]
    print("| family | makemore ms/step | ours ms/step | ratio | ours tokens/s |\n|---|---|---|---|---|")
    for model, peer in FAMILIES.items():
        theirs, ours, rates = [], [], []
        for _ in range(args.turns):
            if args.makemore and peer:
                printed = peers.makemore(args.makemore, names, "--type", peer, "--max-steps", str(args.steps))
                theirs.append(peers.step_times(printed, r"step time ([\d.]+)ms"))
            flags = ["--preset", "makemore", "--model", model, "--data", "names32k", *SAME_SIZE.get(model, ())]
            summary = peers.ours(*flags, "--steps", str(args.steps), "--eval-interval", str(args.steps // 10))
            ours.append(summary["step_ms"])
            rates.append(summary["tokens_per_second"])
        print(f"| {model} | {_beside(theirs, ours)} | {statistics.median(rates):,.0f} |", flush=True)


def _beside(peer_times: list[float], ours: list[float]) -> str:
    """Three cells of the table: the peer's median, ours, and the median of the ratios of each turn."""
    if not peer_times:
        return f" | {statistics.median(ours):.2f} | "
    ratios = [a / b for a, b in zip(peer_times, ours, strict=True)]
    return f"{statistics.median(peer_times):.2f} | {statistics.median(ours):.2f} | {statistics.median(ratios):.1f}x"


if __name__ == "__main__":
    main()
