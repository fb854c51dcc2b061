"""Cross-entropy over logits, and over the output of a linear layer whose logits are never all held.

The functions, their operators for autograd and the compiler, and the modules. The Triton kernels are in
cross_entropy_triton.py, plain versions in reference.py. The second is Liger Kernel's idea (Hsu et al. 2024): a chunk of
rows at a time, logits, loss and gradient, so that the forward leaves only the gradients of hidden, weight and bias.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.dispatch import autocast_dtype, interpreting, use_triton

IGNORE = -1
REDUCTIONS = ("sum", "mean", "none")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
CHUNK_ELEMENTS = 1 << 25  # logits of one chunk of linear_cross_entropy: 128 MB in float32


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
    """-log softmax(logits (N, V))[targets (N,) int64] in nats and float32: their sum, their mean over the targets that
    are not `ignore_index` (0 where there is none), or with reduction "none" each, (N,).

    `label_smoothing`: this share of every target is spread over the whole vocabulary (Szegedy et al. 2016).
    `in_place`: the backward writes the gradient over the logits, whose values are gone then; backend "triton" only, and
    not for a leaf.
    Saved for the backward: the logits, and two float32 numbers a row. A target that is neither in the vocabulary nor
    `ignore_index` raises on the CPU; on a GPU loss and gradient of its row are NaN in Triton, and torch stops.

    Raises ValueError for arguments that do not fit, RuntimeError for backend "triton" where it cannot run."""
    _check_logits(logits, targets, label_smoothing)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; it may be {', '.join(REDUCTIONS)}")
    if use_triton(backend, logits.device, wins=False):
        _refuse_float64("logits", logits)
        if in_place:
            _check_in_place(logits)
        losses, _, _ = torch.ops.charlm.cross_entropy(logits, targets, ignore_index, label_smoothing, in_place)
    elif in_place:
        raise ValueError("in_place is True, which the torch backend does not have; use backend='triton'")
    else:
        losses = F.cross_entropy(
            logits.float() if logits.dtype != torch.float64 else logits,
            targets,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction="none",
        )
    if reduction == "none":
        return losses
    total = losses.sum()
    return total if reduction == "sum" else total / (targets != ignore_index).sum().clamp(min=1)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = IGNORE,
    label_smoothing: float = 0.0,
    chunk_rows: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """The summed cross-entropy (a float32 scalar, in nats) of logits = hidden (N, C) weight (V, C)^T + bias (V,).

    At most `chunk_rows` rows of logits exist at a time (by default as many as 128 MB of float32 hold), forward and
    backward: the gradients are made in the forward, with the matrix products of torch, and saved instead of the logits.
    Under autocast the products are in its dtype, the losses in float32. Raises as `cross_entropy`."""
    _check_linear(hidden, weight, targets, bias, label_smoothing, chunk_rows)
    by_triton = use_triton(backend, hidden.device, wins=False)
    if by_triton:
        _refuse_float64("hidden", hidden)
    if narrow := autocast_dtype(hidden):
        hidden, weight, bias = (None if x is None else x.to(narrow) for x in (hidden, weight, bias))
    if chunk_rows is None:
        chunk_rows = max(1, CHUNK_ELEMENTS // weight.shape[0])
    wanted = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (hidden, weight, bias))
    loss, _, _, _ = torch.ops.charlm.linear_cross_entropy(
        hidden, weight, bias, targets, ignore_index, label_smoothing, chunk_rows, by_triton, wanted
    )
    return loss


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
        self.options = {
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
            "reduction": reduction,
            "in_place": in_place,
            "backend": backend,
        }

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits, targets, **self.options)


class LinearCrossEntropy(nn.Linear):
    """A linear layer to `vocab_size` logits that gives their summed loss: (hidden (N, C), targets (N,)) -> scalar."""

    def __init__(
        self,
        width: int,
        vocab_size: int,
        bias: bool = True,
        *,
        ignore_index: int = IGNORE,
        label_smoothing: float = 0.0,
        chunk_rows: int | None = None,
        backend: str = "auto",
    ):
        super().__init__(width, vocab_size, bias)
        self.options = {
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
            "chunk_rows": chunk_rows,
            "backend": backend,
        }

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, self.weight, targets, self.bias, **self.options)


@torch.library.custom_op("charlm::cross_entropy", mutates_args=())
def _forward(
    logits: Tensor, targets: Tensor, ignore: int, smoothing: float, in_place: bool
) -> tuple[Tensor, Tensor, Tensor]:
    from kernels import cross_entropy_triton

    _check_targets(targets, logits.shape[1], ignore)
    losses, peak, inverse = _empty_outputs(logits)
    cross_entropy_triton.loss(logits, targets.contiguous(), ignore, smoothing, losses, peak, inverse)
    return losses, peak, inverse


@_forward.register_fake
def _(logits, targets, ignore, smoothing, in_place):
    return _empty_outputs(logits)


@torch.library.custom_op("charlm::cross_entropy_backward", mutates_args=())
def _backward(
    upstream: Tensor, logits: Tensor, targets: Tensor, peak: Tensor, inverse: Tensor, ignore: int, smoothing: float
) -> Tensor:
    from kernels import cross_entropy_triton

    out = logits.new_empty(logits.shape)
    cross_entropy_triton.gradient(logits, targets.contiguous(), peak, inverse, upstream, ignore, smoothing, out)
    return out


@_backward.register_fake
def _(upstream, logits, targets, peak, inverse, ignore, smoothing):
    return logits.new_empty(logits.shape)


@torch.library.custom_op("charlm::cross_entropy_backward_", mutates_args=("logits",))
def _backward_in_place(
    upstream: Tensor, logits: Tensor, targets: Tensor, peak: Tensor, inverse: Tensor, ignore: int, smoothing: float
) -> None:
    from kernels import cross_entropy_triton

    cross_entropy_triton.gradient(logits, targets.contiguous(), peak, inverse, upstream, ignore, smoothing, logits)


def _remember(ctx, inputs, output) -> None:
    logits, targets, *ctx.options, ctx.in_place = inputs
    _, peak, inverse = output
    ctx.mark_non_differentiable(peak, inverse)
    ctx.save_for_backward(logits, targets, peak, inverse)


def _differentiate(ctx, upstream, _, __):
    logits, targets, peak, inverse = ctx.saved_tensors
    if ctx.in_place:
        logits = (
            logits.detach()
        )  # shares the values and the version: a second backward finds them overwritten and says so
        torch.ops.charlm.cross_entropy_backward_(upstream, logits, targets, peak, inverse, *ctx.options)
        return logits, None, None, None, None
    found = torch.ops.charlm.cross_entropy_backward(upstream, logits, targets, peak, inverse, *ctx.options)
    return found, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_remember)


@torch.library.custom_op("charlm::linear_cross_entropy", mutates_args=())
def _linear_forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, ignore: int, smoothing: float,
    chunk_rows: int, by_triton: bool, wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    _check_targets(targets, weight.shape[0], ignore)
    loss, dhidden, dweight, dbias = _empty_linear_outputs(hidden, weight, bias, wanted)
    for x in (loss, dweight, dbias):
        x.zero_()
    for start in range(0, len(hidden), chunk_rows):
        rows, wanted_rows = hidden[start : start + chunk_rows], targets[start : start + chunk_rows]
        logits = F.linear(rows, weight, bias)
        losses, gradient = _loss_and_gradient(logits, wanted_rows, ignore, smoothing, by_triton, wanted)
        loss += losses.sum()
        if wanted:
            dhidden[start : start + chunk_rows] = gradient @ weight
            dweight += gradient.T @ rows
            if bias is not None:
                dbias += gradient.sum(0, dtype=dbias.dtype)
    return loss, dhidden, dweight, dbias


@_linear_forward.register_fake
def _(hidden, weight, bias, targets, ignore, smoothing, chunk_rows, by_triton, wanted):
    return _empty_linear_outputs(hidden, weight, bias, wanted)


def _remember_linear(ctx, inputs, output) -> None:
    hidden, weight, bias, *_ = inputs
    _, *gradients = output
    ctx.mark_non_differentiable(*gradients)
    ctx.has_bias, ctx.dtypes = bias is not None, (hidden.dtype, weight.dtype)
    ctx.save_for_backward(*gradients)


def _differentiate_linear(ctx, upstream, *_):
    hidden_dtype, weight_dtype = ctx.dtypes
    dhidden, dweight, dbias = torch.ops.charlm.linear_cross_entropy_backward(upstream, *ctx.saved_tensors)
    dbias = dbias.to(weight_dtype) if ctx.has_bias else None
    return dhidden.to(hidden_dtype), dweight.to(weight_dtype), dbias, *([None] * 6)


@torch.library.custom_op("charlm::linear_cross_entropy_backward", mutates_args=())
def _linear_backward(
    upstream: Tensor, dhidden: Tensor, dweight: Tensor, dbias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """An operator, so that a second derivative is refused: to autograd the saved gradients are constants."""
    return dhidden * upstream, dweight * upstream, dbias * upstream


@_linear_backward.register_fake
def _(upstream, dhidden, dweight, dbias):
    return torch.empty_like(dhidden), torch.empty_like(dweight), torch.empty_like(dbias)


_linear_forward.register_autograd(_differentiate_linear, setup_context=_remember_linear)


def _loss_and_gradient(
    logits: Tensor, targets: Tensor, ignore: int, smoothing: float, by_triton: bool, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """Losses (n,) of a chunk of logits (n, V) and their gradient, written over the logits where that can be."""
    if by_triton:
        from kernels import cross_entropy_triton

        losses, peak, inverse = _empty_outputs(logits)
        targets = targets.contiguous()
        cross_entropy_triton.loss(logits, targets, ignore, smoothing, losses, peak, inverse)
        if wanted:
            one = losses.new_ones(1).expand(len(losses))
            cross_entropy_triton.gradient(logits, targets, peak, inverse, one, ignore, smoothing, logits)
        return losses, logits if wanted else None
    log_p = logits.log_softmax(-1, dtype=_precise(logits))
    losses = F.nll_loss(log_p, targets, ignore_index=ignore, reduction="none")
    counts = targets != ignore
    if smoothing > 0:
        losses = (1 - smoothing) * losses - torch.where(counts, smoothing * log_p.mean(-1), 0.0)
    if not wanted:
        return losses, None
    p = log_p.exp_()
    p[torch.arange(len(p), device=p.device), targets.where(counts, 0)] -= 1 - smoothing
    p = p.sub_(smoothing / p.shape[1]) if smoothing > 0 else p
    return losses, p.masked_fill_(~counts[:, None], 0.0).to(logits.dtype)


def _precise(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _empty_outputs(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Room for losses, peaks and inverse totals."""
    losses, peak, inverse = (logits.new_empty(logits.shape[0], dtype=_precise(logits)) for _ in range(3))
    return losses, peak, inverse


