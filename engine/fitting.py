"""Whether a training fits into memory, found out before its first step, and `--grad-accum auto`.

What a step needs at least is estimated everywhere. On a GPU the largest batch is then tried, see trial.py.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from data.errors import UserError
from data.terminal import show
from engine import memory, runtime, trial
from engine.config.settings import replace
from engine.distributed.dealing import dealing_of
from engine.distributed.ranks import Ranks
from engine.task import Batches

HEADROOM = 1.5  # of a CPU, over what activations take: 1.4 was measured, with their gradients and what is not reused
Deal = Callable[[Any], Batches]  # the batches of a configuration


def settle(
    config: Any, device: torch.device, model: Any, batches: Batches, ranks: Ranks, deal: Deal
) -> tuple[Any, Batches]:
    """`config` with the number that `--grad-accum auto` becomes, and its batches. Raises UserError where a step does
    not fit into memory.

    With auto the rows of a step are those of `--batch-size`, in the fewest equal batches that fit: as many rows as
    without accumulation, and for a text the same ones."""
    if batches.train is None:
        return config, batches
    if config.optim.grad_accum != "auto":
        dealing_of(config, model, ranks)
    check(config, device, model, batches, ranks)
    if config.optim.grad_accum != "auto":
        if device.type == "cuda" and not _is_sharded(config, ranks):
            _try_or_refuse(config, device, model, batches, ranks)
        return config, batches
    if memory.free(device) is None:
        raise UserError(f"--grad-accum auto: nobody says how much memory {device} has; give a number")
    tried = None
    for candidate, rows in candidates(config, model, ranks):
        tried = candidate
        batches = deal(candidate)
        if _fits(candidate, device, model, batches, rows, ranks):
            optim = candidate.optim
            if optim.micro_batches > 1:
                cut = f"{optim.micro_batches:,} batches of {optim.batch_size:,}"
                show(f"a step of {config.optim.batch_size:,} rows: {cut}, as many as fit into the memory of {device}")
            return candidate, batches
    raise memory.not_enough(tried or config, model, device)


def resumed(config: Any, stored: dict[str, Any]) -> Any:
    """`config` of a run that goes on, where auto is what the run has found."""
    if config.optim.grad_accum != "auto":
        return config
    return replace(config, batch_size=stored["batch_size"], grad_accum=stored["grad_accum"])


def candidates(config: Any, model: nn.Module, ranks: Ranks) -> Iterator[tuple[Any, int]]:
    """The ways to cut a step of `--batch-size` rows into equal batches, the fewest first, each with the rows that a
    process computes at once; a way with no fewer rows at once than the one before is left out."""
    whole, last = config.optim.batch_size, 0
    for number in (n for n in range(1, whole + 1) if whole % n == 0):
        candidate = replace(config, batch_size=whole // number, grad_accum=number)
        try:
            dealing = dealing_of(candidate, model, ranks)
        except UserError:
            if number == whole and not last:
                raise
            continue
        rows = whole // number // (ranks.world if dealing.by_rows else 1)
        if not last or rows < last:
            last = rows
            yield candidate, rows


def check(config: Any, device: torch.device, model: nn.Module, batches: Batches, ranks: Ranks) -> None:
    """Raise UserError where the least that a step needs is more than the device has: free of a GPU, in all of a
    CPU, whose memory others may give back."""
    loader = batches.train
    assert loader is not None  # of a model that trains
    has = memory.free(device) if device.type == "cuda" else memory.capacity(device)
    if has is None:
        return
    optim, dtype = config.optim, runtime.choose_dtype(config.machine.dtype, device)[0]
    sharing = ranks if _is_sharded(config, ranks) else None
    if optim.grad_accum == "auto":
        least = memory.needs(model, optim, 0, sharing)
    else:
        rows = -(-optim.batch_size // (ranks.world if dealing_of(config, model, ranks).by_rows else 1))
        least = memory.needs(model, optim, memory.least_activations(model, rows * loader.longest, dtype), sharing)
        if least.total > has and least._replace(activations=0).total <= has:  # padding may be left out: look at a batch
            state = loader.state_dict()
            tokens = loader.next().n_tokens * rows // optim.batch_size
            loader.load_state_dict(state)
            least = least._replace(activations=memory.least_activations(model, tokens, dtype))
    if least.total > has:
        now = f", {memory.in_units(has)} of it free" if device.type == "cuda" else ""
        raise memory.not_enough(config, model, device, f"{now}: it needs at least {least}")


def probe(model: Any, batches: Batches, config: Any, device: torch.device, rows: int, accumulates: bool) -> None:
    """Raise torch.OutOfMemoryError where so many rows do not fit: on a GPU by trying, on a CPU, whose system would
    begin to swap, by what one row keeps for its backward pass."""
    if device.type == "cuda":
        trial.try_step(model, batches, config, device, rows, accumulates)
        return
    has = memory.free(device)
    needs = trial.estimate(model, batches, config, device, rows)
    if has is not None and needs.total + (HEADROOM - 1) * needs.activations > has:
        raise torch.OutOfMemoryError(f"{rows} rows do not fit into {memory.in_units(has)}")


def _fits(config: Any, device: torch.device, model: Any, batches: Batches, rows: int, ranks: Ranks) -> bool:
    """Whether it does in every process."""
    try:
        probe(model, batches, config, device, rows, config.optim.micro_batches > 1)
        fits = True
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not runtime.is_out_of_memory(error):
            raise
        fits = False
    _give_back(device)
    return bool(ranks.gather([float(fits)]).all())


def _try_or_refuse(config: Any, device: torch.device, model: Any, batches: Batches, ranks: Ranks) -> None:
    rows = -(-config.optim.batch_size // (ranks.world if dealing_of(config, model, ranks).by_rows else 1))
    if not _fits(config, device, model, batches, rows, ranks):
        raise memory.not_enough(config, model, device, trial.explained(model, batches, config, device, rows))


def _give_back(device: torch.device) -> None:
    """Leave a GPU's memory, and what is said of its peak, as if nothing had been tried."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _is_sharded(config: Any, ranks: Ranks) -> bool:
    return config.machine.shard and ranks.world > 1
