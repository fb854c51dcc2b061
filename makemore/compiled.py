"""Steps of small models as compiled code: where that is possible, and the parts that several families have."""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from data.errors import UserError
from data.sources import cache_folder
from kernels.step import library
from kernels.step.draws import Sampling
from kernels.step.program import ACTIVATIONS, LAYER_NORM, RMS_NORM, SCALE, Program
from makemore.exact import PLAIN
from makemore.layers import ACTIVATIONS as FUNCTIONS
from makemore.layers import BatchNorm, LayerNorm, NoNorm, RMSNorm

NORMS = (LayerNorm, RMSNorm, NoNorm, BatchNorm)
MOST_PARAMETERS = 4 << 20  # copying the weights of more takes longer than a text; their products gain little
MOST_ROWS = 1024  # over the threads: of more, torch's products are faster, since they run on all threads


def compiled_functions(model: nn.Module, rows: int) -> library.Library | None:
    """The functions that take a step of `rows` rows of `model` in one call; None where there are none, or torch is the
    faster way."""
    if rows > MOST_ROWS // torch.get_num_threads():
        return None
    parameters = [*model.parameters()]
    if any(each.device.type != "cpu" or each.dtype != torch.float32 for each in parameters):
        return None
    return None if sum(each.numel() for each in parameters) > MOST_PARAMETERS else functions()


def training_functions(*tensors: Tensor | None, half: bool = False) -> library.Library | None:
    """The functions, for a part of a training step that reads `tensors`, of float32 or, with `half`, bfloat16; None
    where torch has to compute it: what is no plain tensor has no numbers to read, and what watches torch's operations
    would not see it."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return None
    if torch._C._len_torch_dispatch_stack() or (torch.is_autocast_enabled("cpu") and not half):
        return None
    dtypes = (torch.float32, torch.bfloat16) if half else (torch.float32,)
    for each in tensors:
        if each is not None and (type(each) not in PLAIN or each.device.type != "cpu" or each.dtype not in dtypes):
            return None
    return functions()


@functools.cache
def functions() -> library.Library | None:
    """What is compiled for this machine; None where no compiler is, or no folder to keep what it makes."""
    try:
        return library.load(Path(cache_folder()))
    except UserError:  # there is no folder
        return None


def draw_compiled(logits: Tensor, race: Tensor | None, sampling: Sampling, seen: Tensor) -> Tensor | None:
    """The tokens (B,) that exponential random numbers `race` (B, V) choose from `logits` (B, V), both float64; without
    them the likeliest. `seen` (B, V) bool: what a penalty applies to. None where torch has to find them."""
    if logits.dtype != torch.float64 or logits.device.type != "cpu" or (found := functions()) is None:
        return None
    B, V = logits.shape
    values, seen, tokens = (
        torch.empty(B + 2, V, dtype=torch.float64),
        seen.contiguous(),
        logits.new_empty(B, dtype=torch.int64),
    )
    values[:B] = logits
    found.draw(
        ctypes.addressof(sampling), values.data_ptr(), None if race is None else race.data_ptr(), seen.data_ptr(), B, V,
        values[B:].data_ptr(), tokens.data_ptr(),
    )  # fmt: skip
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
