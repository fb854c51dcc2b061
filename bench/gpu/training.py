"""Whole training steps of a model, with each choice of kernels; python -m bench.gpu.training MODEL ...

A step is the loop's own (`Trainer.step`): batches made ahead and moved, forward, backward, clipping, optimizers. FLOPs
a token are those of engine/flops.py: 6 N + 12 L C T with N weights of matrices, L layers, C wide, T tokens a row.
"""

import contextlib
import io
import itertools
import random
import statistics
import string
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from bench.gpu.jobs import job_parser, numbered
from bench.gpu.machine import device, synchronize
from bench.gpu.plan import MODELS, has_shakespeare
from bench.gpu.rows import Row, append, ceiling, read
from bench.step import make_trainer
from data.batches import Array, Batch
from data.loaders import Deal, Loader
from engine import runtime
from engine.config.flags import parse
from engine.config.sections import Config
from engine.flops import flops_per_token
from engine.registry import build_model
from engine.training.metrics import Metrics
from engine.training.trainer import Trainer

FLAGS: dict[str, list[str]] = {
    "default": [],
    "baby GPT": ["--preset", "nanogpt"],
    "GPT-2 124M": [
        "--preset", "gpt2", "--n-layer", "12", "--n-head", "12", "--n-embd", "768", "--context", "1024",
        "--batch-size", "12",
    ],
    "GPT-2 124M fast": ["--preset", "gpt2-124m-fast", "--grad-accum", "1"],
}  # fmt: skip
TOY = ["--n-layer", "1", "--n-head", "1", "--n-embd", "16", "--context", "16", "--batch-size", "2", "--warmup", "1"]
GPT2_VOCABULARY, TOY_VOCABULARY = 50262, 71  # GPT-2's tokens and five specials of ours
STAND_IN = 1_115_394  # characters, as Shakespeare has
WARM_UP, BLOCK, BLOCKS, SECONDS = 25, 10, 30, 4.0  # steps, steps, blocks of them, a measurement's time at most
REFUSED = "torch.compile does not work here"  # what engine/runtime.py warns with where it goes on without


class Setting(NamedTuple):
    """What is chosen: whether the step is compiled, and whose kernels it runs on."""

    compile: str
    attention: str
    norm: str

    def __str__(self) -> str:
        return f"--compile {self.compile} --attention {self.attention} --norm-kernel {self.norm}"


class Times(NamedTuple):
    """What a step took, and how many tokens it had."""

    ms: float
    tokens: float
    rows: float


class RandomTokens(Loader):
    """Windows of random tokens: a step takes the same time on them."""

    def __init__(self, batch_size: int, context: int, vocab_size: int):
        super().__init__(batch_size, 0)
        self.shape, self.vocab_size, self.rng = (batch_size, context + 1), vocab_size, np.random.default_rng(0)

    @property
    def longest(self) -> int:
        return self.shape[1] - 1

    def deal(self) -> Deal:
        return Deal(self.rng.integers(6, self.vocab_size, self.shape))

    def _batch(self, items: Array) -> Batch[Array]:
        return Batch(items[:, :-1], items[:, 1:].copy(), items[:, 1:].size)


