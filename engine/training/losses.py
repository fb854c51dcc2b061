"""The training losses of the last steps, read a few steps later where reading one has to wait."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from data.errors import UserError
from engine.config.sections import Optim
from engine.distributed.ranks import Ranks
from engine.distributed.sharding import whole
from engine.run import checkpoint

READ_EVERY = 20  # steps, where reading waits for a GPU or for the other processes


class Loss(NamedTuple):
    """The summed loss of a step in nats, and what it is to be divided by; not finite where the loss, or the norm of the
    gradient, is not."""

    step: int
    lr: float
    nll_sum: float
    divisor: float


class Losses:
    """The losses of steps that were not read yet."""

    def __init__(self, ranks: Ranks, device: torch.device):
        self.ranks = ranks
        self.reads_every = 1 if device.type == "cpu" and ranks.world == 1 else READ_EVERY
        self._unread: list[tuple[int, float, Tensor, float]] = []

    def note(self, step: int, lr: float, parts: list[Tensor], norm: Tensor | None, divisor: float) -> None:
        """Remember a step. `parts`: what this process computed of its summed loss, a scalar for each micro-batch.
        `norm`: that of the gradient. An infinite gradient ruins the weights even where the loss is finite: it counts as
        a loss that is not."""
        losses = sum(parts[1:], parts[0]) if self.ranks.world == 1 else torch.stack(parts)
        checked = losses if norm is None else torch.where(torch.isfinite(norm), losses, norm.to(losses.dtype))
        self._unread.append((step, lr, checked, divisor))

    @property
    def is_due(self) -> bool:
        """Whether it is time to read."""
        return len(self._unread) >= self.reads_every

    def read(self) -> list[Loss]:
        """All that was noted since the last call, over all processes; each calls it at the same step."""
        unread, self._unread = self._unread, []
        if not unread:
            return []
        losses = [loss for *_, loss, _ in unread]
        sums = [float(loss) for loss in losses] if self.ranks.world == 1 else self._of_all(losses)
        return [Loss(step, lr, nll_sum, divisor) for (step, lr, _, divisor), nll_sum in zip(unread, sums, strict=True)]

    def _of_all(self, losses: list[Tensor]) -> list[float]:
        """The sum of each step over all processes, with the bits of one process: in the order of the micro-batches, in
        the dtype of the loss."""
        mine = torch.cat(losses).cpu()
        everyone = self.ranks.gather(mine.tolist()).astype(mine.numpy().dtype)
        by_step = everyone.reshape(self.ranks.world, len(losses), -1).transpose(1, 2, 0).reshape(len(losses), -1)
        return np.add.accumulate(by_step, axis=1)[:, -1].tolist()


def diverged(quantity: str, step: int, lr: float, optim: Optim, run: Path) -> UserError:
    """The error for a `quantity` that is not finite, at this step and learning rate of the training `optim` of `run`:
    what to lower, and what is saved."""
    last = checkpoint.find(run / "last")
    saved = f"; {last} keeps the last good checkpoint" if last else ""
    muon = " and --muon-lr" if optim.optimizer == "muon" else ""
    clip = "" if optim.grad_clip else ", --grad-clip 1"
    return UserError(
        f"the {quantity} is not finite at step {step} (learning rate {lr:.2g}): try a lower --lr{muon} "
        f"(a third), a longer --warmup{clip} or --dtype float32{saved}"
    )


def all_finite(model: nn.Module) -> bool:
    """Whether every trained weight of `model` is finite, by their sums: one wait for a GPU. Every process asks."""
    sums = [whole(p.detach().sum()) for p in model.parameters() if p.requires_grad]
    return not sums or bool(torch.isfinite(torch.stack(sums)).all())
