"""Cross-entropy over the output of a linear layer, whose logits are never all held.

The function, its operators for autograd and the compiler, and the module. Liger Kernel's idea (Hsu et al. 2024): the
forward takes a chunk of rows at a time through logits, loss and gradient, and saves only the gradients of hidden,
weight and bias.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.cross_entropy.op import IGNORE, check_shared, check_targets, cross_entropy, empty_outputs
from kernels.dispatch import use_triton
from kernels.dtypes import DTYPES, autocast_dtype, precise_dtype, refuse_float64
from kernels.transforms import is_forward_mode, is_transformed, refuse_forward_mode

CHUNK_ELEMENTS = 1 << 25  # logits of one chunk: 128 MB in float32


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
    Nothing is computed for an input that needs no gradient. Under autocast the products are in its dtype, the losses in
    float32. Inside a transform of torch.func and for forward-mode derivatives all logits are held, and differentiated
    by torch. Raises as `cross_entropy`."""
    _check(hidden, weight, targets, bias, label_smoothing, chunk_rows)
    by_triton = use_triton(backend, hidden.device, wins=False)
    if by_triton:
        refuse_forward_mode("linear_cross_entropy", hidden, weight, bias)
        refuse_float64("hidden", hidden)
    if narrow := autocast_dtype(hidden):
        hidden, weight = hidden.to(narrow), weight.to(narrow)
        bias = None if bias is None else bias.to(narrow)
    if chunk_rows is None:
        chunk_rows = max(1, CHUNK_ELEMENTS // weight.shape[0])
    if is_transformed() or is_forward_mode(hidden, weight, bias):
        return cross_entropy(
            F.linear(hidden, weight, bias),
            targets,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            backend="triton" if by_triton else "torch",
        )
    wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in (hidden, weight, bias)]
    loss, _, _, _ = torch.ops.charlm.linear_cross_entropy(
        hidden, weight, bias, targets, ignore_index, label_smoothing, chunk_rows, by_triton, wanted
    )
    return loss


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
        self.options: dict[str, Any] = {
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
            "chunk_rows": chunk_rows,
            "backend": backend,
        }

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, self.weight, targets, self.bias, **self.options)


