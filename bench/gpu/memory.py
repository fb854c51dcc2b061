"""Memory and MFU of training steps with activations kept and computed again, and what --grad-accum auto finds.

python -m bench.gpu.memory. Steps are those of bench/gpu/training.py, on random tokens, with every `auto` as it is.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from bench.gpu.jobs import job_parser, numbered
from bench.gpu.machine import device, synchronize
from bench.gpu.plan import MODELS
from bench.gpu.rows import Row, append
from bench.gpu.training import FLAGS, GPT2_VOCABULARY, TOY, TOY_VOCABULARY, RandomTokens, on_random_tokens
from data.batches import Batch
from engine import fitting, memory, runtime, trial
from engine.config.flags import parse
from engine.config.sections import Config
from engine.distributed.ranks import ALONE
from engine.flops import peak_flops, utilization
from engine.registry import build_model
from engine.task import Batches
from engine.training.progress import Progress

WAYS = {"kept": [], "--activation-checkpointing": ["--activation-checkpointing"]}
WARM_UP, STEPS = 10, 20
LARGE = 1024  # rows, of which no GPU holds a step of GPT-2 at once


def configuration(model: str, smoke: bool, *flags: str) -> tuple[Config, int]:
    """Of a model, with the number of its tokens."""
    words = [*FLAGS[model], *(TOY if smoke else []), "--steps", "1000000", *flags]
    is_small = smoke or model != "GPT-2 124M"
    return parse(words)[0], TOY_VOCABULARY if is_small else GPT2_VOCABULARY


def batches_of(config: Config, vocab_size: int) -> Batches:
    """Random tokens in batches of this configuration."""
    context = config.net.context
    assert context is not None  # these models have one

    def no_text():
        return iter(tuple[Batch, ...]())

    characters = torch.ones(vocab_size, dtype=torch.int64).numpy()
    return Batches(RandomTokens(config.optim.batch_size, context, vocab_size), no_text, characters)


def measure(model: str, way: str, smoke: bool, folder: Path) -> Row:
    """The row of steps: milliseconds, the most memory that they held in MB, and their MFU."""
    torch.compiler.reset()
    config, vocab_size = configuration(model, smoke, *WAYS[way])
    trainer = on_random_tokens(config, vocab_size, folder)
    trainer.model.train()
    for _ in range(1 if smoke else WARM_UP):
        trainer.step()
    synchronize()
    on_gpu = trainer.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    times, tokens = [], trainer.progress.tokens
    for _ in range(2 if smoke else STEPS):
        started = time.perf_counter()
        trainer.step()
        synchronize()
        times.append(time.perf_counter() - started)
    done = Progress(step=len(times), tokens=trainer.progress.tokens - tokens, seconds=sum(times))
    peak = torch.cuda.max_memory_allocated() / 1e6 if on_gpu else 0.0
    share = utilization(trainer.plain, done, config, trainer.device)
    rows = config.optim.batch_size
    estimate = trial.estimate(trainer.plain, batches_of(config, vocab_size), config, trainer.device, rows)
    note = f"{rows} rows of {config.net.context} tokens; estimated {memory.in_units(estimate.total)}: {estimate}"
    return Row("memory", model, way, "ours", 1000 * statistics.median(times), peak, "MB", share, note=note)


def find(model: str, smoke: bool) -> Row:
    """The row of --grad-accum auto: the seconds that it takes, and the rows at once that it finds."""
    rows = 4 if smoke else LARGE
    config, vocab_size = configuration(model, smoke, "--batch-size", str(rows), "--grad-accum", "auto")
    built = build_model(config, vocab_size)
    started = time.perf_counter()
    found, _ = fitting.settle(
        config, device(), built, batches_of(config, vocab_size), ALONE, lambda cut: batches_of(cut, vocab_size)
    )
    seconds = time.perf_counter() - started
    at_once = found.optim.batch_size
    note = f"a step of {rows:,} rows: {found.optim.micro_batches} batches of {at_once}; found in {seconds:.1f} s"
    return Row("memory", model, "--grad-accum auto", "ours", 1000 * seconds, at_once, "rows", note=note)


def main() -> int:
    args = job_parser("memory", __doc__).parse_args()
    models = MODELS[1:]
    cases = [(model, way) for model in models for way in WAYS]
    names = ["the device's best", *(f"{model} {way}" for model, way in cases), "--grad-accum auto"]
    for number in numbered(names, args.skip):
        if number == 0:
            dtype = runtime.choose_dtype("auto", device())[0]
            best = peak_flops(device(), dtype) / 1e12
            append(args.rows, Row("memory", "engine/flops.py", f"a product in {dtype}", value=best, unit="TFLOP/s"))
        elif number <= len(cases):
            with tempfile.TemporaryDirectory() as folder:
                append(args.rows, measure(*cases[number - 1], args.smoke, Path(folder)))
        else:
            append(args.rows, find(models[-1], args.smoke))
    return 0


if __name__ == "__main__":
    sys.exit(main())
