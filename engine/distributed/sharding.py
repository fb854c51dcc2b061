"""Weights, gradients and optimizer state divided among the processes (`--shard`): torch's FSDP2.

Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", 2023. Each process holds 1/N of every
tensor and gathers a block's weights when it is computed.
"""

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from engine.distributed.ranks import Ranks
from makemore.layers import sparse_parameters

OWN_GROUP = 1 << 16  # parameters from which a layer of a list of layers is gathered by itself


class Sharded:
    """`model`, sharded and on `device`, beside `plain`, which it was made from and which stays on the CPU. After
    `collect` the first process's `plain` has the same weights; `free` takes those of the others."""

    def __init__(self, plain: nn.Module, ranks: Ranks, device: torch.device):
        self.plain, self.ranks = plain, ranks
        self.model: Any = copy.deepcopy(plain, {id(b): b for b in plain.buffers()}).to(device)  # counts are held once
        mesh = init_device_mesh(device.type, (ranks.world,))
        tables: set[Any] = set(sparse_parameters(self.model).values())  # FSDP knows no sparse gradients
        for layers in [module for module in self.model.modules() if isinstance(module, nn.ModuleList)]:
            for layer in layers:
                if sum(p.numel() for p in layer.parameters()) >= OWN_GROUP:
                    fully_shard(layer, mesh=mesh, ignored_params=tables)
        fully_shard(self.model, mesh=mesh, ignored_params=tables)
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # the loss is divided by all tokens already
                module.set_force_sum_reduction_for_comms(True)  # gloo has no product with a factor
        self._names = sorted(dict(plain.named_parameters()))
        # Nobody changes in place what the model returns.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")

    def _parameters(self) -> dict[str, nn.Parameter]:
        """The shards by name. After an evaluation the outer layers are still whole: then they are not parameters."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        return dict(self.model.named_parameters())

    @torch.no_grad()
    def spread(self) -> None:
        """Give the shards the weights of `plain`, which every process has loaded."""
        parameters, plain = self._parameters(), dict(self.plain.named_parameters())
        for name in self._names:
            parameters[name].copy_(like(plain[name], parameters[name]))

    @torch.no_grad()
    def collect(self) -> None:
        """Give the first process's `plain` the weights."""
        parameters, plain = self._parameters(), dict(self.plain.named_parameters())
        for name in self._names:
            weights = whole(parameters[name])
            if self.ranks.is_first:
                plain[name].copy_(weights)
        if self.ranks.is_first:
            trained, fixed = dict(self.model.named_buffers()), getattr(self.plain, "fixed", ())
            for name, buffer in self.plain.named_buffers():
                if not name.startswith(fixed) and buffer is not trained[name]:
                    buffer.copy_(trained[name])

    def free(self) -> None:
        """Drop the whole weights in all processes but the first one."""
        if not self.ranks.is_first:
            for parameter in self.plain.parameters():
                parameter.data = parameter.data.new_empty(0)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be divided among the processes: each calls it, in the same order of tensors."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def all_whole(tensors: dict[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """All of these tensors, on the CPU of the first process; the others get nothing, and hold one at a time."""
    gathered = {}
    for name in sorted(tensors):  # safetensors gives names in an order of its own in each process
        tensor = whole(tensors[name])
        if ranks.is_first:
            gathered[name] = tensor.cpu()
    return gathered


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """`tensor`, divided among the processes as `parameter` is, if it is."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    tensor = tensor.to(parameter.device)
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is divided among the processes."""
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """The rows of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
