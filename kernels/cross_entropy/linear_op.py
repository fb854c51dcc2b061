"""The operators of cross-entropy over a linear layer, for autograd and the compiler: a chunk of rows at a time.

`summed` is the sum. Liger Kernel's idea (Hsu et al. 2024): the forward takes each chunk through logits, loss and
gradient, and saves only the gradients of hidden, weight and bias. `by_row` is the loss of each row, whose upstream
gradients are known in the backward only: that one takes each chunk through logits and gradient.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cross_entropy.checks import Options, check_targets
from kernels.cross_entropy.op import empty_outputs
from kernels.dispatch import interpreting
from kernels.dtypes import precise_dtype

MULTIPLE = 64  # of which the logits of a row are a multiple on a GPU


@torch.library.custom_op("charlm::linear_cross_entropy", mutates_args=())
def _sum_op(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor | None,
    ignore: int, smoothing: float, z_loss: float, softcap: float, chunk_rows: int, by_triton: bool, wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The sum, and the gradients of hidden (N, C), weight and bias. `wanted`: which of these need one. `weights`: 0 for
    ignored rows."""
    options, total = Options(ignore, smoothing, z_loss, softcap), hidden.new_zeros((), dtype=precise_dtype(hidden))
    layer = _Layer(weight, bias, min(chunk_rows, len(hidden)))
    gradients = _Gradients(hidden, layer, wanted)
    weights = None if weights is None else weights.reshape(-1)
    for rows, logits, chunk_targets in _chunks(hidden, layer, targets, ignore, chunk_rows):
        factors = None if weights is None else weights[rows]
        losses, gradient = loss_and_gradient(logits, chunk_targets, factors, options, by_triton, any(wanted))
        total += losses.sum() if factors is None else (losses * factors).sum()
        if gradient is not None:
            gradients.add(rows, gradient)
    return total, *gradients.all


@_sum_op.register_fake
def _(
    hidden, weight, bias, targets, weights, ignore, smoothing, z_loss, softcap, chunk_rows, by_triton, wanted
):  # fmt: skip
    return hidden.new_empty((), dtype=precise_dtype(hidden)), *_empty_gradients(hidden, weight, wanted)


def _setup_sum(ctx, inputs, output) -> None:
    *differentiable, _, _, _, _, _, _, _, _, ctx.wanted = inputs
    _, *gradients = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*gradients)
    ctx.dtypes = [None if x is None else x.dtype for x in differentiable]
    ctx.save_for_backward(*gradients)


def _backward_of_sum(ctx, upstream, *_):
    if upstream is None:
        return (None,) * 12
    gradients = torch.ops.charlm.linear_cross_entropy_backward(upstream, *ctx.saved_tensors)
    return *_as_wanted(gradients, ctx.dtypes, ctx.wanted), *([None] * 9)


