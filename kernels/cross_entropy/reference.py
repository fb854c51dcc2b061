"""Cross-entropy in plain torch, with a linear layer and without: what the kernels are tested against."""

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    ignore_index: int = -1,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """The loss (N,) of each row of logits (N, V); 0 where its target is ignore_index."""
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    losses = F.cross_entropy(
        logits, targets, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="none"
    )
    if z_loss:
        losses = losses + z_loss * logits.logsumexp(-1).square().masked_fill(targets == ignore_index, 0.0)
    return losses if weights is None else losses * weights


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -1,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """The loss (N,) of each row of the logits that hidden (N, C), weight (V, C) and bias (V,) give."""
    logits = hidden @ weight.T
    logits = logits if bias is None else logits + bias
    return cross_entropy(logits, targets, ignore_index, label_smoothing, z_loss, softcap, weights)
