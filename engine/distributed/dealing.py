"""Which part of a step each process computes: whole micro-batches, else rows of each."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data.batches import Batch
from data.errors import UserError
from data.loaders import Deal
from engine.config.sections import Optim
from engine.distributed.ranks import Ranks, all_gather
from engine.runtime import Signals
from makemore.base import State
from makemore.layers import BatchNorm


class Share(NamedTuple):
    """A micro-batch that a process computes: its number in the step, and which part of its rows (0: the first, or
    all)."""

    micro_batch: int
    part: int
    deal: Deal


class Dealing:
    """How the steps of `optim` are divided among the processes. Where `--grad-accum` divides by their number, each gets
    whole micro-batches; else, and where one micro-batch needs to know the one before (`in_order`), its rows are
    divided.

    Raises UserError for sizes that do not divide."""

    def __init__(self, optim: Optim, in_order: bool, ranks: Ranks):
        self.ranks = ranks
        n, batch, accum = ranks.world, optim.batch_size, optim.micro_batches
        self.by_rows = n > 1 and (in_order or accum % n > 0)
        if self.by_rows and batch % n:
            fewer = max(m for m in range(1, n) if batch % m == 0 or (accum % m == 0 and not in_order))
            sizes = f"{batch // n * n} or {(batch // n + 1) * n}" if batch >= n else f"{n}"
            micro = "" if in_order else f", or --grad-accum {n * -(-accum // n)} (of whole batches)"
            raise UserError(
                f"{n} processes cannot divide a step of {accum} batch{'es' * (accum > 1)} of {batch} rows evenly; "
                f"what fits: {fewer} process{'es' * (fewer > 1)}, or in a new run --batch-size {sizes}{micro}"
            )

    def shares(self, deals: list[Deal]) -> list[Share]:
        """What this process computes of a step."""
        rank, world = self.ranks.rank, self.ranks.world
        if self.by_rows:
            return [Share(n, rank, deal.share(rank, world)) for n, deal in enumerate(deals)]
        return [Share(n, 0, deals[n]) for n in range(rank, len(deals), world)]

    def totals(self, shares: list[Share], sizes: list[tuple[float, int]], signals: Signals) -> tuple[float, int]:
        """What the summed loss of a step is divided by, and its number of tokens, over all processes, of which this one
        has batches of these `sizes`: one message, which also says what signals they have received."""
        counted = [size if share.deal.counts else (0, 0) for share, size in zip(shares, sizes, strict=True)]
        if self.ranks.world == 1:
            return sum(divisor for divisor, _ in counted), sum(n for _, n in counted)
        everyone = self.ranks.gather([signals.received or 0, *(number for pair in counted for number in pair)])
        signals.agree(everyone[:, 0])
        in_order = everyone[:, 1:].reshape(self.ranks.world, -1, 2).swapaxes(0, 1).reshape(-1, 2)
        return sum(in_order[:, 0].tolist()), int(in_order[:, 1].sum())

    def whole(self, state: State | None) -> State:
        """A carried state with the rows of all processes."""
        if not self.by_rows:
            return state or {}
        return {name: _joined(rows, self.ranks.world) for name, rows in sorted((state or {}).items())}

    def own(self, state: State) -> State:
        """The rows of a carried state that this process has."""
        if not self.by_rows:
            return state
        return {name: rows.tensor_split(self.ranks.world)[self.ranks.rank] for name, rows in state.items()}


def dealing_of(config: Any, model: nn.Module, ranks: Ranks) -> Dealing:
    """How the steps of training `model` are divided. Raises UserError for sizes that do not divide."""
    return Dealing(config.optim, getattr(config.net, "carry_state", False) or _has_statistics(model), ranks)


def in_rounds(batches: Iterable[Batch], ranks: Ranks) -> Iterator[Batch]:
    """The batches of evaluation of this process, every so manieth. Where the last ones are too few, a process without
    one repeats another's: all do the same number of steps."""
    group: list[Batch] = []
    for batch in batches:
        group.append(batch)
        if len(group) == ranks.world:
            yield group[ranks.rank]
            group = []
    if group:
        yield group[ranks.rank if ranks.rank < len(group) else 0]


class WholeBatch:
    """Sums over the rows of all processes, for what is computed of a whole batch. `counts`: whether the rows that this
    process has now count; else they add nothing."""

    def __init__(self) -> None:
        self.counts = True

    def __call__(self, x: Tensor) -> Tensor:
        return _AllReduce.apply(x, self.counts)


def share_sums(model: nn.Module) -> WholeBatch:
    """Have what `model` sums up over a batch, as statistics of batch norms, be summed over the rows of all
    processes."""
    whole = WholeBatch()
    for module in model.modules():
        if hasattr(module, "total"):
            module.total = whole  # type: ignore[assignment]  # no tensor, no module
    return whole


def _has_statistics(model: nn.Module) -> bool:
    """Whether the model takes statistics of whole batches."""
    return any(isinstance(module, BatchNorm) for module in model.modules())


def _joined(rows: Tensor, world: int) -> Tensor:
    everyone = rows.new_empty(len(rows) * world, *rows.shape[1:])
    all_gather(everyone, rows.contiguous())
    return everyone


class _AllReduce(torch.autograd.Function):
    """The sum of a tensor over all processes where it counts; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: bool) -> Tensor:
        ctx.counts = counts
        x = x.clone() if counts else torch.zeros_like(x)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient if ctx.counts else torch.zeros_like(gradient), None
