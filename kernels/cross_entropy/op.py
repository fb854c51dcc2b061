"""Cross-entropy over logits.

The function, its operators for autograd and the compiler, and the module. kernel.py holds the Triton kernels,
reference.py plain versions; linear.py stands on this file.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import auto
from kernels.cross_entropy.checks import (
    IGNORE,
    Options,
    check_in_place,
    check_logits,
    check_rows,
    check_targets,
    make_options,
)
from kernels.dispatch import use_triton
from kernels.dtypes import precise_dtype, refuse_float64
from kernels.transforms import Transformable, is_forward_mode, refuse_forward_mode


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    ignore_index: int = IGNORE,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    reduction: str = "sum",
    in_place: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Cross-entropy, -log softmax(logits (..., V))[targets (...) int64], in nats and float32: the sum over the rows,
    the mean over those whose target is not `ignore_index` (0 where there is none), or with reduction "none" each,
    (...).

    `weights` (...): a factor for the loss of each row, differentiated too; the mean is then over the sum of the weights
    of those rows, as with torch's class weights.
    `label_smoothing`: this share of every target is spread over the whole vocabulary (Szegedy et al. 2016).
    `z_loss`: this times the square of log sum exp(logits) is added to the loss of each row (Chowdhery et al. 2022,
    PaLM).
    `softcap`: the logits are softcap * tanh(logits / softcap) first (Gemma Team 2024, Gemma 2).
    `in_place`: the backward writes the gradient over the logits, whose values are gone then; backend "triton" only, and
    not for a leaf or a view of one.
    Saved for the backward: the logits, and two float32 numbers a row. A target that is neither in the vocabulary nor
    `ignore_index` raises on the CPU; on a GPU loss and gradient of its row are NaN in Triton, and torch stops.

    Raises ValueError for arguments that do not fit, RuntimeError for backend "triton" where it cannot run."""
    check_logits(logits)
    check_rows(logits, targets, weights, reduction)
    options = make_options(ignore_index, label_smoothing, z_loss, softcap)
    rows = rows_of(logits)
    wins = auto.cross_entropy_wins(logits, *rows.shape) and not is_forward_mode(logits, weights)
    if use_triton(backend, logits.device, wins):
        refuse_forward_mode("cross_entropy", logits, weights)
        refuse_float64("logits", logits)
        if in_place:
            check_in_place(logits)
        losses, _, _ = _forward(rows, targets, *options, in_place)
    elif in_place:
        raise ValueError("in_place is True, which the torch backend does not have; use backend='triton'")
    else:
        losses = _torch(rows, targets, options)
    return reduce(losses, targets, weights, ignore_index, reduction)


class CrossEntropy(nn.Module):
    """`cross_entropy` with its options fixed: (logits, targets, weights or None) -> loss."""

    def __init__(
        self,
        *,
        ignore_index: int = IGNORE,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: str = "sum",
        in_place: bool = False,
        backend: str = "auto",
    ):
        super().__init__()
        self.options: dict[str, Any] = {
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
            "z_loss": z_loss,
            "softcap": softcap,
            "reduction": reduction,
            "in_place": in_place,
            "backend": backend,
        }

    def forward(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        return cross_entropy(logits, targets, weights=weights, **self.options)


def rows_of(x: Tensor) -> Tensor:
    """(..., C) as (N, C)."""
    return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])


def reduce(losses: Tensor, targets: Tensor, weights: Tensor | None, ignore: int, reduction: str) -> Tensor:
    """The losses (N,) of rows times their weights, in the shape of the targets (...) or reduced."""
    losses = losses if targets.ndim == 1 else losses.view(targets.shape)
    if weights is not None:
        weights = masked(weights, losses.dtype, targets, ignore)
        losses = losses * weights
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / total_weight(targets, weights, ignore)


def masked(weights: Tensor, dtype: torch.dtype, targets: Tensor, ignore: int) -> Tensor:
    """The weights in the dtype of the losses; 0 for ignored rows, whose weight does not matter."""
    return weights.to(dtype).masked_fill(targets == ignore, 0.0)


def total_weight(targets: Tensor, weights: Tensor | None, ignore: int) -> Tensor:
    """What a mean divides by: the number of rows that are not ignored, or the sum of their weights; 1 instead of 0."""
    if weights is None:
        return (targets != ignore).sum().clamp(min=1)
    total = weights.sum()
    return torch.where(total == 0, 1.0, total)


