"""Cross-entropy over the output of a linear layer, whose logits are never all held: the function and the module.

linear_op.py holds the operators, reference.py a plain version.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import auto
from kernels.cross_entropy import linear_op
from kernels.cross_entropy.checks import IGNORE, check_linear, check_rows, make_options
from kernels.cross_entropy.op import cross_entropy, masked, reduce, rows_of, total_weight
from kernels.dispatch import use_triton
from kernels.dtypes import autocast_dtype, precise_dtype, refuse_float64
from kernels.transforms import is_forward_mode, is_transformed, refuse_forward_mode

CHUNK_BYTES = 1 << 27  # logits of one chunk
TILE = 128  # rows that a GPU multiplies at once


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    weights: Tensor | None = None,
    ignore_index: int = IGNORE,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    reduction: str = "sum",
    chunk_rows: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """The cross-entropy (float32, in nats) of logits = hidden (..., C) weight (V, C)^T + bias (V,): a scalar, or with
    reduction "none" (...). The options are those of `cross_entropy`.

    At most `chunk_rows` rows of logits exist at a time (by default as many as 128 MB hold), forward and
    backward, and all matrix products are torch's. For a sum or a mean the gradients are made in the forward, and saved
    instead of the logits; with reduction "none", or where `weights` need a gradient, each row has an upstream gradient
    of its own, and the backward computes the logits again. Nothing is computed for an input that needs no gradient.
    Under autocast the products are in its dtype, the losses in float32. Inside a transform of torch.func and for
    forward-mode derivatives all logits are held, and differentiated by torch. Raises as `cross_entropy`."""
    check_linear(hidden, weight, bias, chunk_rows)
    check_rows(hidden, targets, weights, reduction)
    options = make_options(ignore_index, label_smoothing, z_loss, softcap)
    is_forward = is_forward_mode(hidden, weight, bias, weights)
    wins = auto.cross_entropy_wins(hidden, targets.numel(), len(weight)) and not is_forward
    by_triton = use_triton(backend, hidden.device, wins)
    if by_triton:
        refuse_forward_mode("linear_cross_entropy", hidden, weight, bias, weights)
        refuse_float64("hidden", hidden)
    if narrow := autocast_dtype(hidden):
        hidden, weight = hidden.to(narrow), weight.to(narrow)
        bias = None if bias is None else bias.to(narrow)
    if chunk_rows is None:
        chunk_rows = max(1, CHUNK_BYTES // hidden.element_size() // weight.shape[0])
        chunk_rows -= chunk_rows % TILE if chunk_rows > TILE else 0
    if is_transformed() or is_forward:
        return cross_entropy(
            F.linear(hidden, weight, bias),
            targets,
            weights=weights,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            softcap=softcap,
            reduction=reduction,
            backend="triton" if by_triton else "torch",
        )
    wants = torch.is_grad_enabled()
    if reduction == "none" or (wants and weights is not None and weights.requires_grad):
        losses = linear_op.by_row(rows_of(hidden), weight, bias, targets, *options, chunk_rows, by_triton)
        return reduce(losses, targets, weights, ignore_index, reduction)
    if weights is not None:
        weights = masked(weights, precise_dtype(hidden), targets, ignore_index)
    wanted = [wants and x is not None and x.requires_grad for x in (hidden, weight, bias)]
    loss, _, _, _ = linear_op.summed(
        rows_of(hidden), weight, bias, targets, weights, *options, chunk_rows, by_triton, wanted
    )
    return loss if reduction == "sum" else loss / total_weight(targets, weights, ignore_index)


class LinearCrossEntropy(nn.Linear):
    """A linear layer to `vocab_size` logits that gives their loss: (hidden (..., C), targets (...), weights (...) or
    None) -> scalar, or (...)."""

    def __init__(
        self,
        width: int,
        vocab_size: int,
        bias: bool = True,
        *,
        ignore_index: int = IGNORE,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: str = "sum",
        chunk_rows: int | None = None,
        backend: str = "auto",
    ):
        super().__init__(width, vocab_size, bias)
        self.options: dict[str, Any] = {
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
            "z_loss": z_loss,
            "softcap": softcap,
            "reduction": reduction,
            "chunk_rows": chunk_rows,
            "backend": backend,
        }

    def forward(self, hidden: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        return linear_cross_entropy(hidden, self.weight, targets, self.bias, weights=weights, **self.options)
