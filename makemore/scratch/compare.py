"""A model in NumPy beside torch's, from the same weights on the same batches: `python -m makemore.scratch.compare`.

Prints for every parameter how near the two gradients are, and then how near the losses of a training stay, and the
weights; at last how near torch's own losses stay in float32 where the rows of each batch are reversed, which is how
much rounding alone can do. Takes the flags of `makemore.scratch.train`.
"""

import sys
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import nn

from data.batches import Batch
from data.errors import run_command
from data.loaders import Loader
from engine.config.flags import parse
from engine.registry import build_model
from engine.texts import make_loader, prepare_text, with_context
from engine.training.optimizers import make_optimizers
from engine.training.schedules import lr_factor
from makemore.scratch import optimizers
from makemore.scratch.base import Model
from makemore.scratch.functions import Array
from makemore.scratch.layers import Gradients
from makemore.scratch.options import NumPyConfig
from makemore.scratch.train import build
from makemore.scratch.training import make_optimizer, step_gradients

CPU = torch.device("cpu")
MOST_STEPS = 100


class Pair(NamedTuple):
    """The two models, with equal weights, and the loader that deals the batches of both."""

    ours: Model
    theirs: nn.Module
    loader: Loader
    config: NumPyConfig

    def batches(self) -> list[Batch[Array]]:
        """The batches of the next step."""
        return [self.loader.next() for _ in range(self.config.optim.micro_batches)]


def make_pair(config: NumPyConfig, dtype: Any) -> Pair:
    """Both models of `config` in `dtype`, the weights those that torch's draws."""
    store = prepare_text(config, None)
    config = cast(NumPyConfig, with_context(config, store))
    torch.manual_seed(config.run.seed)
    theirs = build_model(config, store.tokenizer.vocab_size, store.tokenizer.special)
    theirs = theirs.to(torch.float64 if dtype == np.float64 else torch.float32).train()
    ours = build(config, store, dtype)
    ours.load_state_dict({name: tensor.numpy() for name, tensor in theirs.state_dict().items()})
    return Pair(ours, theirs, make_loader(config, store), config)


def torch_gradients(model: nn.Module, batches: list[Batch[Array]]) -> tuple[float, Gradients]:
    """What `step_gradients` gives, of torch's model."""
    model.zero_grad()
    divisor, total = sum(batch.n_tokens for batch in batches) or 1, 0.0
    for batch in batches:
        there = batch.to(CPU)
        nll_sum = model(there.tokens, there.targets, want_logits=False).nll_sum
        (nll_sum / divisor).backward()
        total += nll_sum.item()
    return total / divisor, {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}


def losses(pair: Pair, steps: int) -> tuple[list[float], list[float]]:
    """The training losses of both over `steps` steps, NumPy's first."""
    optim = pair.config.optim
    our_optimizer, their_optimizers = make_optimizer(pair.config), make_optimizers(cast(Any, pair.theirs), optim)
    ours, theirs = [], []
    for step in range(steps):
        factor = lr_factor(optim.schedule, step, optim.steps, optim.warmup, optim.lr_floor)
        batches = pair.batches()
        loss, gradients = step_gradients(pair.ours, batches)
        ours.append(loss)
        theirs.append(torch_step(pair, their_optimizers, batches, factor))
        if optim.grad_clip:
            optimizers.clip(gradients, optim.grad_clip)
        our_optimizer.lr = optim.lr * factor
        our_optimizer.step(pair.ours.parameters, gradients)
    return ours, theirs


def torch_step(
    pair: Pair, their_optimizers: list[torch.optim.Optimizer], batches: list[Batch[Array]], factor: float
) -> float:
    """A step of torch's model, its learning rates times `factor`. Returns the loss before it."""
    loss, _ = torch_gradients(pair.theirs, batches)
    if pair.config.optim.grad_clip:
        torch.nn.utils.clip_grad_norm_(pair.theirs.parameters(), pair.config.optim.grad_clip)
    for optimizer in their_optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        optimizer.step()
    return loss


def losses_reversed(pair: Pair, steps: int) -> list[float]:
    """The training losses of torch where the rows of each batch come the other way round: the same sums in another
    order."""
    optim = pair.config.optim
    their_optimizers, found = make_optimizers(cast(Any, pair.theirs), optim), []
    for step in range(steps):
        batches = [
            batch._replace(tokens=np.flip(batch.tokens, 0).copy(), targets=np.flip(batch.targets, 0).copy())
            for batch in pair.batches()
        ]
        factor = lr_factor(optim.schedule, step, optim.steps, optim.warmup, optim.lr_floor)
        found.append(torch_step(pair, their_optimizers, batches, factor))
    return found


def table(pair: Pair) -> str:
    """A line for each parameter: whether the gradients are the same numbers, whether they are close, and the largest
    difference."""
    batches = pair.batches()
    _, ours = step_gradients(pair.ours, batches)
    _, theirs = torch_gradients(pair.theirs, batches)
    wide = max(map(len, ours))
    found = [f"{'gradient by':<{wide}}  exact  close  largest difference"]
    for name, gradient in ours.items():
        exact = np.array_equal(gradient, theirs[name])
        close = np.allclose(gradient, theirs[name], rtol=1e-9, atol=1e-12)
        difference = np.abs(gradient - theirs[name]).max()
        found.append(f"{name:<{wide}}  {exact!s:<5}  {close!s:<5}  {difference:.1e}")
    return "\n".join(found)


def largest_difference(some: list[float], others: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(some, others, strict=True))


def furthest(pair: Pair) -> tuple[str, float]:
    """The parameter that differs most between the two models, and by how much."""
    theirs = {name: p.detach().numpy() for name, p in pair.theirs.named_parameters()}
    apart = {name: float(np.abs(ours - theirs[name]).max()) for name, ours in pair.ours.parameters.items()}
    return max(apart.items(), key=lambda item: item[1])


def main() -> int:
    config, _ = parse(sys.argv[1:], NumPyConfig, prog=f"python -m {__package__}.compare")
    print(table(make_pair(config, np.float64)))
    steps = min(MOST_STEPS, config.optim.steps or MOST_STEPS)
    for dtype in (np.float64, np.float32):
        pair = make_pair(config, dtype)
        ours, theirs = losses(pair, steps)
        apart, (name, weights_apart) = largest_difference(ours, theirs), furthest(pair)
        print(f"{steps} losses in {np.dtype(dtype)}: from {ours[0]:.4f} to {ours[-1]:.4f}, at most {apart:.1e} apart")
        print(f"  weights: at most {weights_apart:.1e} apart, in {name}")
    apart = largest_difference(theirs, losses_reversed(make_pair(config, np.float32), steps))
    print(f"torch beside itself in float32, the rows of each batch reversed: at most {apart:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
