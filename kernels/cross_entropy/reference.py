"""Cross-entropy in plain torch, with a linear layer and without: what the kernels are tested against."""

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int = -1, label_smoothing: float = 0.0) -> Tensor:
    """The loss of each row of logits (N, V), (N,); 0 where targets (N,) are ignore_index."""
    return F.cross_entropy(
        logits, targets, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="none"
    )


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -1,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The sum of those losses, the logits being hidden (N, C) times weight (V, C) plus bias (V,)."""
    logits = hidden @ weight.T
    logits = logits if bias is None else logits + bias
    return cross_entropy(logits, targets, ignore_index, label_smoothing).sum()