@torch.library.custom_op("charlm::linear_cross_entropy", mutates_args=())
def _forward_op(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, ignore: int, smoothing: float,
    chunk_rows: int, by_triton: bool, wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`wanted`: of hidden, weight and bias, which need a gradient."""
    check_targets(targets, weight.shape[0], ignore)
    loss, dhidden, dweight, dbias = _empty_outputs(hidden, weight, wanted)
    of_hidden, of_weight, of_bias = wanted
    for x in (loss, dweight, dbias):
        x.zero_()
    room = _rows_apart(hidden, min(chunk_rows, len(hidden)), weight.shape[0])
    for start in range(0, len(hidden), chunk_rows):
        chunk, chunk_targets = hidden[start : start + chunk_rows], targets[start : start + chunk_rows]
        logits = room[: len(chunk)]
        if bias is None:
            torch.mm(chunk, weight.T, out=logits)
        else:
            torch.addmm(bias, chunk, weight.T, out=logits)
        losses, gradient = _loss_and_gradient(logits, chunk_targets, ignore, smoothing, by_triton, any(wanted))
        loss += losses.sum()
        if gradient is None:
            continue
        if of_hidden:
            dhidden[start : start + chunk_rows] = gradient @ weight
        if of_weight:
            _add_product(dweight, gradient.T, chunk)
        if of_bias:
            dbias += gradient.sum(0, dtype=dbias.dtype)
    return loss, dhidden, dweight, dbias


@_forward_op.register_fake
def _(hidden, weight, bias, targets, ignore, smoothing, chunk_rows, by_triton, wanted):
    return _empty_outputs(hidden, weight, wanted)


def _setup_context(ctx, inputs, output) -> None:
    *differentiable, _, _, _, _, _, ctx.wanted = inputs
    _, *gradients = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*gradients)
    ctx.dtypes = [None if x is None else x.dtype for x in differentiable]
    ctx.save_for_backward(*gradients)


def _backward(ctx, upstream, *_):
    if upstream is None:
        return (None,) * 9
    gradients = torch.ops.charlm.linear_cross_entropy_backward(upstream, *ctx.saved_tensors)
    wanted = zip(gradients, ctx.dtypes, ctx.wanted, strict=True)
    return *(gradient.to(dtype) if is_wanted else None for gradient, dtype, is_wanted in wanted), *([None] * 6)


@torch.library.custom_op("charlm::linear_cross_entropy_backward", mutates_args=())
def _backward_op(upstream: Tensor, dhidden: Tensor, dweight: Tensor, dbias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale the saved gradients. An operator, because autograd would take them for constants in a second derivative."""
    return dhidden * upstream, dweight * upstream, dbias * upstream


@_backward_op.register_fake
def _(upstream, dhidden, dweight, dbias):
    return torch.empty_like(dhidden), torch.empty_like(dweight), torch.empty_like(dbias)


_forward_op.register_autograd(_backward, setup_context=_setup_context)


def _loss_and_gradient(
    logits: Tensor, targets: Tensor, ignore: int, smoothing: float, by_triton: bool, needs_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Losses (n,) of a chunk of logits (n, V), and their gradient (n, V), which Triton writes over the logits."""
    if by_triton:
        from kernels.cross_entropy import kernel

        losses, row_max, inv_sum = empty_outputs(logits)
        targets = targets.contiguous()
        kernel.loss(logits, targets, ignore, smoothing, losses, row_max, inv_sum)
        if needs_grad:
            upstream = losses.new_ones(1).expand(len(losses))
            kernel.gradient(logits, targets, row_max, inv_sum, upstream, ignore, smoothing, logits)
        return losses, logits if needs_grad else None
    log_p = logits.log_softmax(-1, dtype=precise_dtype(logits))
    losses = F.nll_loss(log_p, targets, ignore_index=ignore, reduction="none")
    counted = targets != ignore
    if smoothing > 0:
        losses = (1 - smoothing) * losses - torch.where(counted, smoothing * log_p.mean(-1), 0.0)
    if not needs_grad:
        return losses, None
    p = log_p.exp_()
    p[torch.arange(len(p), device=p.device), targets.where(counted, 0)] -= 1 - smoothing
    p = p.sub_(smoothing / p.shape[1]) if smoothing > 0 else p
    return losses, p.masked_fill_(~counted[:, None], 0.0).to(logits.dtype)


def _rows_apart(like: Tensor, rows: int, columns: int) -> Tensor:
    """An empty matrix (rows, columns), its rows a multiple of 64 elements apart: a GPU loads and multiplies rows that
    begin anywhere, as those of GPT-2's 50,257 logits, two bytes at a time."""
    return like.new_empty(rows, -(-columns // 64) * 64)[:, :columns]


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add the product a b to `total`, summed in the dtype of `total`, which is float32 at least."""
    if not a.is_cuda:
        total += a.to(total.dtype) @ b.to(total.dtype)
    elif a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)


def _empty_outputs(hidden: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Empty tensors for the loss and the gradients; without elements for a gradient that is not wanted. Those of weight
    and bias are sums over chunks, so in float32 at least."""
    dtype = precise_dtype(hidden)
    of_hidden, of_weight, of_bias = wanted
    return (
        hidden.new_empty((), dtype=dtype),
        hidden.new_empty(hidden.shape if of_hidden else (0,)),
        weight.new_empty(weight.shape if of_weight else (0,), dtype=dtype),
        weight.new_empty(weight.shape[:1] if of_bias else (0,), dtype=dtype),
    )


def _check(hidden, weight, targets, bias, label_smoothing, chunk_rows) -> None:
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
        if x.dtype != hidden.dtype and (autocast_dtype(hidden) is None or autocast_dtype(x) is None):
            raise ValueError(f"{name} is {x.dtype} and hidden is {hidden.dtype}; they have to be the same")
        if x.device != hidden.device:
            raise ValueError(f"{name} is on {x.device} and hidden on {hidden.device}; they have to be together")
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows is {chunk_rows}; it may be 1 or more")
    check_shared(hidden, targets, label_smoothing)
