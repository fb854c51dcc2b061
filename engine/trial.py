"""One forward and backward pass of a model's largest batch before its training, which leaves everything as it was."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data.batches import IGNORE, Array, Batch
from data.loaders import Loader
from engine import runtime
from engine.memory import Needs, needs, optimizer_bytes
from engine.task import Batches
from engine.training.metrics import Metrics
from engine.training.state import optimizer_state
from engine.training.trainer import Trainer
from makemore.layers import sparse_parameters
from nanogpt.model import Transformer

LOOKED_AT = 20  # batches, the fullest of which is tried where padding is left out


def try_step(model: Any, batches: Batches, config: Any, device: torch.device, rows: int, accumulates: bool) -> None:
    """Compute the loss and the gradient of `rows` rows as a step would, beside room for the optimizer's state, and
    with `accumulates` beside gradients that are there already. Raises what torch raises where they do not fit.

    The model computes as it is written, which takes no less memory than compiled; only where that is too much the
    compiled one is tried. `model` is on `device` afterwards, and no random number was drawn."""
    model.to(device)
    trainer = Trainer(
        model, _required(batches.train), batches.val, batches.characters, config, Path(), device, Metrics(Path())
    )
    batch = largest(trainer, rows)
    with untouched(model, device):
        try:
            _pass(trainer, batch, accumulates)
        except RuntimeError as error:
            if not (runtime.is_out_of_memory(error) and runtime.choose_compile(config.machine.compile, device)[0]):
                raise
        else:
            return
        _forget(model)
        with _compiled(model):
            _pass(trainer, batch, accumulates)


def estimate(model: Any, batches: Batches, config: Any, device: torch.device, rows: int) -> Needs:
    """What a step on `rows` rows would need, by what a pass over one of the longest rows keeps; where activations are
    computed again, with those of one block."""
    loader = _required(batches.train)
    trainer = Trainer(model, loader, batches.val, batches.characters, config, Path(), device, Metrics(Path()))
    batch = largest(trainer, 1)
    kept = _kept(trainer, batch)
    if again := [module for module in model.modules() if isinstance(module, Transformer) and module.recomputes]:
        for module in again:
            module.recomputes = False
        kept += _kept(trainer, batch) // max(len(module.h) for module in again)
        for module in again:
            module.recomputes = True
    return needs(model, config.optim, rows * kept)


def _kept(trainer: Trainer, batch: Batch[Array]) -> int:
    """Bytes that the forward pass keeps for the backward one, the weights apart."""
    model = trainer.plain
    weights = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if (start := tensor.untyped_storage().data_ptr()) not in weights:
            kept[start] = tensor.untyped_storage().nbytes()
        return tensor

    with untouched(model, trainer.device), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        _backward(trainer, batch)
    return sum(kept.values())


def explained(model: Any, batches: Batches, config: Any, device: torch.device, rows: int) -> str:
    """What is known of the needs of a step that did not fit; nothing where not even one row does."""
    try:
        return f": it needs about {estimate(model, batches, config, device, rows)}"
    except RuntimeError as error:
        if not runtime.is_out_of_memory(error):
            raise
        return ""


def largest(trainer: Trainer, rows: int) -> Batch[Array]:
    """So many rows of the text, as long as the longest one; where the model takes rows without their padding, those of
    the fullest of the next batches. The loader is left where it is."""
    loader, state = trainer.loader, trainer.loader.state_dict()
    packed = trainer.packs
    deals = [loader.deal() for _ in range(LOOKED_AT if packed else 1)]
    found, items = max(((loader.batch(deal), len(deal.items)) for deal in deals), key=lambda each: each[0].n_tokens)
    loader.load_state_dict(state)
    parts = {name: part for name, part in found._asdict().items() if isinstance(part, np.ndarray)}
    count = rows * len(found.tokens) // items  # of pairs an item has two rows
    resized: dict[str, Any] = {name: np.resize(part, (count, *part.shape[1:])) for name, part in parts.items()}
    found = found._replace(**resized)
    return found._replace(fresh=True) if packed else lengthened(found, loader.longest)


def lengthened(batch: Batch[Array], length: int) -> Batch[Array]:
    """`batch` (B, T) with tokens before its rows that have no targets, up to `length`."""
    more = max(0, length - batch.tokens.shape[1])
    first = np.resize(batch.tokens, (len(batch.tokens), more))
    weight = batch.weight
    return batch._replace(
        fresh=True,
        tokens=np.concatenate([first, batch.tokens], 1),
        targets=np.concatenate([np.full_like(first, IGNORE), batch.targets], 1),
        weight=None if weight is None else np.concatenate([np.ones_like(first, weight.dtype), weight], 1),
    )


@contextlib.contextmanager
def untouched(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, the model may train: afterwards its buffers, gradients and mode, and torch's generators, are those of
    before."""
    buffers = {name: buffer.clone() for name, buffer in _changing(model).items()}
    was_training = model.training
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            model.train()
            yield
        finally:
            model.train(was_training)
            _forget(model)
            with torch.no_grad():
                for name, buffer in _changing(model).items():
                    buffer.copy_(buffers[name])


def _pass(trainer: Trainer, batch: Batch[Array], accumulates: bool) -> None:
    """A forward and a backward pass beside what else a step holds."""
    model = trainer.plain
    is_there = sum(each.nbytes for each in optimizer_state(model, trainer.optimizers)[0].values())
    missing = max(0, optimizer_bytes(model, trainer.config.optim) - is_there)
    held = [torch.empty(missing, dtype=torch.uint8, device=trainer.device)]
    if accumulates:
        sparse = {id(p) for p in sparse_parameters(model).values()}
        for p in model.parameters():
            if p.requires_grad and id(p) not in sparse:
                p.grad = torch.zeros_like(p)
    _backward(trainer, batch)
    held.clear()


def _backward(trainer: Trainer, batch: Batch[Array]) -> None:
    trainer.backward(trainer.prepare(batch), batch.divisor)
    trainer.carried = None


def _changing(model: Any) -> dict[str, Tensor]:
    fixed = getattr(model, "fixed", ())
    return {name: buffer for name, buffer in model.named_buffers() if not name.startswith(fixed)}


def _forget(model: nn.Module) -> None:
    model.zero_grad(set_to_none=True)


@contextlib.contextmanager
def _compiled(model: Any) -> Iterator[None]:
    runtime.compile_or_warn(model)
    try:
        yield
    finally:
        del model.forward


def _required(loader: Loader | None) -> Loader:
    assert loader is not None  # of a model that trains
    return loader