def text_of(model: str, smoke: bool, folder: Path) -> tuple[list[str], str]:
    """The flags for the text of a model, and a note on what it is."""
    if model == "default":
        return [], "the bundled names"
    if has_shakespeare() and not smoke:
        return ["--data", "shakespeare"], "Shakespeare"
    draw, path = random.Random(0), folder / "letters.txt"
    letters = (string.ascii_letters + " \n.,;:!?'-&$3")[:65]
    path.write_text("".join(draw.choices(letters, k=STAND_IN // (500 if smoke else 1))), "utf-8")
    return ["--data", str(path)], "random letters, 65 different ones"


def trainer_of(model: str, setting: Setting, smoke: bool, folder: Path, *more: str) -> tuple[Trainer, str]:
    """A trainer at its first step, with `more` flags, and a note on its text."""
    flags = [*FLAGS[model], *(TOY if smoke else []), "--steps", "1000000", "--compile", setting.compile]
    flags += ["--attention", setting.attention, "--norm-kernel", setting.norm, *more]
    if not model.startswith("GPT-2 124M"):
        of_text, note = text_of(model, smoke, folder)
        return make_trainer(parse([*flags, *of_text])[0], folder), note
    return on_random_tokens(parse(flags)[0], TOY_VOCABULARY if smoke else GPT2_VOCABULARY, folder), "random tokens"


def on_random_tokens(config: Config, vocab_size: int, folder: Path) -> Trainer:
    """A trainer of a model with that many tokens, which need no text."""
    torch.manual_seed(config.run.seed)
    model = build_model(config, vocab_size)
    runtime.move_and_compile(model.train(), device(), config.machine.compile)
    loader = RandomTokens(config.optim.batch_size, config.net.context, vocab_size)

    def no_text() -> Iterator[Batch]:
        return iter(())

    characters = np.ones(vocab_size, np.int64)
    return Trainer(model, loader, no_text, characters, config, folder, device(), Metrics(folder))


def time_steps(trainer: Trainer, smoke: bool) -> Times:
    """The median over blocks of steps, after a warm-up."""
    trainer.model.train()
    warm_up, block, blocks = (1, 1, 1) if smoke else (WARM_UP, BLOCK, BLOCKS)
    rows = trainer.config.optim.batch_size * trainer.config.optim.micro_batches
    with trainer.feed:
        for _ in range(warm_up):
            trainer.step()
        synchronize()
        before, began, times = trainer.progress.tokens, time.perf_counter(), list[float]()
        while len(times) < blocks and (len(times) < 2 or time.perf_counter() - began < SECONDS):
            started = time.perf_counter()
            for _ in range(block):
                trainer.step()
            synchronize()
            times.append(1000 * (time.perf_counter() - started) / block)
    tokens = (trainer.progress.tokens - before) / (block * len(times))
    return Times(statistics.median(times), tokens, rows)


def flops_a_step(trainer: Trainer, times: Times) -> float:
    """Those of all its tokens, as engine/flops.py counts them."""
    return times.tokens * flops_per_token(trainer.plain, times.tokens / times.rows)


def measure(model: str, setting: Setting, smoke: bool, peak: float | None) -> Row:
    """The row of a model with a setting. `peak`: TFLOP/s of this machine at best."""
    said = io.StringIO()
    torch.compiler.reset()  # or the compiler would give up after some settings, and go on eagerly
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(said):
        trainer, note = trainer_of(model, setting, smoke, Path(folder))
        times = time_steps(trainer, smoke)
    print(said.getvalue(), end="", file=sys.stderr)
    flops = flops_a_step(trainer, times)
    size = f"{times.rows:.0f} rows of {times.tokens / times.rows:.0f} tokens"
    warnings = [line for line in said.getvalue().splitlines() if line.startswith("warning: ")]
    return Row(
        "training", f"{model}, a step", str(setting), setting.attention, times.ms, 1000 * times.tokens / times.ms,
        "tokens/s", flops / times.ms / 1e9 / peak if peak else None,
        outcome="failed" if REFUSED in said.getvalue() else "ok",
        note="; ".join([f"{note}, {size}, {flops / times.ms / 1e9:.3g} TFLOP/s", *warnings]),
    )  # fmt: skip


def main() -> int:
    parser = job_parser("training", __doc__)
    parser.add_argument("models", nargs="+", choices=MODELS, metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--compile", nargs="+", choices=("off", "on"), default=["off", "on"])
    args = parser.parse_args()
    backends = ("torch", "triton")
    settings = [Setting(*each) for each in itertools.product(args.compile, backends, backends)]
    measured = [*itertools.product(args.models, settings)]
    if args.smoke:  # of all but the first model the two ends will do
        measured = [each for each in measured if each[0] == MODELS[0] or each[1] in (settings[0], settings[-1])]
    peak = ceiling(read(args.rows), "TFLOP/s")
    for number in numbered([f"{model} {setting}" for model, setting in measured], args.skip):
        append(args.rows, measure(*measured[number], args.smoke, peak))
    return 0


if __name__ == "__main__":
    sys.exit(main())
