"""nanoGPT's CPU README run and ours at the same settings: milliseconds a step, and validation loss after 2,000 steps.

    CHARLM_DATA=DIR python -m bench.nanogpt_cpu [--nanogpt CHECKOUT] [--steps 2000]

4 layers, 4 heads, 128 wide, context 64, batch 12, no dropout; ours is `--preset nanogpt-cpu`. For the time, nanoGPT's
own model and optimizer (from its model.py) and ours take turns of ten steps in one process, so that both meet the same
machine; fetching batches is left out on both sides. Our loss is over the whole validation split in windows of 64.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import peers
from engine.config.flags import parse
from engine.registry import build_model
from engine.training.optimizers import make_optimizers

FLAGS = ["--preset", "nanogpt-cpu", "--data", "shakespeare"]
BATCH, CONTEXT, STEPS_A_TURN = 12, 64, 10


def nanogpt_model(checkout: Path, n_layer: int = 4, n_head: int = 4, n_embd: int = 128, context: int = CONTEXT) -> Any:
    """nanoGPT's model, by default at its CPU README's sizes."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", checkout / "model.py")
    assert spec and spec.loader  # `peers.checkout` has found the file
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    config = theirs.GPTConfig(
        block_size=context, vocab_size=65, n_layer=n_layer, n_head=n_head, n_embd=n_embd, dropout=0.0, bias=False
    )
    return theirs.GPT(config)


def nanogpt_step(checkout: Path) -> Callable[[], None]:
    """One training step as in nanoGPT's loop."""
    model = nanogpt_model(checkout)
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    x, y = torch.randint(65, (2, BATCH, CONTEXT))

    def step() -> None:
        _, loss = model(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def our_step() -> Callable[[], None]:
    """One training step as in engine/training/trainer.py at the same sizes."""
    config, _ = parse(FLAGS)
    model = build_model(config, 71)
    optimizers = make_optimizers(model, config.optim)
    parameters = list(model.parameters())
    x, y = torch.randint(6, 71, (2, BATCH, CONTEXT))

    def step() -> None:
        (model(x, y, want_logits=False).nll_sum / y.numel()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.optim.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def turn(step: Callable[[], None]) -> float:
    """Milliseconds a step, over STEPS_A_TURN steps."""
    started = time.perf_counter()
    for _ in range(STEPS_A_TURN):
        step()
    return 1000 * (time.perf_counter() - started) / STEPS_A_TURN


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.nanogpt_cpu", description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=peers.checkout("model.py"), help="a checkout of nanoGPT to run beside")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2000, help="of our full run; 0 leaves it out")
    args = parser.parse_args()
    if args.nanogpt:
        theirs, ours = nanogpt_step(args.nanogpt), our_step()
        pairs = [(turn(theirs), turn(ours)) for _ in range(args.turns + 1)][1:]  # the first warms up
        a, b = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"ms a step, medians of {args.turns} turns: nanoGPT {a:.1f}, ours {b:.1f}; {ratio:.2f}x", flush=True)
    if args.steps:
        summary = peers.ours(*FLAGS, "--steps", str(args.steps))
        print(f"ours after {args.steps} steps: {summary['val_loss']:.4f} in {summary['seconds']:.0f} s of training")


if __name__ == "__main__":
    main()
