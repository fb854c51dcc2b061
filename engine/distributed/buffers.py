"""What training does not change, held once a host: a mixture's counts."""

import secrets
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
from torch import nn

from data.sources import cache_subfolder
from engine.distributed.ranks import Ranks


def once_a_host(model: nn.Module, fill: Callable[[], None], ranks: Ranks) -> None:
    """Have one process of each host `fill` the buffers of `model`. The others map its memory, through a file in the
    cache that is removed at once."""
    if ranks.world == 1:
        fill()
        return
    numbers = ranks.gather([secrets.randbelow(1 << 48)])[:, 0]
    path = Path(cache_subfolder("shared"), f"{int(numbers[ranks.rank - ranks.local_rank]):012x}.safetensors")
    if not ranks.local_rank:
        fill()
        safetensors.torch.save_file({name: buffer.contiguous() for name, buffer in model.named_buffers()}, path)
    ranks.wait()
    for name, buffer in sorted(safetensors.torch.load_file(path).items()):  # mapped, not copied
        owner, _, own_name = name.rpartition(".")
        module = model.get_submodule(owner)
        is_stored = own_name not in module._non_persistent_buffers_set
        module.register_buffer(own_name, buffer, persistent=is_stored)
    ranks.wait()
    if not ranks.local_rank:
        path.unlink()