@torch.library.custom_op("charlm::linear_cross_entropy_backward", mutates_args=())
def _scale_op(upstream: Tensor, dhidden: Tensor, dweight: Tensor, dbias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale the saved gradients. An operator, because autograd would take them for constants in a second derivative."""
    return dhidden * upstream, dweight * upstream, dbias * upstream


@_scale_op.register_fake
def _(upstream, dhidden, dweight, dbias):
    return torch.empty_like(dhidden), torch.empty_like(dweight), torch.empty_like(dbias)


@torch.library.custom_op("charlm::linear_cross_entropy_rows", mutates_args=())
def _rows_op(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor,
    ignore: int, smoothing: float, z_loss: float, softcap: float, chunk_rows: int, by_triton: bool,
) -> Tensor:  # fmt: skip
    """The loss of each row, (N,)."""
    options, out = (
        Options(ignore, smoothing, z_loss, softcap),
        hidden.new_empty(len(hidden), dtype=precise_dtype(hidden)),
    )
    layer = _Layer(weight, bias, min(chunk_rows, len(hidden)))
    for rows, logits, chunk_targets in _chunks(hidden, layer, targets, ignore, chunk_rows):
        out[rows], _ = loss_and_gradient(logits, chunk_targets, None, options, by_triton, False)
    return out


@_rows_op.register_fake
def _(hidden, weight, bias, targets, ignore, smoothing, z_loss, softcap, chunk_rows, by_triton):
    return hidden.new_empty(hidden.shape[0], dtype=precise_dtype(hidden))


def _setup_rows(ctx, inputs, output) -> None:
    *tensors, ctx.ignore, ctx.smoothing, ctx.z_loss, ctx.softcap, ctx.chunk_rows, ctx.by_triton = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _backward_of_rows(ctx, upstream):
    if upstream is None:
        return (None,) * 10
    differentiable, wanted = ctx.saved_tensors[:3], list(ctx.needs_input_grad[:3])
    gradients = torch.ops.charlm.linear_cross_entropy_rows_backward(
        upstream, *ctx.saved_tensors, ctx.ignore, ctx.smoothing, ctx.z_loss, ctx.softcap, ctx.chunk_rows, ctx.by_triton,
        wanted,
    )  # fmt: skip
    dtypes = [None if x is None else x.dtype for x in differentiable]
    return *_as_wanted(gradients, dtypes, wanted), *([None] * 7)


@torch.library.custom_op("charlm::linear_cross_entropy_rows_backward", mutates_args=())
def _rows_backward_op(
    upstream: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor,
    ignore: int, smoothing: float, z_loss: float, softcap: float, chunk_rows: int, by_triton: bool, wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of hidden, weight and bias, from logits that are computed again. `upstream` (N,)."""
    options, layer = Options(ignore, smoothing, z_loss, softcap), _Layer(weight, bias, min(chunk_rows, len(hidden)))
    gradients = _Gradients(hidden, layer, wanted)
    for rows, logits, chunk_targets in _chunks(hidden, layer, targets, ignore, chunk_rows):
        _, gradient = loss_and_gradient(logits, chunk_targets, upstream[rows], options, by_triton, True)
        assert gradient is not None  # it was asked for
        gradients.add(rows, gradient)
    return gradients.all


@_rows_backward_op.register_fake
def _(
    upstream, hidden, weight, bias, targets, ignore, smoothing, z_loss, softcap, chunk_rows, by_triton, wanted
):  # fmt: skip
    return _empty_gradients(hidden, weight, wanted)


_sum_op.register_autograd(_backward_of_sum, setup_context=_setup_sum)
_rows_op.register_autograd(_backward_of_rows, setup_context=_setup_rows)
summed, by_row = torch.ops.charlm.linear_cross_entropy, torch.ops.charlm.linear_cross_entropy_rows


class _Layer:
    """The linear layer, with room for the logits of a chunk.

    On a GPU its vocabulary is filled up with zeros: an H200 takes 5 to 8 times as long for the logits of GPT-2's 50,257
    tokens, and for the product back, as for those of 50,304."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int):
        """weight (V, C), bias (V,), and the most rows of a chunk."""
        self.vocabulary = len(weight)
        more = -self.vocabulary % MULTIPLE if weight.is_cuda or interpreting() else 0
        self.weight = F.pad(weight, (0, 0, 0, more)) if more else weight
        self.bias = F.pad(bias, (0, more)) if more and bias is not None else bias
        self.room = weight.new_empty(rows, self.vocabulary + more)

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, C) -> (n, V), in memory that the next chunk takes."""
        logits = self.room[: len(hidden)]
        if self.bias is None:
            torch.mm(hidden, self.weight.T, out=logits)
        else:
            torch.addmm(self.bias, hidden, self.weight.T, out=logits)
        return logits[:, : self.vocabulary]

    def back(self, gradient: Tensor) -> Tensor:
        """The gradient (n, V) of the logits that were made last -> that of hidden (n, C)."""
        if len(self.weight) > self.vocabulary:
            whole = self.room[: len(gradient)]
            if gradient.data_ptr() != whole.data_ptr():  # Triton has written it there
                whole[:, : self.vocabulary] = gradient
            whole[:, self.vocabulary :] = 0.0  # of an ignored row without numbers they would be NaN
            gradient = whole
        return gradient @ self.weight


def _chunks(
    hidden: Tensor, layer: _Layer, targets: Tensor, ignore: int, chunk_rows: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Which rows each chunk has, their logits (n, V), in memory that the next chunk takes, and their targets (n,)."""
    check_targets(targets, layer.vocabulary, ignore)
    targets = targets.reshape(-1)
    for start in range(0, len(hidden), chunk_rows):
        rows = slice(start, start + chunk_rows)
        yield rows, layer.logits(hidden[rows]), targets[rows]


def loss_and_gradient(
    logits: Tensor, targets: Tensor, upstream: Tensor | None, options: Options, by_triton: bool, needs_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Losses (n,) of a chunk of logits (n, V), and their gradient (n, V) times `upstream` (n,), None for ones. Triton
    writes it over the logits."""
    if by_triton:
        from kernels.cross_entropy import kernel

        losses, row_max, inv_sum = empty_outputs(logits)
        targets = targets.contiguous()
        kernel.loss(logits, targets, options, losses, row_max, inv_sum)
        if needs_grad:
            upstream = losses.new_ones(1).expand(len(losses)) if upstream is None else upstream
            kernel.gradient(logits, targets, row_max, inv_sum, upstream, options, logits)
        return losses, logits if needs_grad else None
    ignore, smoothing, z_loss, softcap = options
    shrunk = None
    if softcap:
        shrunk = torch.tanh(logits.to(precise_dtype(logits)) / softcap)
    capped = logits if shrunk is None else softcap * shrunk
    log_p = capped.log_softmax(-1, dtype=precise_dtype(logits))
    losses = F.nll_loss(log_p, targets, ignore_index=ignore, reduction="none")
    counted = targets != ignore
    if smoothing > 0:
        losses = (1 - smoothing) * losses - torch.where(counted, smoothing * log_p.mean(-1), 0.0)
    if z_loss:
        lse = capped.to(log_p.dtype).logsumexp(-1)
        losses = losses + torch.where(counted, z_loss * lse.square(), 0.0)
    if not needs_grad:
        return losses, None
    p = log_p.exp_()
    if z_loss:
        p *= (1 + 2 * z_loss * lse)[:, None]
    p[torch.arange(len(p), device=p.device), targets.where(counted, 0)] -= 1 - smoothing
    p = p.sub_(smoothing / p.shape[1]) if smoothing > 0 else p
    if shrunk is not None:
        p *= 1 - shrunk.square_()
    if upstream is not None:
        p *= upstream[:, None]
    return losses, p.masked_fill_(~counted[:, None], 0.0).to(logits.dtype)


class _Gradients:
    """The gradients of hidden, weight and bias, a chunk at a time."""

    def __init__(self, hidden: Tensor, layer: _Layer, wanted: list[bool]):
        self.hidden, self.layer, self.wanted = hidden, layer, wanted
        weight = layer.weight[: layer.vocabulary]
        self.all = self.dhidden, self.dweight, self.dbias = _empty_gradients(hidden, weight, wanted)
        self.dweight.zero_()
        self.dbias.zero_()

    def add(self, rows: slice, gradient: Tensor) -> None:
        """Add what the gradient (n, V) of some rows of logits makes of each that is wanted."""
        of_hidden, of_weight, of_bias = self.wanted
        if of_hidden:
            self.dhidden[rows] = self.layer.back(gradient)
        if of_weight:
            _add_product(self.dweight, gradient.T, self.hidden[rows])
        if of_bias:
            self.dbias += gradient.sum(0, dtype=self.dbias.dtype)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add the product a b to `total`, summed in the dtype of `total`, which is float32 at least."""
    if not a.is_cuda:
        total += a.to(total.dtype) @ b.to(total.dtype)
    elif a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)


def _empty_gradients(hidden: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Empty tensors for the gradients; without elements for one that is not wanted. Those of weight and bias are sums
    over chunks, so in float32 at least."""
    dtype = precise_dtype(hidden)
    of_hidden, of_weight, of_bias = wanted
    return (
        hidden.new_empty(hidden.shape if of_hidden else (0,)),
        weight.new_empty(weight.shape if of_weight else (0,), dtype=dtype),
        weight.new_empty(weight.shape[:1] if of_bias else (0,), dtype=dtype),
    )


def _as_wanted(gradients: tuple, dtypes: list, wanted: list[bool]) -> Iterator[Tensor | None]:
    """Each gradient in the dtype of its input, None where it is not wanted."""
    for gradient, dtype, is_wanted in zip(gradients, dtypes, wanted, strict=True):
        yield gradient.to(dtype) if is_wanted else None