def _empty_linear_outputs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Room for the loss and the gradients, which are empty when nobody wants them. Those of the weights are sums over
    chunks, hence precise."""
    precise = _precise(hidden)
    return (
        hidden.new_empty((), dtype=precise),
        hidden.new_empty(hidden.shape if wanted else (0,)),
        weight.new_empty(weight.shape if wanted else (0,), dtype=precise),
        weight.new_empty(weight.shape[:1] if wanted and bias is not None else (0,), dtype=precise),
    )


def _check_targets(targets: Tensor, vocabulary: int, ignore: int) -> None:
    """On a GPU looking would wait for the device: there a wrong target shows as NaN."""
    if targets.device.type != "cpu":
        return
    wrong = ((targets < 0) | (targets >= vocabulary)) & (targets != ignore)
    if wrong.any():
        at = int(wrong.nonzero()[0])
        raise ValueError(f"targets[{at}] is {int(targets[at])}; it may be 0 to {vocabulary - 1}, or {ignore} to ignore")


def _check_in_place(logits: Tensor) -> None:
    if logits.is_leaf and logits.requires_grad:
        raise ValueError("in_place is True and logits is a leaf, whose values would be lost; it may be a result only")
    if logits.shape[0] > 1 and logits.stride(0) < logits.shape[1]:
        raise ValueError(
            "in_place is True and the rows of logits share memory; they have to lie apart: use contiguous()"
        )


def _refuse_float64(name: str, x: Tensor) -> None:
    if x.dtype == torch.float64 and not interpreting():
        raise ValueError(f"{name} is float64, which the Triton kernels take in the interpreter only; use float32")


def _check_logits(logits: Tensor, targets: Tensor, label_smoothing: float) -> None:
    if logits.ndim != 2 or logits.shape[1] < 1:
        raise ValueError(f"logits has shape {tuple(logits.shape)}; it has to be (rows, vocabulary)")
    if logits.dtype not in DTYPES:
        raise ValueError(f"logits is {logits.dtype}; it may be float32, float16 or bfloat16")
    if logits.stride(1) != 1 and logits.shape[1] > 1 and logits.numel() > 0:
        raise ValueError(f"logits' last dimension has stride {logits.stride(1)}; it has to be 1: use contiguous()")
    _check_rest(logits, targets, label_smoothing)


def _check_linear(hidden, weight, targets, bias, label_smoothing, chunk_rows) -> None:
    if hidden.ndim != 2:
        raise ValueError(f"hidden has shape {tuple(hidden.shape)}; it has to be (rows, width)")
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[1] or weight.shape[0] < 1:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; it has to be (vocabulary, {hidden.shape[1]})")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"bias has shape {tuple(bias.shape)}; it has to be ({weight.shape[0]},)")
    for name, x in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if x is None:
            continue
        if x.dtype not in DTYPES:
            raise ValueError(f"{name} is {x.dtype}; it may be float32, float16 or bfloat16")
        if x.dtype != hidden.dtype and autocast_dtype(hidden) is None:
            raise ValueError(f"{name} is {x.dtype} and hidden is {hidden.dtype}; they have to be the same")
        if x.device != hidden.device:
            raise ValueError(f"{name} is on {x.device} and hidden on {hidden.device}; they have to be together")
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows is {chunk_rows}; it may be 1 or more")
    _check_rest(hidden, targets, label_smoothing)


def _check_rest(rows: Tensor, targets: Tensor, label_smoothing: float) -> None:
    if tuple(targets.shape) != (len(rows),):
        raise ValueError(f"targets has shape {tuple(targets.shape)}; it has to be one a row, ({len(rows)},)")
    if targets.dtype != torch.int64:
        raise ValueError(f"targets is {targets.dtype}; it has to be int64")
    if targets.device != rows.device:
        raise ValueError(f"targets is on {targets.device} and the rows on {rows.device}; they have to be together")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; it may be 0 or more, below 1")
