"""The gradients of all processes, added in the order of the micro-batches: the same bits for any number of processes.

A process that adds up the gradients of micro-batches 0, 1, 2, ... one after another gets ((g0 + g1) + g2) + ... Here
process r computes those of micro-batches r, r + N, ... After each of its own, every process gets the N parts of its
share of all numbers and adds them to its sum in the order of the processes: the same sums, in the same order. After the
last one everybody gets all the sums. A ring's all-reduce sends as many bytes, but adds in an order of its own, and
with it the last bits would follow from the number of processes (docs/log.md).

Where the rows of micro-batches are divided no such order is kept: each process adds up its own gradients, and sends
once a step.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from engine.distributed.ranks import Ranks, all_gather

BUCKET = 1 << 22  # bytes of gradients that are sent together, while the rest of the backward pass runs


class GradientSum:
    """Sums the gradients of `parameters` over the processes, in buckets that leave as soon as they are complete.

    Call `round` after each backward pass, and `finish` after the last one of a step: then every `grad` is the sum. A
    parameter without a gradient anywhere keeps None. While `waits` is set, a backward pass and its round send nothing:
    their gradients leave with those of the next ones."""

    def __init__(self, parameters: Iterable[Tensor], sparse: Iterable[Tensor], ranks: Ranks):
        self.ranks, self.waits = ranks, False
        self.buckets = [_Bucket(group, ranks.world) for group in _grouped(list(parameters))]
        self.sparse = [_SparseSum(parameter, ranks) for parameter in sparse]
        self._bucket_of = {id(p): bucket for bucket in self.buckets for p in bucket.parameters}
        self._next = 0  # the first bucket that has not left yet: all processes send them in the same order
        for bucket in self.buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(self._take)

    def _take(self, parameter: Tensor) -> None:
        """A gradient is there: put it into its bucket, and send what is complete."""
        if self.waits:
            return
        self._bucket_of[id(parameter)].put(parameter)
        while self._next < len(self.buckets) and not self.buckets[self._next].missing:
            self._send_next()

    def _send_next(self) -> None:
        self.buckets[self._next].send()
        self._next += 1

    def round(self) -> None:
        """Add the gradients of one backward pass of every process, and those that have waited for it."""
        if self.waits:
            return
        while self._next < len(self.buckets):
            self._send_next()
        self._next = 0
        for bucket in self.buckets:
            bucket.add()
        for table in self.sparse:
            table.add()

    def finish(self) -> None:
        """Give every parameter the sum of all rounds as its gradient."""
        for bucket in self.buckets:
            bucket.share()
        for bucket in self.buckets:
            bucket.give()
        for table in self.sparse:
            table.give()


class _Bucket:
    """Some parameters of one dtype and device, and flat room for their gradients; at its end a number for each that
    says in how many processes it has one."""

    def __init__(self, parameters: list[Tensor], world: int):
        self.parameters = parameters
        self.size = sum(p.numel() for p in parameters)
        share = -(-(self.size + len(parameters)) // world)
        self.flat = parameters[0].new_zeros(share * world)
        self.parts = self.flat.new_empty(world, share)
        self.sum: Tensor | None = None
        pieces = self.flat[: self.size].split([p.numel() for p in parameters])
        self.views = {id(p): piece.view_as(p) for p, piece in zip(parameters, pieces, strict=True)}
        self.missing, self.never_missing = set(self.views), set(self.views)
        self.work: Any = None

    def put(self, parameter: Tensor) -> None:
        assert parameter.grad is not None  # the hook runs after it was set
        self.views[id(parameter)].copy_(parameter.grad)
        parameter.grad = None
        self.missing.discard(id(parameter))

    def send(self) -> None:
        """Send each process its share of the gradients here."""
        for parameter in self.parameters:
            if parameter.grad is not None:  # of an earlier pass alone
                self.put(parameter)
        self.flat[self.size :].fill_(1)
        for n, parameter in enumerate(self.parameters if self.missing else (), self.size):
            if id(parameter) in self.missing:
                self.views[id(parameter)].zero_()
                self.flat[n] = 0
        self.never_missing -= self.missing
        self.missing = set(self.views)
        self.work = dist.all_to_all_single(self.parts.view(-1), self.flat, async_op=True)

    def add(self) -> None:
        """Add what has come, in the order of the processes."""
        self.work.wait()
        first, *others = self.parts
        self.sum = first.clone() if self.sum is None else self.sum.add_(first)
        for part in others:
            self.sum += part

    def share(self) -> None:
        """Send every process this one's share of the sums."""
        self.work = all_gather(self.flat, self.sum, async_op=True)

    def give(self) -> None:
        """Make the sums the gradients. Only for what had none here is it asked whether another process had one, which
        on a GPU is waited for."""
        self.work.wait()
        self.sum = None
        for n, parameter in enumerate(self.parameters, self.size):
            view = self.views[id(parameter)]
            parameter.grad = view if id(parameter) in self.never_missing or self.flat[n] > 0 else None
        self.never_missing = set(self.views)


class _SparseSum:
    """The sum of the sparse gradients of one table, of which all processes send their rows to all. (NCCL adds no sparse
    tensors.)"""

    def __init__(self, parameter: Tensor, ranks: Ranks):
        self.parameter, self.ranks = parameter, ranks
        self.sum: Tensor | None = None

    def add(self) -> None:
        grad, p = self.parameter.grad, self.parameter
        self.parameter.grad = None
        indices = p.new_empty(0, dtype=torch.int64) if grad is None else grad._indices()[0]  # (N,)
        values = p.new_empty(0, *p.shape[1:]) if grad is None else grad._values()  # (N, C)
        sizes = [int(n) for n in self.ranks.gather([len(indices)])[:, 0]]
        for index, rows in zip(_gather_rows(indices, sizes), _gather_rows(values, sizes), strict=True):
            if len(index):
                gradient = torch.sparse_coo_tensor(index[None], rows, p.shape)
                self.sum = gradient if self.sum is None else self.sum.add_(gradient)  # as autograd does

    def give(self) -> None:
        self.parameter.grad, self.sum = self.sum, None


def _gather_rows(rows: Tensor, sizes: list[int]) -> list[Tensor]:
    """The rows (N, ...) of every process, which has `sizes` of them."""
    if not (most := max(sizes)):
        return []
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[: len(rows)] = rows
    everyone = padded.new_empty(len(sizes) * most, *rows.shape[1:])
    all_gather(everyone, padded)
    return [part[:size] for part, size in zip(everyone.split(most), sizes, strict=True)]


def _grouped(parameters: list[Tensor]) -> Iterable[list[Tensor]]:
    """The parameters in buckets of one dtype and device, the last ones first: their gradients are there first."""
    group: list[Tensor] = []
    for p in reversed(parameters):
        kind = (p.dtype, p.device)
        if group and (kind != (group[0].dtype, group[0].device) or sum(q.nbytes for q in group) + p.nbytes > BUCKET):
            yield group
            group = []
        group.append(p)
    if group:
        yield group
