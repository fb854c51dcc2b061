"""How much memory a training needs and a device has, and what is said where it is not enough."""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data.errors import UserError
from engine.config.sections import Optim
from engine.distributed.ranks import Ranks
from engine.flops import multiplied_weights
from engine.training.optimizers import Muon, make_optimizers
from makemore.layers import sparse_parameters
from nanogpt.model import Transformer

HELD = {
    "sgd": 0,
    "momentum": 1,
    "adagrad": 1,
    "rmsprop": 1,
    "adam": 2,
    "adamw": 2,
}  # numbers a weight, of each optimizer
LEAST_KEPT = 0.5  # of the inputs of matrix products: a compiler may compute some again instead of keeping them


class Needs(NamedTuple):
    """Bytes that a training step holds at once on one device. `activations`: what the forward pass keeps for the
    backward one."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return sum(self)

    def __str__(self) -> str:
        named = self._asdict().items()
        return ", ".join(f"{name} {in_units(bytes_)}" for name, bytes_ in named if bytes_)


def in_units(bytes_: float) -> str:
    """Bytes in GB or MB, powers of ten."""
    return f"{bytes_ / 1e9:,.1f} GB" if bytes_ >= 1e9 else f"{bytes_ / 1e6:,.1f} MB"


def needs(model: nn.Module, optim: Optim, activations: int, ranks: Ranks | None = None) -> Needs:
    """What a step of training `model` needs besides these activations. `ranks`: the processes that divide weights,
    gradients and the optimizer's state among them."""
    parts = 1 if ranks is None else ranks.world
    weights = _bytes([*model.parameters()]) // parts + _bytes([*model.buffers()])
    gradients = _bytes([p for p in model.parameters() if p.requires_grad])
    return Needs(weights, gradients // parts, optimizer_bytes(model, optim) // parts, activations)


def optimizer_bytes(model: Any, optim: Optim) -> int:
    """The state that the optimizers hold of the weights that they train."""
    if optim.optimizer == "muon":
        groups = [(type(o), group["params"]) for o in make_optimizers(model, optim) for group in o.param_groups]
        return sum(_bytes(params) * (1 if kind is Muon else 2) for kind, params in groups)
    sparse = sparse_parameters(model)
    dense = [p for name, p in model.named_parameters() if p.requires_grad and name not in sparse]
    return HELD[optim.optimizer] * _bytes(dense) + 2 * _bytes([p for p in sparse.values() if p.requires_grad])


def least_activations(model: nn.Module, tokens: int, dtype: torch.dtype) -> int:
    """Bytes of activations that so many tokens keep at the very least: half of the inputs of matrices that are trained,
    since their gradients need them; none where they are computed again."""
    if any(getattr(module, "recomputes", False) for module in model.modules()):
        return 0
    widths = sum(weight.shape[1] for weight in multiplied_weights(model) if weight.requires_grad)
    return int(LEAST_KEPT * widths * tokens * dtype.itemsize)


def free(device: torch.device) -> int | None:
    """Bytes that this process can still have on `device`; None where nobody says so."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return min(_limits("MemAvailable"), default=None) if device.type == "cpu" else None


def capacity(device: torch.device) -> int | None:
    """Bytes of memory that `device` has, and of a CPU that this process may have; None where nobody says so."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return min(_limits("MemTotal"), default=None) if device.type == "cpu" else None


def not_enough(config: Any, model: nn.Module, device: torch.device, found: str = "") -> UserError:
    """The error of a step that does not fit into the memory of `device`; `found`: what is known of its needs."""
    optim, context = config.optim, config.net.context
    size = f"a batch of {optim.batch_size:,} rows" + (f" of up to {context:,} tokens" if context else "")
    has = capacity(device)
    where = f" into the {in_units(has)} of {device}" if has else f" into the memory of {device}"
    ways = []
    if optim.batch_size > 1 and not config.run.resume:
        half = optim.batch_size // 2
        smaller = f"--batch-size {half} --grad-accum {2 * optim.micro_batches} (or --grad-accum auto)"
        ways.append(f"cut the step into smaller batches: {smaller}")
    recomputes = [module.recomputes for module in model.modules() if isinstance(module, Transformer)]
    if recomputes and not all(recomputes):
        ways.append("compute activations again: --activation-checkpointing")
    keeps = "go on where there is more memory: a run keeps its sizes and its --batch-size"
    ways.append(keeps if config.run.resume else "lower --context, or the sizes of the model")
    return UserError(f"out of memory: {size} does not fit{where}{found}. Ways out: {'; '.join(ways)}")


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _limits(entry: str) -> list[int]:
    """What Linux says of the machine's memory by this name, and what is left to the container, if there is one."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{entry}:")]
    with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
        cgroup = Path("/sys/fs/cgroup")
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text()) if entry == "MemAvailable" else 0
        found.append(max(0, limit - used))
    return found
