"""The dtypes that the operations take, and those they compute in. Imports no triton."""

import torch

from kernels.dispatch import interpreting

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def precise_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype that sums over x are held in: float32, or float64 for a float64 x."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def refuse_float64(name: str, x: torch.Tensor) -> None:
    """Raise ValueError for a float64 `x`, unless the kernels run in the interpreter."""
    if x.dtype == torch.float64 and not interpreting():
        raise ValueError(f"{name} is float64, which the Triton kernels take in the interpreter only; use float32")


def autocast_dtype(x: torch.Tensor) -> torch.dtype | None:
    """The dtype that autocast casts x to; None where it is off, and for float64, which it leaves alone."""
    kind = x.device.type
    if (
        x.dtype == torch.float64 or kind == "meta" or not torch.is_autocast_enabled(kind)
    ):  # meta has no autocast to ask about
        return None
    return torch.get_autocast_dtype(kind)


def check_alike(name: str, x: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """Raise ValueError unless x has a dtype that the operations take, and dtype and device of `other`; autocast makes
    dtypes equal."""
    if x.dtype not in DTYPES:
        raise ValueError(f"{name} is {x.dtype}; it may be float32, float16 or bfloat16")
    if x.dtype != other.dtype and (autocast_dtype(other) is None or autocast_dtype(x) is None):
        raise ValueError(f"{name} is {x.dtype} and {other_name} is {other.dtype}; they have to be the same")
    if x.device != other.device:
        raise ValueError(f"{name} is on {x.device} and {other_name} on {other.device}; they have to be together")
