"""Layer norm and RMS norm in plain torch: what the kernels are tested against, in any floating dtype."""

from torch import Tensor


def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The layer norm of x + residual over the last dimension, and that sum."""
    x = x if residual is None else x + residual
    centred = x - x.mean(-1, keepdim=True)
    y = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    y = y if weight is None else y * weight
    return (y if bias is None else y + bias), x


def rms_norm(x: Tensor, weight: Tensor | None, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The RMS norm of x + residual over the last dimension, and that sum."""
    x = x if residual is None else x + residual
    y = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    return (y if weight is None else y * weight), x
