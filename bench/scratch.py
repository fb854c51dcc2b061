"""The time of a training step in NumPy beside torch's, in one process: `python -m bench.scratch`.

Both take the same batches from the same weights, by turns; what counts is the CPU time of the fastest half of the
steps, forward, backward, clipping and optimizer. Sizes are the defaults of `makemore.scratch.train`.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch

from engine.config.flags import parse
from engine.training.optimizers import make_optimizers
from makemore.scratch import optimizers
from makemore.scratch.compare import Pair, make_pair, torch_step
from makemore.scratch.options import TAPED, NumPyConfig
from makemore.scratch.training import make_optimizer, step_gradients

# Family, flags, and the most that a step by hand may take over torch's.
CASES = [
    ("mlp", [], 1.0), ("rnn", [], 1.0), ("gru", [], 1.1), ("cnn", [], 1.1), ("lstm", [], 1.5),
    ("transformer", ["--n-layer", "1"], 2.0), ("transformer", [], 2.0),
]  # fmt: skip


def numpy_step(pair: Pair) -> Callable[[Any], None]:
    optimizer = make_optimizer(pair.config)

    def step(batches: Any) -> None:
        _, gradients = step_gradients(pair.ours, batches)
        optimizers.clip(gradients, pair.config.optim.grad_clip)
        optimizer.step(pair.ours.parameters, gradients)

    return step


def measure(flags: list[str], rounds: int) -> tuple[float, float]:
    """CPU seconds of a step in NumPy and in torch."""
    config, _ = parse(flags, NumPyConfig)
    pair = make_pair(config, np.float32)
    their_optimizers = make_optimizers(cast(Any, pair.theirs), pair.config.optim)
    steps = numpy_step(pair), lambda batches: torch_step(pair, their_optimizers, batches, 1.0)
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 3):
        batches = pair.batches()
        for step, found in zip(steps, times, strict=True):
            started = time.process_time()
            step(batches)
            if turn >= 3:
                found.append(time.process_time() - started)
    ours, theirs = (statistics.median(sorted(found)[: max(1, len(found) // 2)]) for found in times)
    return ours, theirs


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scratch", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40, help="steps that are timed of each")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--data", default="names")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    common = ["--batch-size", str(given.batch_size), "--data", given.data]
    print("family                    NumPy     torch   ratio")
    for model, flags, most in CASES:
        engines = ["hand", "tape"] if model in TAPED and not flags else ["hand"]
        for engine in engines:
            ours, theirs = measure(["--model", model, *flags, *common, "--engine", engine], given.rounds)
            name = " ".join([model, *(f"{f.lstrip('-')}" for f in flags), *(["tape"] if engine == "tape" else [])])
            wanted = f"  at most {most}" if engine == "hand" else "  at most 3.0" if model == "mlp" else ""
            print(f"{name:<22} {1e3 * ours:6.2f} ms {1e3 * theirs:6.2f} ms  {ours / theirs:5.2f}{wanted}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
