"""Characters a second: the captured step beside the same operations launched one by one; python -m bench.gpu.decoding.

Random weights; temperature 0.8 and top-k 200, as bench/decoding.py times them, captures included. With a checkout of
nanoGPT its own `generate` stands beside, at the same sizes.
"""

import math
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.decoding import ours, theirs
from bench.gpu.jobs import job_parser, numbered
from bench.gpu.machine import device, synchronize
from bench.gpu.rows import Row, append
from bench.nanogpt_cpu import nanogpt_model
from engine.config.flags import parse
from engine.registry import build_model
from nanogpt import graph_stepper

# Layers, heads, width, context.
SIZES = {"nanoGPT's CPU model": (4, 4, 128, 64), "baby GPT": (6, 6, 384, 256), "GPT-2 124M": (12, 12, 768, 1024)}
TOY = {"toy": (1, 1, 8, 16)}
VOCABULARY = 71
LENGTH, TURNS = 500, 3


def captured(rate: Callable[[], float]) -> float:
    """The rate, where every operation of the stepper is to be captured. RuntimeError where capturing failed."""
    captures, original = [], graph_stepper.capture

    def noted(*args):
        result = original(*args)
        captures.append(True)
        return result

    graph_stepper.capture = noted
    try:
        found = rate()
    finally:
        graph_stepper.capture = original
    if not captures:
        raise RuntimeError("no step was captured; the log has the warning")
    return found


def launched(rate: Callable[[], float]) -> float:
    """The rate where nothing is captured."""
    usual, graph_stepper.EAGER = graph_stepper.EAGER, math.inf  # type: ignore[assignment]
    try:
        return rate()
    finally:
        graph_stepper.EAGER = usual


def ways(name: str, nanogpt: Path | None, length: int) -> dict[tuple[str, int], Callable[[], float]]:
    """Who decodes how many streams of a model of this size, and what returns its characters a second."""
    n_layer, n_head, n_embd, context = (SIZES | TOY)[name]
    flags = ["--preset", "nanogpt", "--n-layer", n_layer, "--n-head", n_head, "--n-embd", n_embd, "--context", context]
    model = build_model(parse([str(flag) for flag in flags])[0], VOCABULARY).eval().to(device())
    found: dict[tuple[str, int], Callable[[], float]] = {}
    for streams in (1, 10):
        rate = partial(ours, model, length, streams)
        if device().type == "cuda":
            found["captured", streams] = partial(captured, rate)
        found["one by one", streams] = partial(launched, rate)
    if nanogpt:
        peer = nanogpt_model(nanogpt, n_layer, n_head, n_embd, context).eval().to(device())
        found["nanoGPT", 1] = partial(theirs, peer, length)
    return found


def main() -> int:
    parser = job_parser("decoding", __doc__)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    args = parser.parse_args()
    length, turns = (40, 1) if args.smoke else (LENGTH, TURNS)
    names = list(TOY if args.smoke else SIZES)
    for number in numbered(names, args.skip):
        case = names[number]
        if device().type != "cuda":
            note = "only a GPU has graphs to capture a step in"
            append(args.rows, Row("decoding", case, "1 and 10 streams", "captured", outcome="left out", note=note))
        for (who, streams), rate in ways(case, args.nanogpt, length).items():
            label = f"{streams} stream{'s' * (streams > 1)}"
            try:
                rate()  # warms up
                per_second = statistics.median(rate() for _ in range(turns))
            except RuntimeError as error:
                synchronize()  # raises where the GPU itself has failed
                reason = str(error).partition("\n")[0]
                append(args.rows, Row("decoding", case, label, who, outcome="failed", note=reason))
                continue
            append(
                args.rows, Row("decoding", case, label, who, 1000 * streams / per_second, per_second, "characters/s")
            )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
