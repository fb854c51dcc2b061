"""Which backend runs: what this machine can do, and why it cannot do the rest. Imports no triton."""

import contextlib
import functools
import importlib.util
import os
from collections.abc import Callable

import torch

BACKENDS = ("auto", "triton", "torch")
MIN_CAPABILITY = (8, 0)  # Ampere: bfloat16 and asynchronous copies


@functools.cache
def interpreting() -> bool:
    """Whether Triton's kernels run in its interpreter: in NumPy, slowly, on any machine. Asked once: the kernels are
    made for one or the other when they are imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def _find_triton() -> bool:
    try:
        return importlib.util.find_spec("triton") is not None
    except ValueError:  # it was blocked: sys.modules["triton"] is None
        return False


HAS_TRITON = _find_triton()


@functools.cache
def why_not(device: torch.device | str) -> str | None:
    """Why the Triton kernels cannot run on tensors of `device`, and the way out; None when they can. Asked once a
    device: its answer is part of every call."""
    device = torch.device(device)
    if not HAS_TRITON:
        return "triton is not installed (pip install triton; Linux only)"
    if interpreting():
        return None
    if device.type != "cuda":
        return f"they need a GPU, not {device.type} (TRITON_INTERPRET=1 runs them on the CPU, slowly)"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        major, minor = torch.cuda.get_device_capability(device)
        return f"they need compute capability 8.0, and this GPU has {major}.{minor}"
    return None


def use_triton(backend: str, device: torch.device, wins: bool = False) -> bool:
    """Whether `backend` means Triton for tensors of `device`. `wins`: whether it was measured to be faster there.

    Raises ValueError for an unknown name and RuntimeError, with the reason, when "triton" cannot be honoured."""
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; it may be {', '.join(BACKENDS)}")
    if backend == "triton":
        if reason := why_not(device):
            raise RuntimeError(f"the Triton kernels cannot run here: {reason}; use backend='torch'")
        return True
    return backend == "auto" and wins and not interpreting() and why_not(device) is None


@functools.cache
def target_of(device: torch.device) -> str:
    """Which row of the kernels' tables `device` belongs to: "interpreter", "hip", "sm90" or "sm80"."""
    if interpreting():
        return "interpreter"
    if torch.version.hip is not None:
        return "hip"
    return "sm90" if torch.cuda.get_device_capability(device)[0] >= 9 else "sm80"


@functools.cache
def processors(device: torch.device) -> int:
    """The number of multiprocessors of a GPU; in the interpreter some, so that the same ways are taken."""
    return 8 if interpreting() else torch.cuda.get_device_properties(device).multi_processor_count


def on_its_device(launcher: Callable) -> Callable:
    """Make the GPU of the launcher's first tensor the current one: Triton launches there, wherever the tensors are."""

    @functools.wraps(launcher)
    def launch(*args, **kwargs):
        first = next(arg for arg in args if isinstance(arg, torch.Tensor))
        with torch.cuda.device(first.device) if first.is_cuda else contextlib.nullcontext():
            return launcher(*args, **kwargs)

    return launch
