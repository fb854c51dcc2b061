"""What this machine can run of the Triton kernels, and why not the rest; `--check`: whether they compute it right."""

import argparse
import importlib.metadata
import sys

import torch

from kernels.auto import WINS
from kernels.dispatch import HAS_TRITON, interpreting, why_not

PURPOSE = "What this machine can run of the Triton kernels, and why not the rest."
OPERATIONS = {
    "attention": "causal and full, grouped heads, windows, key mask, ALiBi, soft cap, dropout, packed lengths",
    "layer_norm, rms_norm": "with the residual add; rows of 1 to 65,536",
    "cross_entropy": "loss and gradient, in place if wanted; weights a row, z-loss, soft cap, smoothing",
    "linear_cross_entropy": "the same over a linear layer, logits a chunk at a time",
}


def main() -> int:
    """Print the report, or with --check the differences; the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description=PURPOSE)
    parser.add_argument("--check", action="store_true", help="run each operation beside its reference in float64")
    return check() if parser.parse_args().check else report()


def check() -> int:
    """Print how far each operation is from its reference; 2 where Triton cannot run."""
    from kernels.check import print_differences

    try:
        print_differences()
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def report() -> int:
    """Print what this machine can run."""
    print(
        f"torch {torch.__version__}, triton {importlib.metadata.version('triton') if HAS_TRITON else 'not installed'}"
    )
    devices = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    for device in devices:
        name = f" ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else ""
        reason = why_not(device)
        if reason is None:
            print(f"{device}{name}: all of them{', in the interpreter (slow)' if interpreting() else ''}")
        else:
            print(f"{device}{name}: none; {reason}")
    print("\nThe operations, on torch everywhere:")
    for operation, what in OPERATIONS.items():
        print(f"  {operation:<22}{what}")
    print(f"\nauto takes Triton where it was measured to win, on Hopper: attention with {WINS['attention']},")
    print(f"cross-entropy of {WINS['cross_entropy']}")
    if HAS_TRITON:
        print(f"python -m {__package__} --check sets each beside its reference in float64")
        print(f"python -m {__package__}.aot compiles all of them for sm_80, sm_90 and gfx942, without a GPU")
    return 0


if __name__ == "__main__":
    sys.exit(main())
