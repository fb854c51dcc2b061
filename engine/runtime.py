"""The machine: device, dtype and compiler choices with their reasons, signals, peak memory."""

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Iterable, Iterator

import torch

from data.errors import UserError, nearest, warn
from engine.distributed.ranks import ALONE, Ranks

BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")  # what a CPU has that multiplies it, as torch calls them


def choose_device(wanted: str) -> tuple[torch.device, str]:
    """The device for `--device` and why. Raises UserError for one this machine does not have."""
    has_mps = torch.backends.mps.is_available()
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), "a CUDA device is there"
        if has_mps:
            return torch.device("mps"), "Apple's GPU is there and CUDA is not"
        return torch.device("cpu"), "neither CUDA nor MPS is there"
    kinds = ("auto", "cpu", "cuda", "mps")
    if wanted.split(":")[0] not in kinds:
        raise UserError(f"unknown device '{wanted}'; there are: {', '.join(kinds)}.{nearest(wanted, kinds)}")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise UserError(f"--device {wanted} is not a device; write cuda or cuda:0") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but torch sees no CUDA device here; use --device auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {wanted}, but this machine has {torch.cuda.device_count()} CUDA device(s)")
    if device.type == "mps" and not has_mps:
        raise UserError("--device mps, but torch sees no Apple GPU here; use --device auto")
    return device, "asked for"


def choose_dtype(wanted: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The arithmetic for `--dtype` and why. Weights stay float32; bfloat16 is autocast."""
    if wanted == "auto":
        if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "the GPU multiplies it natively"
        if device.type == "cpu":
            why = (
                "a large model tries bfloat16 first" if multiplies_bfloat16() else "this CPU does not multiply bfloat16"
            )
            return torch.float32, why
        return torch.float32, "safe on this device"
    return getattr(torch, wanted), "asked for"


def multiplies_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 by itself."""
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(found.get(name) for name in BFLOAT16)


def multiplies_tf32(device: torch.device) -> bool:
    """Whether `device` multiplies in TF32: float32 whose factors are rounded to 10 bits, NVIDIA's since 2020."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


@contextlib.contextmanager
def in_tf32() -> Iterator[None]:
    """A context in which CUDA's products of float32 are of TF32; what was set is set again afterwards."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def widest(device: torch.device) -> torch.dtype:
    """What sums and probabilities are computed in: float64, which Apple's GPUs have not."""
    return torch.float32 if device.type == "mps" else torch.float64


def choose_compile(wanted: str, device: torch.device) -> tuple[bool, str]:
    """Whether to torch.compile for `--compile`, and why."""
    if wanted == "auto":
        if device.type != "cuda":
            return False, "on CPU compiling a small model takes longer than it saves"
        return True, "small kernels fuse well on a GPU"
    return wanted == "on", "asked for"


def computes_apart(device: torch.device) -> bool:
    """Whether `device` computes while this process does something else. Then batches are made ahead, and saves written,
    on threads; on a CPU these would take from the step what they give (docs/log.md)."""
    return device.type == "cuda"


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """A context in which matrix products run in `dtype`."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


def move_and_compile(model: torch.nn.Module, device: torch.device, wanted: str) -> None:
    """Move `model` to `device`, and compile it there if `--compile` (`wanted`) says so."""
    model.to(device)
    if choose_compile(wanted, device)[0]:
        compile_or_warn(model)


def compile_or_warn(model: torch.nn.Module) -> None:
    """Compile `model` in place; where the compiler is missing or fails at the first call, warn once and go on
    eagerly."""
    eager = type(model).forward
    compiled = torch.compile(model.forward)
    tried = False

    def forward(*args, **kwargs):
        nonlocal tried
        if tried:
            return compiled(*args, **kwargs)
        try:
            out = compiled(*args, **kwargs)
        except Exception as error:  # whatever a compiler, its toolchain or the driver may throw
            if is_out_of_memory(error):
                raise
            reason = str(error).strip().splitlines() or [type(error).__name__]
            warn(f"torch.compile does not work here, going on without it ({reason[0][:160]})")
            model.forward = eager.__get__(model)
            return model.forward(*args, **kwargs)
        tried = True
        return out

    model.forward = forward


def c_compiler() -> str | None:
    """The C++ compiler that torch.compile would use on CPU, or None."""
    for name in filter(None, (os.environ.get("CXX"), "g++", "clang++", "c++")):
        if shutil.which(name):
            return name
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: torch has a class for its own on CUDA, elsewhere and in libraries a sentence."""
    sentences = ("can't allocate memory", "MPS backend out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in sentences)


class Interrupted(Exception):
    """Training stopped by a signal, after saving."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def may_handle(signum: int) -> bool:
    """Whether this thread may install a handler for a signal that is not to be ignored."""
    is_main = threading.current_thread() is threading.main_thread()
    return is_main and signal.getsignal(signum) not in (signal.SIG_IGN, None)


class Signals:
    """Inside, the first SIGINT, SIGTERM, SIGHUP (a closed terminal) or SIGUSR1 (a scheduler's notice) only raises a
    flag, and the second leaves at once. What was inherited ignored, as under nohup, stays ignored; outside of the main
    thread Python has no handlers, and signals are whoever's they were.

    Several processes (`ranks`) act on what all of them know any to have received, and have no second signal: it would
    tear the step of the others, and torchrun ends those that take too long."""

    HANDLED = [
        getattr(signal, name)
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK", "SIGUSR1")
        if hasattr(signal, name)
    ]

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.received: int | None = None
        self._agreed: int | None = None

    def __enter__(self) -> "Signals":
        self._before = {s: signal.signal(s, self._handle) for s in self.HANDLED if may_handle(s)}
        return self

    def __exit__(self, *_) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    @property
    def agreed(self) -> int | None:
        """The signal on which to stop, or None."""
        return self.received if self.ranks.world == 1 else self._agreed

    def agree(self, received: Iterable[float]) -> None:
        """Take what each process has received (0: nothing)."""
        self._agreed = self._agreed or next((int(signum) for signum in received if signum), None)

    def stop(self) -> bool:
        """Whether to stop; every process asks at the same time."""
        if self.ranks.world > 1:
            self.agree(self.ranks.gather([self.received or 0])[:, 0])
        return self.agreed is not None

    def _handle(self, signum: int, _frame) -> None:
        is_alone = self.ranks.world == 1
        if self.received is not None and is_alone:
            os._exit(128 + signum)
        if self.received is None and self.ranks.is_first:
            # Straight to the descriptor, and without minding its end: the reader of a pipe may be gone by the same
            # Ctrl-C.
            with contextlib.suppress(OSError):
                once_more = b"; once more to leave at once" if is_alone else b""
                os.write(2, b"\nfinishing the step and saving" + once_more + b"\n")
        self.received = signum
