"""Layer norm (Ba, Kiros & Hinton 2016) and RMS norm (Zhang & Sennrich 2019), a residual add in the same pass.

The functions, their operators for autograd and the compiler, and the modules. launch.py runs the Triton kernels,
reference.py is a plain version.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.dispatch import use_triton
from kernels.dtypes import DTYPES, autocast_dtype, refuse_float64
from kernels.transforms import Transformable, refuse_forward_mode

MAX_WIDTH = 65536


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Layer norm of x (..., C) over its last dimension, times weight (C,), plus bias (C,), each optional. With
    `residual` (..., C): the norm of x + residual, and that sum.

    float32, float16 or bfloat16; C is 1 to 65,536. A residual or weights of another dtype than x's are taken as they
    are (as under autocast); the results have the wider dtype of x and residual. Saved for the backward: the sum, the
    weight, and mean and 1/std of each row in float32. The gradients are deterministic.

    Raises ValueError for arguments that do not fit, RuntimeError for backend "triton" where it cannot run."""
    _check(x, weight, bias, residual, eps)
    if use_triton(backend, x.device):
        return _triton(x, residual, weight, bias, eps, rms=False)
    s = x if residual is None else x + residual
    if autocast_dtype(s) is None:
        weight, bias = (None if vector is None else vector.to(s.dtype) for vector in (weight, bias))
    y = F.layer_norm(s, s.shape[-1:], weight, bias, eps)
    return y if residual is None else (y, s)


def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    residual: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """RMS norm: x over the root of its mean square, times weight; otherwise as `layer_norm`. `eps`: by default
    float32's, 1.2e-7 (for float64 its own), as in torch."""
    if eps is None:
        eps = torch.finfo(torch.float64 if x.dtype == torch.float64 else torch.float32).eps
    _check(x, weight, None, residual, eps)
    if use_triton(backend, x.device):
        return _triton(x, residual, weight, None, eps, rms=True)
    s = x if residual is None else x + residual
    # Under autocast s may be narrower than the weight, which torch's fused kernel does not take.
    y = F.rms_norm(s, s.shape[-1:], None if weight is None else weight.to(s.dtype), eps)
    return y if residual is None else (y, s)


class LayerNorm(nn.LayerNorm):
    """`layer_norm` over the last dimension, with its weight and bias; (x, residual=None) -> y, or (y, x + residual)."""

    def __init__(self, width: int, eps: float = 1e-5, bias: bool = True, backend: str = "auto"):
        super().__init__(width, eps, bias=bias)
        self.backend = backend

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        return layer_norm(x, self.weight, self.bias, self.eps, residual=residual, backend=self.backend)


class RMSNorm(nn.RMSNorm):
    """`rms_norm` over the last dimension, with its weight; (x, residual=None) -> y, or (y, x + residual)."""

    def __init__(self, width: int, eps: float | None = None, backend: str = "auto"):
        super().__init__(width, eps)
        self.backend = backend

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        return rms_norm(x, self.weight, self.eps, residual=residual, backend=self.backend)


def _triton(x, residual, weight, bias, eps, rms):
    refuse_forward_mode("a norm", x, residual, weight, bias)
    refuse_float64("x", x)
    y, s, _, _ = _forward(x, residual, weight, bias, eps, rms)
    return y if residual is None else (y, s)


