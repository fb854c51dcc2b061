"""Steps of small models as compiled code: where that is possible, and the parts that several families have."""

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from data.errors import UserError
from data.sources import cache_folder
from kernels.step import library
from kernels.step.program import ACTIVATIONS, LAYER_NORM, RMS_NORM, SCALE, Program
from makemore.layers import ACTIVATIONS as FUNCTIONS
from makemore.layers import BatchNorm, LayerNorm, NoNorm, RMSNorm

NORMS = (LayerNorm, RMSNorm, NoNorm, BatchNorm)
MOST_PARAMETERS = 4 << 20  # copying the weights of more takes longer than a text; their products gain little
MOST_ROWS = 64  # of more, torch's products are faster


def compiled_function(model: nn.Module, rows: int) -> Callable[..., None] | None:
    """The function that takes a step of `rows` rows of `model` in one call; None where there is none, or torch is the
    faster way."""
    if rows > MOST_ROWS:
        return None
    parameters = [*model.parameters()]
    if any(each.device.type != "cpu" or each.dtype != torch.float32 for each in parameters):
        return None
    if sum(each.numel() for each in parameters) > MOST_PARAMETERS or (found := functions()) is None:
        return None
    return found.step


@functools.cache
def functions() -> library.Library | None:
    """What is compiled for this machine; None where no compiler is, or no folder to keep what it makes."""
    try:
        return library.load(Path(cache_folder()))
    except UserError:  # there is no folder
        return None


def draw_compiled(logits: Tensor, race: Tensor) -> Tensor | None:
    """The tokens (B,) for which softmax(logits) / race is the largest, both (B, V); `race` is overwritten. None where
    torch has to find them."""
    if logits.dtype != torch.float64 or logits.device.type != "cpu" or (found := functions()) is None:
        return None
    logits = logits.contiguous()
    tokens = torch.empty(len(logits), dtype=torch.int64)
    found.draw(logits.data_ptr(), race.data_ptr(), *logits.shape, tokens.data_ptr())
    return tokens


def number_of(activation: Callable[[Tensor], Tensor]) -> int:
    """The number that step.c knows an activation by."""
    return next(n for n, name in enumerate(ACTIVATIONS) if FUNCTIONS[name] is activation)


def add_norm(program: Program, norm: nn.Module, x: Tensor, out: Tensor) -> int:
    """The norm of `x` (rows, C), written to `out`; the operation's number."""
    C = x.shape[1]
    if isinstance(norm, NoNorm):
        return program.add(SCALE, C, C, x=x, weight=torch.ones(C), bias=torch.zeros(C), out=out)
    if isinstance(norm, BatchNorm):
        scale = norm.weight.detach() * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias.detach() - norm.running_mean * scale
        return program.add(SCALE, C, C, x=x, weight=scale, bias=shift, out=out)
    if isinstance(norm, RMSNorm):
        eps = torch.finfo(torch.float32).eps if norm.eps is None else norm.eps
        return program.add(RMS_NORM, C, C, x=x, weight=_detached(norm.weight), eps=eps, out=out)
    assert isinstance(norm, LayerNorm)  # NORMS has no other
    weight, bias = _detached(norm.weight), _detached(norm.bias)
    return program.add(LAYER_NORM, C, C, x=x, weight=weight, bias=bias, eps=norm.eps, out=out)


def _detached(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.detach()
