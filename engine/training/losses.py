"""The training losses of the last steps, read a few steps later where reading one has to wait."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.distributed.ranks import Ranks

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
