"""Cross-entropy over logits.

The function, its operators for autograd and the compiler, and the module. kernel.py holds the Triton kernels,
reference.py plain versions; linear.py stands on this file.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.dispatch import use_triton
from kernels.dtypes import DTYPES, precise_dtype, refuse_float64
from kernels.transforms import Transformable, is_transformed, refuse_forward_mode

IGNORE = -1
REDUCTIONS = ("sum", "mean", "none")


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = IGNORE,
    label_smoothing: float = 0.0,
    reduction: str = "sum",
    in_place: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Cross-entropy, -log softmax(logits (N, V))[targets (N,) int64], in nats and float32: the sum over the rows, the
    mean over those whose target is not `ignore_index` (0 where there is none), or with reduction "none" each, (N,).

    `label_smoothing`: this share of every target is spread over the whole vocabulary (Szegedy et al. 2016).
    `in_place`: the backward writes the gradient over the logits, whose values are gone then; backend "triton" only, and
    not for a leaf or a view of one.
    Saved for the backward: the logits, and two float32 numbers a row. A target that is neither in the vocabulary nor
    `ignore_index` raises on the CPU; on a GPU loss and gradient of its row are NaN in Triton, and torch stops.

    Raises ValueError for arguments that do not fit, RuntimeError for backend "triton" where it cannot run."""
    _check_logits(logits, targets, label_smoothing)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; it may be {', '.join(REDUCTIONS)}")
    if use_triton(backend, logits.device, wins=False):
        refuse_forward_mode("cross_entropy", logits)
        refuse_float64("logits", logits)
        if in_place:
            _check_in_place(logits)
        losses, _, _ = _forward(logits, targets, ignore_index, label_smoothing, in_place)
    elif in_place:
        raise ValueError("in_place is True, which the torch backend does not have; use backend='triton'")
    else:
        losses = _torch(logits, targets, ignore_index, label_smoothing)
    if reduction == "none":
        return losses
    total = losses.sum()
    return total if reduction == "sum" else total / (targets != ignore_index).sum().clamp(min=1)


class CrossEntropy(nn.Module):
    """`cross_entropy` with its options fixed: (logits, targets) -> loss."""

    def __init__(
        self,
        *,
        ignore_index: int = IGNORE,
        label_smoothing: float = 0.0,
        reduction: str = "sum",
        in_place: bool = False,
        backend: str = "auto",
    ):
        super().__init__()
        self.options: dict[str, Any] = {
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
            "reduction": reduction,
            "in_place": in_place,
            "backend": backend,
        }

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits, targets, **self.options)


def _torch(logits: Tensor, targets: Tensor, ignore: int, smoothing: float) -> Tensor:
    """The loss of each row (N,) by torch."""
    try:
        return F.cross_entropy(
            logits.to(precise_dtype(logits)), targets, ignore_index=ignore, label_smoothing=smoothing, reduction="none"
        )
    except IndexError:  # which says less
        check_targets(targets, logits.shape[1], ignore)
        raise


@torch.library.custom_op("charlm::cross_entropy", mutates_args=())
def _forward_op(
    logits: Tensor, targets: Tensor, ignore: int, smoothing: float, in_place: bool
) -> tuple[Tensor, Tensor, Tensor]:
    from kernels.cross_entropy import kernel

    check_targets(targets, logits.shape[1], ignore)
    losses, row_max, inv_sum = empty_outputs(logits)
    kernel.loss(logits, targets.contiguous(), ignore, smoothing, losses, row_max, inv_sum)
    return losses, row_max, inv_sum


@_forward_op.register_fake
def _(logits, targets, ignore, smoothing, in_place):
    return empty_outputs(logits)


@torch.library.custom_op("charlm::cross_entropy_backward", mutates_args=())
def _backward_op(
    upstream: Tensor, logits: Tensor, targets: Tensor, row_max: Tensor, inv_sum: Tensor, ignore: int, smoothing: float
) -> Tensor:
    from kernels.cross_entropy import kernel

    out = logits.new_empty(logits.shape)
    kernel.gradient(logits, targets.contiguous(), row_max, inv_sum, upstream, ignore, smoothing, out)
    return out


@_backward_op.register_fake
def _(upstream, logits, targets, row_max, inv_sum, ignore, smoothing):
    return logits.new_empty(logits.shape)


