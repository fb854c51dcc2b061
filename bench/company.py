"""What samples that are drawn together gain, beside one alone.

    python -m bench.company RUN [--length 400] [--turns 5]

Tokens a second of processor time on one thread: one sample by `run.pieces`, with its text; then 1, 8 and 32 samples
that are drawn together as the server does it. They take turns.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from engine import load_run
from engine.run.company import Company
from engine.run.run import Run

TOGETHER = (1, 8, 32)
STEPS = 16  # at once


def alone(run: Run, length: int) -> int:
    """Draw one sample; the number of its tokens, which are characters."""
    return sum(map(len, run.pieces(seed=1, max_new_tokens=length)))


def together(run: Run, count: int, length: int) -> int:
    """Draw so many samples in company; the number of all their tokens."""
    company, drawn = Company(run), 0
    for seed in range(count):
        company.join(run.prompt_ids(), run.request(seed=1 + seed, max_new_tokens=length))
    while len(company):
        drawn += len(company.step(STEPS))
    return drawn


def rate(draw: Callable[[], int]) -> float:
    started = time.thread_time()
    return draw() / (time.thread_time() - started)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.company", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run directory, of characters")
    parser.add_argument("--length", type=int, default=400, help="tokens of a sample")
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    run = load_run(args.run)
    ways: dict[str, Callable[[], int]] = {"alone": lambda: alone(run, args.length)}
    ways |= {f"{n} together": lambda n=n: together(run, n, args.length) for n in TOGETHER}  # type: ignore[misc]
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.turns + 1):
        for name, draw in ways.items():
            rates[name].append(rate(draw))
    medians = {name: statistics.median(each[1:]) for name, each in rates.items()}  # the first warms up
    for name, found in medians.items():
        print(f"{name}: {found:,.0f} tokens a second of processor time ({found / medians['alone']:.2f} of alone)")


if __name__ == "__main__":
    main()
