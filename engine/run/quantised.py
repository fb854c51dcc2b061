"""Weights rounded to fewer bits, as safetensors files hold them, and back to float32.

int8 and int4: each matrix in groups of 32 numbers of a row, which share a scale. Matrices with a row for each id of the
vocabulary (embeddings and heads) have 8 bits in both: at 4 they cost most of the loss and save little. Vectors of
counting models are bfloat16, short vectors stay. bf16: all numbers are bfloat16. Sorted keys of counts are stored as
differences, which loses nothing.

A rounded tensor `name` is stored as `name.int8` (R, C) or `name.int4` (R, C / 2: two numbers a byte, the first one in
the low bits, 8 added to each) with `name.scale` (R, groups) in bfloat16; sorted keys as `name.steps`.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from data.errors import UserError

KINDS = {"int8": 8, "int4": 4, "bf16": 16}  # bits
GROUP = 32
SHORT = 1024  # numbers: vectors up to this length are biases and norms
ZERO = 8  # of a 4-bit number
FACTORS = torch.linspace(0.7, 1.15, 19)  # of the scale that reaches a group's largest number: what is tried
_STEPS = (torch.uint8, torch.uint16, torch.uint32)
_ROUNDED = {"int8": torch.int8, "int4": torch.uint8}


def quantise(weights: dict[str, Tensor], kind: str, vocab_size: int) -> dict[str, Tensor]:
    """The tensors of a file that holds `weights` rounded, `kind` being one of KINDS."""
    found: dict[str, Tensor] = {}
    for name, weight in weights.items():
        weight, bits = weight.detach().cpu(), KINDS[kind]
        if not weight.is_floating_point():
            found |= narrow(name, weight)
        elif bits < 16 and weight.ndim == 2:
            is_table = len(weight) == vocab_size or weight.shape[1] % 2
            found |= _rounded(name, weight.float(), 8 if is_table else bits)
        elif bits == 16 or weight.numel() > SHORT:
            found[name] = weight.bfloat16()
        else:
            found[name] = weight
    return found


def dequantise(stored: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The weights in float32, of a file's tensors; what is not rounded stays as it is. Raises UserError, with `folder`,
    for shapes, types and scales that do not go together."""
    found = {}
    for name, tensor in stored.items():
        base, _, form = name.rpartition(".")
        if form == "scale" and any(f"{base}.{rounded}" in stored for rounded in _ROUNDED):
            continue
        if form in _ROUNDED:
            found[base] = _restored(tensor, form, stored.get(f"{base}.scale"), f"{folder} is damaged: {name}")
        elif form == "steps":
            if tensor.ndim != 1 or tensor.dtype not in _STEPS:
                raise UserError(f"{folder} is damaged: {name} is {_said(tensor)}, not steps between sorted keys")
            found[base] = tensor.long().cumsum(0)
        else:
            found[name] = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return found


def shapes(stored: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights, from those of a file's tensors."""
    found = {}
    for name, shape in stored.items():
        base, _, form = name.rpartition(".")
        if form == "int4":
            found[base] = (*shape[:-1], 2 * shape[-1]) if shape else shape
        elif form in ("int8", "steps"):
            found[base] = shape
        elif form != "scale":
            found[name] = shape
    return found


def _rounded(name: str, weight: Tensor, bits: int) -> dict[str, Tensor]:
    """A matrix (R, C) with the scale of each group that has the least squared error."""
    groups = _in_groups(weight)  # (R, groups, GROUP)
    limit = 2 ** (bits - 1)
    numbers, scale = torch.zeros_like(groups), torch.ones(*groups.shape[:2], 1)
    least = torch.full_like(scale, torch.inf)
    for tried in _scales(groups, limit) if bits == 4 else [groups.abs().amax(-1, keepdim=True) / (limit - 1)]:
        tried = tried.bfloat16().float()  # 0 for zeros alone: its error, NaN, is no better
        rounded = (groups / tried).round().clamp(-limit, limit - 1)
        error = (rounded * tried - groups).square().sum(-1, keepdim=True)
        better = error < least
        least, scale = torch.where(better, error, least), torch.where(better, tried, scale)
        numbers = torch.where(better, rounded, numbers)
    flat, scales = numbers.flatten(1)[:, : weight.shape[1]], scale[..., 0].bfloat16()
    if bits == 8:
        return {f"{name}.int8": flat.to(torch.int8).contiguous(), f"{name}.scale": scales}
    low, high = (flat + ZERO).to(torch.uint8).view(len(flat), -1, 2).unbind(-1)
    return {f"{name}.int4": (low | high << 4).contiguous(), f"{name}.scale": scales}


def _scales(groups: Tensor, limit: int) -> Iterator[Tensor]:
    """The scales that are tried, (R, groups, 1) each: the largest number of a group at either end of the range, which
    is longer below zero; and some more, that cut it off or leave it room."""
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    for factor in FACTORS:
        yield -largest / limit * factor
        yield largest / (limit - 1) * factor


def _in_groups(weight: Tensor) -> Tensor:
    """A matrix (R, C) as (R, groups, GROUP), the last group filled up with zeros."""
    return F.pad(weight, (0, -weight.shape[1] % GROUP)).view(len(weight), -1, GROUP)


def _restored(tensor: Tensor, form: str, scale: Tensor | None, what: str) -> Tensor:
    if tensor.ndim != 2 or tensor.dtype != _ROUNDED[form]:
        raise UserError(f"{what} is {_said(tensor)}, not a matrix in {_ROUNDED[form]}")
    if form == "int4":
        tensor = torch.stack([tensor & 15, tensor >> 4], -1).flatten(1).to(torch.int8) - ZERO
    groups = (tensor.shape[0], -(-tensor.shape[1] // GROUP))
    if scale is None or tuple(scale.shape) != groups or not scale.is_floating_point():
        raise UserError(f"{what} needs a scale {groups}; there is {'none' if scale is None else _said(scale)}")
    return (_in_groups(tensor).float() * scale.float()[..., None]).flatten(1)[:, : tensor.shape[1]].contiguous()


def narrow(name: str, keys: Tensor) -> dict[str, Tensor]:
    """Integers: sorted ones as the steps between them, others as they are."""
    if keys.ndim != 1 or not len(keys):
        return {name: keys}
    steps = keys.diff(prepend=keys.new_zeros(1))
    fitting = [dtype for dtype in _STEPS if 0 <= int(steps.min()) and int(steps.max()) <= torch.iinfo(dtype).max]
    return {f"{name}.steps": steps.to(fitting[0])} if fitting else {name: keys}


def _said(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} in {tensor.dtype}"