@torch.library.custom_op("charlm::norm", mutates_args=())
def _forward_op(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float, rms: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from kernels.norm import launch

    y, s, mean, rstd = _empty_outputs(x, residual, rms)
    rows, added = _as_rows(x), None if residual is None else _as_rows(residual)
    launch.forward(rows, added, _contiguous(weight), _contiguous(bias), eps, rms, _as_rows(y), _as_rows(s), mean, rstd)
    return y, s, mean, rstd


@_forward_op.register_fake
def _(x, residual, weight, bias, eps, rms):
    return _empty_outputs(x, residual, rms)


@torch.library.custom_op("charlm::norm_backward", mutates_args=())
def _backward_op(
    dy: Tensor,
    ds: Tensor | None,
    s: Tensor,
    weight: Tensor | None,
    has_bias: bool,
    mean: Tensor,
    rstd: Tensor,
    rms: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    from kernels.norm import launch

    dx = s.new_empty(s.shape)
    dw, db = launch.backward(
        _as_rows(dy), None if ds is None else _as_rows(ds), _as_rows(s), _contiguous(weight), has_bias, mean, rstd, rms,
        _as_rows(dx),
    )  # fmt: skip
    return dx, rstd.new_empty(0) if dw is None else dw, rstd.new_empty(0) if db is None else db


@_backward_op.register_fake
def _(dy, ds, s, weight, has_bias, mean, rstd, rms):
    return _empty_gradients(s, weight, has_bias, rstd)


def _setup_context(ctx, inputs, output) -> None:
    x, residual, weight, bias, _, ctx.rms = inputs
    _, s, mean, rstd = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.dtypes = x.dtype, None if residual is None else residual.dtype, None if bias is None else bias.dtype
    ctx.save_for_backward(x if residual is None else s, weight, mean, rstd)


def _backward(ctx, dy, ds, _, __):
    s, weight, mean, rstd = ctx.saved_tensors
    x_dtype, residual_dtype, bias_dtype = ctx.dtypes
    dy = torch.zeros_like(s) if dy is None else dy
    ds = ds if residual_dtype is not None else None
    dx, dw, db = _gradients(dy, ds, s, weight, bias_dtype is not None, mean, rstd, ctx.rms)
    return (
        dx.to(x_dtype),
        None if residual_dtype is None else dx.to(residual_dtype),
        None if weight is None else dw.to(weight.dtype),
        None if bias_dtype is None else db.to(bias_dtype),
        None,
        None,
    )


_forward_op.register_autograd(_backward, setup_context=_setup_context)
_forward = Transformable(torch.ops.charlm.norm, _setup_context, _backward)
_gradients = Transformable(torch.ops.charlm.norm_backward)


def _empty_outputs(x: Tensor, residual: Tensor | None, rms: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Empty tensors for y, the sum, mean and rstd; of no rows for the sum without a residual and the mean for RMS."""
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    rows = x.numel() // x.shape[-1]
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    return (
        x.new_empty(x.shape, dtype=dtype),
        x.new_empty(x.shape if residual is not None else (0, x.shape[-1]), dtype=dtype),
        x.new_empty(0 if rms else rows, dtype=precise),
        x.new_empty(rows, dtype=precise),
    )


def _empty_gradients(s: Tensor, weight: Tensor | None, has_bias: bool, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    C = s.shape[-1]
    return (
        s.new_empty(s.shape),
        s.new_empty(0 if weight is None else C, dtype=rstd.dtype),
        s.new_empty(C if has_bias else 0, dtype=rstd.dtype),
    )


def _as_rows(x: Tensor) -> Tensor:
    """x as (N, C), contiguous; a copy where it was not."""
    return x.reshape(-1, x.shape[-1]).contiguous()


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _check(x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float) -> None:
    if x.ndim == 0 or not 1 <= x.shape[-1] <= MAX_WIDTH:
        raise ValueError(f"x has shape {tuple(x.shape)}; its last dimension may be 1 to {MAX_WIDTH}")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual has shape {tuple(residual.shape)}; it has to be x's, {tuple(x.shape)}")
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None and vector.shape != x.shape[-1:]:
            raise ValueError(f"{name} has shape {tuple(vector.shape)}; it has to be ({x.shape[-1]},)")
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias), ("residual", residual)):
        if tensor is None:
            continue
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{name} is {tensor.dtype}; it may be float32, float16 or bfloat16")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device} and x on {x.device}; they have to be together")
    if not eps >= 0:
        raise ValueError(f"eps is {eps}; it may be 0 or more")
