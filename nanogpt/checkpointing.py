"""Activation checkpointing: a block keeps its inputs alone and computes the rest again when its gradient is due.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016. A step does a forward pass more, a third of its
operations; the gradients have the same bits, since dropout draws the same numbers again.
"""

from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, x: Tensor, y: Tensor | None, *rest: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """The x and y that a Block gives, see block.py. Its keys and values are not returned: to keep them would take a
    good part of the memory that is saved."""

    def run(x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        x, y, _ = block(x, y, *rest, **options)
        return x, y

    draws = any(module.p > 0 for module in block.modules() if isinstance(module, nn.Dropout))
    return checkpoint(run, x, y, use_reentrant=False, preserve_rng_state=draws)