def _torch(logits: Tensor, targets: Tensor, options: Options) -> Tensor:
    """The loss of each row (N,) by torch."""
    ignore, smoothing, z_loss, softcap = options
    logits, flat = logits.to(precise_dtype(logits)), targets.reshape(-1)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    try:
        losses = F.cross_entropy(logits, flat, ignore_index=ignore, label_smoothing=smoothing, reduction="none")
    except IndexError:  # which says less
        check_targets(targets, logits.shape[1], ignore)
        raise
    if z_loss:
        losses = losses + z_loss * logits.logsumexp(-1).square().masked_fill(flat == ignore, 0.0)
    return losses


@torch.library.custom_op("charlm::cross_entropy", mutates_args=())
def _forward_op(
    logits: Tensor, targets: Tensor, ignore: int, smoothing: float, z_loss: float, softcap: float, in_place: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of logits (N, V) and targets of any shape, so that a wrong one is named by its place."""
    from kernels.cross_entropy import kernel

    check_targets(targets, logits.shape[1], ignore)
    losses, row_max, inv_sum = empty_outputs(logits)
    options = Options(ignore, smoothing, z_loss, softcap)
    kernel.loss(logits, targets.reshape(-1).contiguous(), options, losses, row_max, inv_sum)
    return losses, row_max, inv_sum


@_forward_op.register_fake
def _(logits, targets, ignore, smoothing, z_loss, softcap, in_place):
    return empty_outputs(logits)


@torch.library.custom_op("charlm::cross_entropy_backward", mutates_args=())
def _backward_op(
    upstream: Tensor, logits: Tensor, targets: Tensor, row_max: Tensor, inv_sum: Tensor,
    ignore: int, smoothing: float, z_loss: float, softcap: float,
) -> Tensor:  # fmt: skip
    from kernels.cross_entropy import kernel

    out = logits.new_empty(logits.shape)
    options = Options(ignore, smoothing, z_loss, softcap)
    kernel.gradient(logits, targets.reshape(-1).contiguous(), row_max, inv_sum, upstream, options, out)
    return out


@_backward_op.register_fake
def _(upstream, logits, targets, row_max, inv_sum, ignore, smoothing, z_loss, softcap):
    return logits.new_empty(logits.shape)


@torch.library.custom_op("charlm::cross_entropy_backward_", mutates_args=("logits",))
def _backward_in_place_op(
    upstream: Tensor, logits: Tensor, targets: Tensor, row_max: Tensor, inv_sum: Tensor,
    ignore: int, smoothing: float, z_loss: float, softcap: float,
) -> None:  # fmt: skip
    from kernels.cross_entropy import kernel

    options = Options(ignore, smoothing, z_loss, softcap)
    kernel.gradient(logits, targets.reshape(-1).contiguous(), row_max, inv_sum, upstream, options, logits)


def _setup_context(ctx, inputs, output) -> None:
    logits, targets, *ctx.options, ctx.in_place = inputs
    _, row_max, inv_sum = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(row_max, inv_sum)
    ctx.save_for_backward(logits, targets, row_max, inv_sum)


def _backward(ctx, upstream, _, __):
    if upstream is None:
        return (None,) * 7
    logits, targets, row_max, inv_sum = ctx.saved_tensors
    if ctx.in_place:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the gradient of cross_entropy(in_place=True) has no derivative: leave out create_graph=True or it"
            )
        logits = logits.detach()  # shares values and version: a second backward sees that they changed, and raises
        torch.ops.charlm.cross_entropy_backward_(upstream, logits, targets, row_max, inv_sum, *ctx.options)
        return logits, *((None,) * 6)
    gradient = _gradients(upstream, logits, targets, row_max, inv_sum, *ctx.options)
    return gradient, *((None,) * 6)


_forward_op.register_autograd(_backward, setup_context=_setup_context)
_forward = Transformable(torch.ops.charlm.cross_entropy, _setup_context, _backward)
_gradients = Transformable(torch.ops.charlm.cross_entropy_backward)


def empty_outputs(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Empty tensors (N,) for the losses, and for row_max and inv_sum of the softmax."""
    losses, row_max, inv_sum = (logits.new_empty(logits.shape[0], dtype=precise_dtype(logits)) for _ in range(3))
    return losses, row_max, inv_sum