@torch.library.custom_op("charlm::cross_entropy_backward_", mutates_args=("logits",))
def _backward_in_place_op(
    upstream: Tensor, logits: Tensor, targets: Tensor, row_max: Tensor, inv_sum: Tensor, ignore: int, smoothing: float
) -> None:
    from kernels.cross_entropy import kernel

    kernel.gradient(logits, targets.contiguous(), row_max, inv_sum, upstream, ignore, smoothing, logits)


def _setup_context(ctx, inputs, output) -> None:
    logits, targets, *ctx.options, ctx.in_place = inputs
    _, row_max, inv_sum = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(row_max, inv_sum)
    ctx.save_for_backward(logits, targets, row_max, inv_sum)


def _backward(ctx, upstream, _, __):
    if upstream is None:
        return None, None, None, None, None
    logits, targets, row_max, inv_sum = ctx.saved_tensors
    if ctx.in_place:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the gradient of cross_entropy(in_place=True) has no derivative: leave out create_graph=True or it"
            )
        logits = logits.detach()  # shares values and version: a second backward sees that they changed, and raises
        torch.ops.charlm.cross_entropy_backward_(upstream, logits, targets, row_max, inv_sum, *ctx.options)
        return logits, None, None, None, None
    gradient = _gradients(upstream, logits, targets, row_max, inv_sum, *ctx.options)
    return gradient, None, None, None, None


_forward_op.register_autograd(_backward, setup_context=_setup_context)
_forward = Transformable(torch.ops.charlm.cross_entropy, _setup_context, _backward)
_gradients = Transformable(torch.ops.charlm.cross_entropy_backward)


def empty_outputs(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Empty tensors (N,) for the losses, and for row_max and inv_sum of the softmax."""
    losses, row_max, inv_sum = (logits.new_empty(logits.shape[0], dtype=precise_dtype(logits)) for _ in range(3))
    return losses, row_max, inv_sum


def check_targets(targets: Tensor, vocabulary: int, ignore: int) -> None:
    """Raise ValueError for a target outside of the vocabulary. On the CPU only: reading a GPU's targets would wait for
    it; there the loss of such a row is NaN."""
    if targets.device.type != "cpu":
        return
    wrong = ((targets < 0) | (targets >= vocabulary)) & (targets != ignore)
    if wrong.any():
        at = int(wrong.nonzero()[0])
        raise ValueError(f"targets[{at}] is {int(targets[at])}; it may be 0 to {vocabulary - 1}, or {ignore} to ignore")


def _check_in_place(logits: Tensor) -> None:
    owner = logits if logits._base is None else logits._base
    if owner.is_leaf and owner.requires_grad:
        kind = "a leaf" if owner is logits else "a view of a leaf"
        raise ValueError(f"in_place is True and logits is {kind}, whose values would be lost; it may be a result only")
    if is_transformed():
        raise ValueError(
            "in_place is True inside a transform of torch.func, which needs the logits again: leave it out"
        )
    if logits.shape[0] > 1 and logits.stride(0) < logits.shape[1]:
        raise ValueError(
            "in_place is True and the rows of logits share memory; they have to lie apart: use contiguous()"
        )


def _check_logits(logits: Tensor, targets: Tensor, label_smoothing: float) -> None:
    if logits.ndim != 2 or logits.shape[1] < 1:
        raise ValueError(f"logits has shape {tuple(logits.shape)}; it has to be (rows, vocabulary)")
    if logits.dtype not in DTYPES:
        raise ValueError(f"logits is {logits.dtype}; it may be float32, float16 or bfloat16")
    if logits.stride(1) != 1 and logits.shape[1] > 1 and logits.numel() > 0:
        raise ValueError(f"logits' last dimension has stride {logits.stride(1)}; it has to be 1: use contiguous()")
    check_shared(logits, targets, label_smoothing)


def check_shared(rows: Tensor, targets: Tensor, label_smoothing: float) -> None:
    """Raise ValueError for what both functions refuse: targets that do not fit the rows, a wrong label_smoothing."""
    if tuple(targets.shape) != (len(rows),):
        raise ValueError(f"targets has shape {tuple(targets.shape)}; it has to be one a row, ({len(rows)},)")
    if targets.dtype != torch.int64:
        raise ValueError(f"targets is {targets.dtype}; it has to be int64")
    if targets.device != rows.device:
        raise ValueError(f"targets is on {targets.device} and the rows on {rows.device}; they have to be together")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; it may be 0 or more, below 1")
