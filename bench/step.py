"""The time of a training step by its parts, and the operations that take most of it.

    python -m bench.step [train.py's flags] --steps 100

The parts are those of engine/training/trainer.py, each timed to its end (so that on a GPU they do not overlap, as they
do in a real step).
"""

import dataclasses
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from data.errors import UserError, flag, run_command
from engine import runtime, threads
from engine.config.flags import parse
from engine.config.sections import Config
from engine.distributed.ranks import ALONE, Ranks, device_for
from engine.distributed.sharding import Sharded
from engine.flops import peak_flops, utilization
from engine.pretraining import Pretraining
from engine.training.metrics import Metrics
from engine.training.profiling import profiler_of, table
from engine.training.progress import Progress
from engine.training.trainer import Trainer

WARM_UP = 10
NOT_HERE = {"init", "resume", "eval_only", "out", "overwrite", "checkpoint", "log", "profile", "cuda_graph"}


def make_trainer(config: Config, folder: Path, ranks: Ranks = ALONE) -> Trainer:
    """The trainer that train.py would make, with an untrained model; `ranks`, the processes that train it together."""
    task = Pretraining()
    task.ranks = ranks
    device, _ = runtime.choose_device(device_for(config.machine.device))
    threads.use(config.machine.threads)
    config, store = task.read(config, set(), None)
    torch.manual_seed(config.run.seed)
    model = task.build(config, store)
    batches = task.batches(config, store, model)
    model = task.trained(config, store, model, None)
    sharded = Sharded(model, ranks, device) if config.machine.shard else None
    trained = sharded.model if sharded else model
    runtime.move_and_compile(trained.train(), device, config.machine.compile)
    assert batches.train is not None  # of a model that trains
    return Trainer(
        model, batches.train, batches.val, batches.characters, config, folder, device, Metrics(folder), ranks=ranks,
        sharded=sharded,
    )  # fmt: skip


def take_step(trainer: Trainer, timed: Callable[[str, Callable], Any]) -> None:
    """Take one step of the loop, with each part called through `timed(name, part)`, which returns its result."""
    lr = trainer.set_lr()
    batches = timed("batches", trainer.feed.next).batches
    n_tokens = sum(batch.n_tokens for batch in batches)
    parts = timed("forward and backward", lambda: [trainer.backward(batch, n_tokens) for batch in batches])
    norm = timed("clipping", trainer.clip)
    timed("reading the loss", lambda: trainer.losses.note(trainer.progress.step, lr, parts, norm, n_tokens))
    trainer.losses.read()
    for optimizer in trainer.optimizers:
        timed(type(optimizer).__name__, optimizer.step)
        optimizer.zero_grad(set_to_none=True)
    trainer.progress.step += 1
    trainer.progress.tokens += n_tokens


def speed(trainer: Trainer, before: Progress, seconds: float) -> str:
    """Tokens/s of the steps since `before`, which took so long, and their share of what this device does at most."""
    steps, tokens = trainer.progress.step - before.step, trainer.progress.tokens - before.tokens
    done = Progress(step=steps, tokens=tokens, seconds=seconds)
    share = utilization(trainer.plain, done, trainer.config, trainer.device, trainer.ranks.world)
    dtype = runtime.choose_dtype(trainer.config.machine.dtype, trainer.device)[0]
    peak = peak_flops(trainer.device, dtype)
    return (
        f"{tokens / seconds:,.0f} tokens/s, MFU {share:.1%} of the {peak / 1e12:,.3g} TFLOP/s of a matrix product here"
    )


def check(config: Config, explicit: set[str]) -> None:
    """Raise UserError for a model without training steps, and for flags about a run."""
    if config.net.is_counted:
        raise UserError("a model that counts takes no steps")
    if config.optim.grad_accum == "auto":
        raise UserError("--grad-accum auto is found by a run; give a number here")
    if useless := sorted(explicit & NOT_HERE):
        raise UserError(f"{flag(useless[0])} means nothing here: a step from nothing is timed, not kept")


def main() -> int:
    config, explicit = parse(sys.argv[1:], prog="python -m bench.step")
    check(config, explicit)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(config, Path(folder))
    gpu = getattr(torch, trainer.device.type) if trainer.device.type in ("cuda", "mps") else None
    seconds: dict[str, float] = defaultdict(float)

    def timed(name: str, part: Callable) -> Any:
        started = time.perf_counter()
        result = part()
        if gpu:
            gpu.synchronize()
        seconds[name] += time.perf_counter() - started
        return result

    for _ in range(WARM_UP):
        take_step(trainer, timed)
    seconds.clear()
    before = dataclasses.replace(trainer.progress)
    started = time.perf_counter()
    for _ in range(config.optim.steps):
        take_step(trainer, timed)
    total = time.perf_counter() - started
    seconds["the rest"] = total - sum(seconds.values())
    print(f"{1000 * total / config.optim.steps:.2f} ms a step: ", end="")
    print(", ".join(f"{name} {1000 * s / config.optim.steps:.2f} ({s / total:.0%})" for name, s in seconds.items()))
    print(speed(trainer, before, total))
    with profiler_of(trainer.device) as profiler:
        for _ in range(WARM_UP):
            take_step(trainer, lambda name, part: part())
    print(table(profiler, trainer.device))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
