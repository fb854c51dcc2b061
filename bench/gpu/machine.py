"""This machine: its name and versions, and the most that it was measured to do; python -m bench.gpu.machine.

The two ceilings are those of kernels/bench.py: GB/s of a copy, read and written, and TFLOP/s of a product of matrices.
"""

import contextlib
import importlib.metadata
import platform
import subprocess
import sys
import time

import torch

from bench.gpu.jobs import ROOT, job_parser
from bench.gpu.rows import Row, append
from kernels.bench import ceilings_of

PACKAGES = ("triton", "numpy")


def device() -> torch.device:
    """The GPU, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    """Wait for the GPU; raises RuntimeError where something on it has failed."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def about(smoke: bool) -> list[Row]:
    """What has to be the same for measurements to be compared: the card, the versions, the commit; and the date."""
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    facts = {"card": card(), "sizes": "toy (--smoke)" if smoke else "real", "versions": ", ".join(versions)}
    facts |= {"commit": commit(), "date": time.strftime("%Y-%m-%d %H:%M")}
    return [Row("machine", "about", name, note=fact) for name, fact in facts.items()]


def card() -> str:
    """The name of the GPU and its driver's CUDA."""
    if not torch.cuda.is_available():
        return "no GPU: Triton's interpreter on a CPU"
    made_for = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()} (compute capability {major}.{minor}, {made_for})"


def commit() -> str:
    """The commit that is checked out, with a mark where files were changed since."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty= and changes", "--exclude=*", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return "unknown (there is no git here)"
    return done.stdout.strip() if done.returncode == 0 else "unknown (this is no checkout)"


def main() -> int:
    args = job_parser("machine", __doc__).parse_args()
    for unit, value in ceilings_of(device().type, args.smoke).items():
        what = {"GB/s": "copy", "TFLOP/s": "product"}[unit]
        append(args.rows, Row("machine", what, "at best", value=value, unit=unit))
        print(f"{what}: {value:,.0f} {unit}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
