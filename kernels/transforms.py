"""What torch.func and forward-mode differentiation ask for, and operators that torch.func can differentiate.

An operator of torch.library drops a tangent without a word, and torch.func refuses to differentiate it. So the
functions ask here before they call one.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether a transform of torch.func (grad, vmap, jvp and what stands on them) is at work, compiled or not."""
    return torch._C._are_functorch_transforms_active()


def is_forward_mode(*tensors: Tensor | None) -> bool:
    """Whether a derivative is taken forward: by torch.func.jvp and what stands on it, or by dual numbers among
    `tensors`."""
    if forward_ad._current_level < 0:
        return False
    return is_transformed() or any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors)


def refuse_forward_mode(function: str, *tensors: Tensor | None) -> None:
    """Raise NotImplementedError where a derivative of `function`'s Triton kernels is taken forward."""
    if is_forward_mode(*tensors):
        raise NotImplementedError(
            f"{function} in Triton has no forward-mode derivative (torch.func.jvp, dual numbers); use backend='torch'"
        )


class Transformable:
    """An operator, and the same for torch.func to differentiate backward and to vectorise. A call takes the one that is
    needed."""

    def __init__(self, operator: Callable, setup_context: Callable | None = None, backward: Callable | None = None):
        """`setup_context` and `backward` are those that autograd has; without them a derivative is refused."""
        functions = {
            "generate_vmap_rule": True,
            "forward": staticmethod(lambda *inputs: operator(*inputs)),
            "setup_context": staticmethod(setup_context or (lambda ctx, inputs, output: None)),
            "backward": staticmethod(backward or _no_second_derivative),
        }
        differentiable: Any = type("Differentiable", (torch.autograd.Function,), functions)
        self.operator, self.differentiable = operator, differentiable.apply

    def __call__(self, *inputs: Any) -> Any:
        return self.differentiable(*inputs) if is_transformed() else self.operator(*inputs)


def _no_second_derivative(ctx: Any, *upstream: Tensor) -> Any:
    raise RuntimeError("the gradients of the Triton kernels have no derivative; use backend='torch'")
