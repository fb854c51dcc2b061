"""Where the time of a training step goes: its parts, and the operations that take most of it.

    python -m bench.step [train.py's flags] --steps 100

The parts are those of engine/training/trainer.py, each timed to its end (on a GPU that takes away the overlap of a
real step).
"""

import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from data.batches import eval_batches
from data.errors import UserError, run_command
from engine import runtime, threads
from engine.config.flags import parse
from engine.config.sections import Config
from engine.registry import build_model, is_counted, refuse_foreign_flags
from engine.session import count_to_mix
from engine.texts import make_loader, prepare_text, with_context
from engine.training.budget import Budget
from engine.training.metrics import Metrics
from engine.training.trainer import Trainer

WARM_UP, OPERATIONS = 10, 12
NOT_HERE = {"init", "resume", "eval_only", "out", "overwrite", "checkpoint", "log"}


def make_trainer(config: Config, folder: Path) -> Trainer:
    """What train.py would train with, on a model not trained yet."""
    store = prepare_text(config, None)
    config = with_context(config, store)
    torch.manual_seed(config.seed)
    device, _ = runtime.choose_device(config.device)
    threads.use(config.threads)
    model = build_model(config, store.tokenizer.vocab_size, store.tokenizer.special)
    count_to_mix(model, store)
    runtime.move_and_compile(model.train(), device, config.compile)
    batches = eval_batches(store.val, config.context, config.eval_tokens, model.history)
    loader, metrics = make_loader(config, store), Metrics(folder)
    return Trainer(model, loader, batches, store.tokenizer.characters(), config, folder, device, metrics)


def take_step(trainer: Trainer, timed: Callable[[str, Callable], Any]) -> None:
    """One step of the loop, each part through `timed(name, part)`, which returns what the part does."""
    lr = trainer._set_lr()
    batches = timed("batches", lambda: [trainer.loader.next() for _ in range(trainer.config.grad_accum)])
    n_tokens = sum(batch.n_tokens for batch in batches)
    nll_sum = timed("forward and backward", lambda: trainer._backward(batches, n_tokens))
    norm = timed("clipping", trainer._clip)
    timed("reading the loss", lambda: trainer._note_loss(lr, nll_sum, norm, n_tokens))
    for optimizer in trainer.optimizers:
        timed(type(optimizer).__name__, optimizer.step)
        optimizer.zero_grad(set_to_none=True)
    trainer.progress.step += 1


def check(config: Config, given: set[str]) -> None:
    """Raise UserError for what has no step, or starts from something else."""
    refuse_foreign_flags(config, given)
    if is_counted(config):
        raise UserError("a model that counts takes no steps")
    if useless := sorted(given & NOT_HERE):
        raise UserError(f"--{useless[0].replace('_', '-')} means nothing here: a step from nothing is timed, not kept")


def main() -> int:
    config, given = parse(sys.argv[1:], prog="python -m bench.step")
    check(config, given)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(config, Path(folder))
    trainer.bar, trainer.budget = tqdm(disable=True), Budget(config, trainer.progress)
    gpu = getattr(torch, trainer.device.type) if trainer.device.type in ("cuda", "mps") else None
    taken: dict[str, float] = defaultdict(float)

    def timed(name: str, part: Callable) -> Any:
        started = time.perf_counter()
        result = part()
        if gpu:
            gpu.synchronize()
        taken[name] += time.perf_counter() - started
        return result

    for _ in range(WARM_UP):
        take_step(trainer, timed)
    taken.clear()
    started = time.perf_counter()
    for _ in range(config.steps):
        take_step(trainer, timed)
    whole = time.perf_counter() - started
    taken["the rest"] = whole - sum(taken.values())
    print(f"{1000 * whole / config.steps:.2f} ms a step: ", end="")
    print(", ".join(f"{name} {1000 * s / config.steps:.2f} ({s / whole:.0%})" for name, s in taken.items()))
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (trainer.device.type == "cuda")
    with profile(activities=activities) as found:
        for _ in range(WARM_UP):
            take_step(trainer, lambda name, part: part())
    order = "self_cuda_time_total" if trainer.device.type == "cuda" else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=order, row_limit=OPERATIONS, max_name_column_width=40))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
