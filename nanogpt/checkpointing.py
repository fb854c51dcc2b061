"""Activation checkpointing: a block keeps its inputs alone and computes the rest again when its gradient is due.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016. A step does a forward pass more, a third of its
operations; the gradients have the same bits, since dropout draws the same numbers again.
"""

from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def read(block: nn.Module, x: Tensor, y: Tensor | None, *rest: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The x, y and values that a Block gives, see block.py."""
    x, y, (_, v) = block(x, y, *rest, **options)
    return x, y, v


def recomputed(
    block: nn.Module, x: Tensor, y: Tensor | None, *rest: Any, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """As `read`, with all that is inside computed again for the gradient. To keep the keys and values of each block
    would take a good part of the memory that is saved: only the first one's values are used by others."""
    draws = any(module.p > 0 for module in block.modules() if isinstance(module, nn.Dropout))

    def run(x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return read(block, x, y, *rest, **options)

    return checkpoint(run, x, y, use_reentrant=False, preserve_rng_state=draws)
