"""Characters a second that a model generates, beside nanoGPT's `generate`: one sample, and ten at once.

    python -m bench.decoding --nanogpt CHECKOUT [--length 500] [--turns 3]

Both sides have random weights of nanoGPT's CPU README size (4 layers, 4 heads, 128 wide, context 64), temperature 0.8,
top-k 200, and start from a line end, as nanoGPT's sample.py does; they take turns in one process. nanoGPT recomputes
its whole context for each character and draws its samples one after the other, so ten of them take ten times as long.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from bench import peers
from bench.nanogpt_cpu import FLAGS, nanogpt_model
from engine.config.flags import parse
from engine.registry import build_model
from engine.run.generate import generate
from engine.run.sampling import Sampling
from makemore.base import LanguageModel


def theirs(model: Any, length: int) -> float:
    """Characters a second of one sample of nanoGPT."""
    prompt = torch.zeros(1, 1, dtype=torch.int64, device=next(model.parameters()).device)
    started = time.perf_counter()
    with torch.no_grad():
        model.generate(prompt, length, temperature=0.8, top_k=200).cpu()  # to its end, on a GPU
    return length / (time.perf_counter() - started)


def ours(model: LanguageModel, length: int, streams: int) -> float:
    """Characters a second of `streams` samples together."""
    device = next(iter(model.state_dict().values())).device
    prompt = torch.full((streams, 1), 6, device=device)
    started = time.perf_counter()
    suppressed, eos = list(model.special), model.special.eos
    drawn = generate(model, prompt, length, Sampling(0.8, top_k=200), suppressed, eos, torch.Generator(device))
    count = sum(len(token.cpu()) for token in drawn)
    return count / (time.perf_counter() - started)


def report(nanogpt: Path, length: int = 500, turns: int = 3) -> str:
    """The medians over the turns, as one line of text."""
    peer = nanogpt_model(nanogpt).eval()
    model = build_model(parse(FLAGS)[0], 71).eval()
    rows = []
    for _ in range(turns + 1):  # the first warms up
        rows.append([theirs(peer, length), ours(model, length, 1), ours(model, length, 10)])
    rate, one, ten = (statistics.median(column) for column in zip(*rows[1:], strict=True))
    return (
        f"characters a second, medians of {turns}: nanoGPT {rate:,.0f}; ours, one stream {one:,.0f} "
        f"({one / rate:.1f}x), ten at once {ten:,.0f} ({ten / rate:.1f}x)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.decoding", description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=peers.checkout("model.py"), required=True, help="a checkout of nanoGPT")
    parser.add_argument("--length", type=int, default=500, help="characters a sample")
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    print(report(args.nanogpt, args.length, args.turns))


if __name__ == "__main__":
    main()
