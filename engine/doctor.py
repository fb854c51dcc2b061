"""What this machine has, what every `auto` will choose here and why: `python -m engine.doctor`."""

import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator

import torch

import kernels
from data import cache
from data.errors import UserError, run_command
from data.program import command
from data.sources import cache_folder
from engine import runtime, threads
from kernels import auto
from makemore import compiled

PURPOSE = "What this machine has, what every `auto` will choose here, and why."


def facts() -> Iterator[tuple[str, str]]:
    """What is here, a line each."""
    yield "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    cuda = f", built for CUDA {torch.version.cuda}" if torch.version.cuda else ", CPU build"
    yield "torch", f"{torch.__version__}{cuda}"
    yield "numpy", importlib.metadata.version("numpy")
    yield "triton", _version("triton") or "not installed"
    yield "processors", f"{os.cpu_count()}, {torch.get_num_threads()} threads used, {_vector_unit()}"
    yield "memory", _memory()
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(i)
            yield f"cuda:{i}", f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB, compute {gpu.major}.{gpu.minor}"
    yield "MPS", "yes" if torch.backends.mps.is_available() else "no"
    yield "bfloat16", "native" if _has_bfloat16() else "not native here"
    yield "C++ compiler", runtime.c_compiler() or "none (torch.compile on CPU needs one)"
    yield (
        "decoding",
        "compiled code, for small models on a CPU" if compiled.functions() else "torch: nothing compiles C here",
    )
    yield "cache", _cache()
    yield "$CHARLM_DATA", os.environ.get("CHARLM_DATA") or "not set (data sets by name are downloaded)"


def choices() -> Iterator[tuple[str, str, str]]:
    """Each `auto`, what it becomes here, and why."""
    device, why = runtime.choose_device("auto")
    yield "--device", str(device), why
    dtype, why = runtime.choose_dtype("auto", device)
    yield "--dtype", str(dtype).removeprefix("torch."), why
    compile_, why = runtime.choose_compile("auto", device)
    yield "--compile", "on" if compile_ else "off", why
    yield "--cuda-graph", "off", "no GPU has measured it yet"
    reason = kernels.why_not(device)
    for flag, measured in (("--attention", f"but Triton for {auto.WINS['attention']}"), ("--norm-kernel", "faster")):
        why = f"the Triton kernels cannot run: {reason}" if reason else "Triton was not yet measured to win here"
        yield flag, "torch", measured if auto.on_hopper(device) else why


def advice() -> list[str]:
    """What would make training faster here."""
    found = []
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        found.append("a GPU: models from some ten million parameters on train many times faster on one")
        if importlib.util.find_spec("triton") is None and os.path.exists("/proc/driver/nvidia"):
            found.append("this machine has an NVIDIA driver, but this torch is a CPU build: install the CUDA build")
    physical = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if busy := threads.busy_note():
        found.append(busy)
    if torch.get_num_threads() < physical:
        found.append(f"OMP_NUM_THREADS is below the {physical} processors that this process may use: raise or unset it")
    if torch.cuda.is_available() and not runtime.c_compiler():
        found.append("a C compiler: torch.compile cannot build its launchers without one")
    return found or ["nothing that this program knows of"]


def main() -> int:
    if len(sys.argv) > 1:
        print(f"usage: {command('doctor')}\n\n{PURPOSE}")
        return 0 if sys.argv[1] in ("-h", "--help") else 2
    print("This machine")
    for name, value in facts():
        print(f"  {name:<14} {value}")
    print("\nWhat auto chooses")
    for name, value, why in choices():
        print(f"  {name:<14} {value:<10} {why}")
    print("\nWhat would make it faster")
    for line in advice():
        print(f"  - {line}")
    return 0


def _cache() -> str:
    try:
        return f"{cache_folder()}, {cache.in_words(cache.size())} ({command('prepare')} --list, --clear)"
    except UserError as error:
        return f"none: {error}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _vector_unit() -> str:
    return torch.backends.cpu.get_cpu_capability()


def _has_bfloat16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.mps.is_available() or runtime.multiplies_bfloat16()


def _memory() -> str:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return "unknown"
    page = os.sysconf("SC_PAGE_SIZE")
    available = ""
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        available = f", {os.sysconf('SC_AVPHYS_PAGES') * page / 1e9:.1f} GB free"
    return f"{os.sysconf('SC_PHYS_PAGES') * page / 1e9:.1f} GB{available}"


if __name__ == "__main__":
    sys.exit(run_command(main))
