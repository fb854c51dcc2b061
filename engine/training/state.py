"""What a checkpoint holds besides the weights, to go on exactly, and going on: the schema of its facts, the
optimizers' state."""

import contextlib
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import UserError
from data.json_files import Whole, check_schema
from engine.distributed.sharding import all_whole, like
from engine.run import checkpoint
from engine.run.weights import load_state
from engine.training.progress import Progress
from makemore.base import State

OLD_STATE = {"last": "history", "place": "position"}  # parts of a carried state by their names in older checkpoints
_NUMBER = (float, None)
TRAINER_FACTS = {  # in the facts.json of a `last/`, beside those of every checkpoint
    "progress": {
        "step": Whole(), "tokens": Whole(), "seconds": float, "evaluated": Whole(-1), "train_loss": _NUMBER,
        "nll_sum": float, "nll_tokens": float, "best_val": _NUMBER, "best_bits": _NUMBER, "best_step": Whole(),
        "worse": Whole(), "val_tokens": Whole(), "elapsed?": float,
    },
    "loader": {"epoch": Whole(), "position": Whole()},
    "optimizer": dict,
}  # fmt: skip


def state_of(trainer: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What going on with a Trainer takes besides the weights: tensors by name, and JSON."""
    tensors, numbers = optimizer_state(trainer.model, trainer.optimizers)
    if trainer.sharded is not None:
        tensors = all_whole(tensors, trainer.ranks)
    if not trainer.draws_by_step:
        tensors |= generator_state(trainer.device)
    tensors |= {f"carried.{name}": vector for name, vector in trainer.dealing.whole(trainer.carried).items()}
    facts = {"progress": asdict(trainer.progress), "loader": trainer.feed.position, "optimizer": numbers}
    return tensors, {"step": trainer.progress.step, "val_loss": None, **facts}


def go_on_from(folder: Path, trainer: Any) -> None:
    """Load the checkpoint `folder` (a `last/`) into a Trainer. Raises UserError for one that does not fit."""
    tensors, facts = checkpoint.load(folder, ("model", "trainer"))
    check_schema(facts, TRAINER_FACTS, str(folder / "facts.json"))
    load_state(trainer.plain, tensors["model"], folder)
    if trainer.sharded is not None:
        trainer.sharded.spread()
    stored = tensors["trainer"]
    try:
        trainer.progress = Progress(**facts["progress"])
        trainer.loader.load_state_dict(facts["loader"])
        load_optimizer_state(trainer.model, trainer.optimizers, stored | facts["optimizer"])
        if not trainer.draws_by_step:
            load_generator_state(stored, trainer.device)
    except (IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder} does not hold a state this version can go on with ({error})") from error
    trainer.carried = trainer.dealing.own(carried_state(stored, trainer.device)) or None
    trainer.lost_best = _lost_best(folder.with_name("best"), trainer.progress)
    if trainer.ranks.is_first:
        trainer.metrics.cut_back(trainer.progress.evaluated)


def _lost_best(best: Path, progress: Progress) -> int | None:
    """The step of a `best/` that is newer than what `progress` knows of; None for one that is not."""
    with contextlib.suppress(UserError):  # damage is found where it is used
        step = checkpoint.load(best, ())[1].get("step", 0)
        return step if step > progress.best_step else None
    return None


def optimizer_state(
    model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What the optimizers remember of each parameter, as 'state.<parameter>.<quantity>': tensors, and numbers."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        for optimizer in optimizers:
            for quantity, value in optimizer.state.get(parameter, {}).items():
                place = tensors if isinstance(value, Tensor) else numbers
                place[f"state.{name}.{quantity}"] = value
    return tensors, numbers


def load_optimizer_state(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], stored: dict[str, Any]) -> None:
    """Load what `optimizer_state` gave; before format 3 parameters stand by number. Raises ValueError for a state that
    these optimizers cannot have."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    unknown = {key for key in stored if key.startswith(("state.", "optimizer."))}
    for n, optimizer in enumerate(optimizers):
        state_dict = optimizer.state_dict() | {"state": {}}
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for i, parameter in enumerate(parameters):
            for prefix in (f"state.{names[id(parameter)]}.", f"optimizer.{n}.{i}."):
                if moments := under(stored, prefix):
                    break
            unknown -= {prefix + quantity for quantity in moments}
            _check_moments(moments, parameter)
            if moments:
                state_dict["state"][i] = {
                    quantity: like(value, parameter) if isinstance(value, Tensor) else value
                    for quantity, value in sorted(moments.items())
                }
        optimizer.load_state_dict(state_dict)
    if unknown:
        raise ValueError(f"there is no parameter for {min(unknown)}")


def generator_state(device: torch.device) -> dict[str, Tensor]:
    """What the generators draw next, of a run whose dropout follows from that."""
    state = {"rng.cpu": torch.get_rng_state()}
    return state | {"rng.cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def load_generator_state(stored: dict[str, Any], device: torch.device) -> None:
    """Load what `generator_state` gave. Raises KeyError or RuntimeError where there is none."""
    torch.set_rng_state(stored["rng.cpu"])
    if device.type == "cuda" and "rng.cuda" in stored:
        torch.cuda.set_rng_state(stored["rng.cuda"], device)


def carried_state(stored: dict[str, Any], device: torch.device) -> State:
    """The state that the next batch begins from, by today's names."""
    carried = {}
    for name, vector in under(stored, "carried.").items():
        *path, part = name.split(".")  # of a mixture's neural model: neural.history
        carried[".".join([*path, OLD_STATE.get(part, part)])] = vector.to(device)
    return carried


def under(stored: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The values whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}


def _check_moments(moments: dict[str, Any], parameter: Tensor) -> None:
    """Raise ValueError unless an optimizer's state of `parameter` has its shape, or is one number."""
    for name, value in moments.items():
        if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
            raise ValueError(f"{name} has the shape {tuple(value.shape)}, its weights {tuple(parameter.shape)}")
        if not isinstance(value, Tensor | int | float | None):
            raise ValueError(f"{name} is {value!r}")
