"""Storing the weights of a model in the checkpoints of its run, and loading them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from data.errors import UserError
from engine.run import checkpoint, quantised
from engine.training.lora import LoRALinear, fold


def load_weights(model: nn.Module, folder: Path) -> dict[str, Any]:
    """Load checkpoint `folder` into `model` and return its facts. Raises UserError where they do not fit."""
    tensors, facts = checkpoint.load(folder, ("model",))
    load_state(model, tensors["model"], folder)
    return facts


def load_best(model: nn.Module, path: Path, best_step: int) -> dict[str, Any]:
    """Load the `best/` of the run `path` and return its facts. Raises UserError unless it is of `best_step`."""
    facts = load_weights(model, path / "best")
    if facts.get("step") != best_step:
        raise UserError(f"{path / 'best'} is of step {facts.get('step')}, where the run says {best_step}: not its own")
    return facts


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of `model` that every checkpoint holds: all but those that training does not change, which are in
    `base/`."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    fixed = getattr(model, "fixed", ())
    return {n: tensor for n, tensor in model.state_dict().items() if n not in frozen and not n.startswith(fixed)}


def keep_frozen(model: nn.Module, path: Path, belongs_to: dict[str, Any] | None) -> None:
    """Store the tensors of `model` that training does not change, if any, in `base/`."""
    if len(trained := trained_weights(model)) < len(model.state_dict()):
        frozen = {name: tensor for name, tensor in model.state_dict().items() if name not in trained}
        checkpoint.save(path / "base", {"model": frozen}, {}, belongs_to)


def load_state(model: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """Load `weights`, of checkpoint `folder` of a run, and those of the run's `base/` into `model`; rounded
    ones become float32, and LoRA updates are added to the weights of a model without LoRA. Raises UserError, with
    `folder`, where the weights are of another model, damaged, or not finite."""
    if checkpoint.find(folder.parent / "base"):
        weights = checkpoint.load(folder.parent / "base", ("model",))[0]["model"] | weights
    weights = quantised.dequantise(weights, folder)
    check_finite(weights, folder)
    if not any(isinstance(module, LoRALinear) for module in model.modules()):
        weights = fold(weights)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        problems = str(error).splitlines()[1:3]
        missing = "" if checkpoint.find(folder.parent / "base") else f"; {folder.parent / 'base'} is not there"
        raise UserError(
            f"{folder} is not a checkpoint of this run's model: {' '.join(map(str.strip, problems))}"
            f"{missing if 'Missing' in problems[0] else ''}"
        ) from error


def check_finite(weights: dict[str, Tensor], folder: Path) -> None:
    """Raise UserError for a weight that is infinite or NaN."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            wrong = int((~torch.isfinite(tensor)).sum())
            raise UserError(
                f"{folder} holds weights that are not finite ({wrong:,} of {tensor.numel():,} in {name}): take another "
                "checkpoint, or train again"
            )


def check_sizes(build: Callable[[], nn.Module], n_layer: int | None, folder: Path) -> None:
    """Raise UserError where the model that `build` makes has other shapes than checkpoint `folder` and its `base/`, by
    the headers of the files, before memory is allocated for it. `n_layer`: its number of layers, if it has any."""
    stored = quantised.shapes(checkpoint.shapes(folder.parent / "base") | checkpoint.shapes(folder))
    config = folder.parent / "config.json"
    if not stored:
        return  # loading it raises the error
    if n_layer is not None and n_layer > len(stored):
        raise UserError(f"{config} asks for {n_layer:,} layers, and {folder} has {len(stored)} tensors in all")
    try:
        with torch.device("meta"), _NoNormalValues():
            model = build()
    except UserError as error:
        raise UserError(f"{config} is damaged: {error}") from error
    for name, tensor in model.state_dict().items():
        # A wrapped model (LoRA and the like) has other names, and empty counts get their sizes when loaded.
        if name in stored and tuple(tensor.shape) != stored[name] and tensor.numel():
            raise UserError(
                f"{folder} is not a checkpoint of this run's model: {name} has the shape {stored[name]}, {config} asks "
                f"for {tuple(tensor.shape)}"
            )


class _NoNormalValues(TorchFunctionMode):
    """Leaves out `normal_`, which has nothing to do for tensors of shapes only: torch would import its compiler for it,
    which takes a second."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function.__name__ == "normal_":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)
