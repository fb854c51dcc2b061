"""Measure the kernels beside torch's own on this GPU, in one run.

    python -m kernels.bench [--only attention] [--out docs/benchmarks/h200] [--smoke]

Prints TFLOP/s (attention, linear cross-entropy) or GB/s (norms, cross-entropy) of every operation, forward and
backward, for these kernels, torch eager, torch.compile, and SDPA on flash and on cuDNN; each with its share of what
this machine was just measured to do at best: copying memory, or multiplying matrices. Needs torch and triton only; with
--out writes a CSV, and a PNG where matplotlib is installed. --smoke runs everything once at tiny sizes, on any machine.
"""

import argparse
import csv
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.bench_tasks import TASKS, Task
from kernels.dispatch import interpreting, why_not


class Row(NamedTuple):
    """One measurement."""

    operation: str
    shape: str
    direction: str
    who: str
    ms: float
    rate: float
    unit: str
    share: float  # of the machine's measured best
    target: float | None


def milliseconds(call: Callable[[], object], smoke: bool) -> float:
    """The median time of a call."""
    if not smoke:
        from triton.testing import do_bench

        return do_bench(call, warmup=50, rep=200, return_mode="median")
    started = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - started)


def print_failure(task: Task, name: str, error: Exception) -> None:
    """Say on stderr that an implementation cannot run, and why."""
    print(f"  {task.operation} {task.shape} {name}: {str(error).strip().splitlines()[0]}", file=sys.stderr)


def measure(
    task: Task,
    ceilings: Mapping[str, float],
    smoke: bool,
    failed: Callable[[Task, str, Exception], None] = print_failure,
) -> Iterator[Row]:
    """A row for each implementation and direction; `failed` is called for each that cannot run."""
    for name, function in task.who.items():
        try:
            times = _times(function, task.inputs, tuple(task.work), smoke)
        except Exception as error:  # a backend that this GPU, dtype or torch does not have
            failed(task, name, error)
            continue
        for direction, ms in times.items():
            rate = task.work[direction] / ms / (1e9 if task.unit == "TFLOP/s" else 1e6)
            share = rate / ceilings[task.unit]
            yield Row(
                task.operation, task.shape, direction, name, ms, rate, task.unit, share, task.targets.get(direction)
            )


def _times(
    function: Callable, inputs: tuple[Tensor, ...], directions: tuple[str, ...], smoke: bool
) -> dict[str, float]:
    def outputs() -> list[Tensor]:
        out = function(*inputs)
        return list(out) if isinstance(out, tuple) else [out]

    def clear_gradients() -> None:
        for x in inputs:
            x.grad = None

    def both() -> None:
        clear_gradients()
        outputs()[0].backward()

    if directions == ("both",):
        return {"both": milliseconds(both, smoke)}
    with torch.no_grad():
        forward = milliseconds(outputs, smoke)
    if directions == ("forward",):
        return {"forward": forward}
    outs = outputs()
    upstream = [torch.randn_like(out) for out in outs]

    def backward() -> None:
        clear_gradients()
        torch.autograd.backward(outs, upstream, retain_graph=True)

    return {"forward": forward, "backward": milliseconds(backward, smoke)}


def ceilings_of(device: str, smoke: bool) -> dict[str, float]:
    """The best of this machine: GB/s of a copy (read and write), TFLOP/s of a half-precision matrix product."""
    n, dtype = (64, torch.float32) if smoke else (8192, torch.bfloat16)
    x = torch.empty(n * n * 8, device=device, dtype=dtype)
    y = torch.empty_like(x)
    a, b = torch.randn(2, n, n, device=device, dtype=dtype)
    copy = statistics.median(milliseconds(lambda: y.copy_(x), smoke) for _ in range(3))
    product = statistics.median(milliseconds(lambda: a @ b, smoke) for _ in range(3))
    return {"GB/s": 2 * x.numel() * x.element_size() / copy / 1e6, "TFLOP/s": 2 * n**3 / product / 1e9}


def write(rows: list[Row], about: str, path: Path) -> None:
    """The rows as `path`.csv and, with matplotlib, the attention and layer norm ones as `path`.png."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".csv").open("w", newline="") as file:
        print(f"# {about}", file=file)
        csv.writer(file).writerows([Row._fields, *rows])
    print(f"written: {path.with_suffix('.csv')}")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: matplotlib is not installed (pip install matplotlib)")
        return
    groups = sorted({(row.operation, row.direction, row.unit) for row in rows})
    figure = Figure(figsize=(6 * 3, 3.2 * -(-len(groups) // 3)), layout="constrained")
    for i, (operation, direction, unit) in enumerate(groups):
        axes = figure.add_subplot(-(-len(groups) // 3), 3, i + 1)
        chosen = [row for row in rows if (row.operation, row.direction) == (operation, direction)]
        shapes = list(dict.fromkeys(row.shape for row in chosen))
        for who in dict.fromkeys(row.who for row in chosen):
            points = {row.shape: row.rate for row in chosen if row.who == who}
            axes.plot(shapes, [points.get(shape, math.nan) for shape in shapes], "o-", label=who)
        axes.set_title(f"{operation}, {direction}")
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
        axes.tick_params("x", rotation=30, labelsize=7)
        axes.legend(fontsize=7)
    figure.suptitle(about)
    figure.savefig(path.with_suffix(".png"), dpi=110)
    print(f"written: {path.with_suffix('.png')}")


def main() -> int:
    """Measure, print, write; the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of an operation's name: attention, norm, cross_entropy")
    parser.add_argument("--out", type=Path, help="write PATH.csv and PATH.png")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, once: does it run?")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if (reason := why_not(device)) or (interpreting() and not args.smoke):
        reason = reason or "TRITON_INTERPRET is set: times of the interpreter mean nothing"
        print(f"nothing to measure: {reason}", file=sys.stderr)
        return 2
    import triton
    from torch._functorch import config

    config.donated_buffer = False  # a backward is timed again and again over one forward
    name = torch.cuda.get_device_name() if device == "cuda" else "the interpreter"
    about = f"{time.strftime('%Y-%m-%d')}, {name}, torch {torch.__version__}, triton {triton.__version__}"
    ceilings = ceilings_of(device, args.smoke)
    print(f"{about}\nat best: {', '.join(f'{value:,.0f} {unit}' for unit, value in ceilings.items())}\n")
    print("| operation | shape | direction | who | ms | rate | share of the best | target |\n" + "|---" * 8 + "|")
    rows = []
    for task in (task for tasks_of in TASKS.values() for task in tasks_of(device, args.smoke)):
        if args.only not in task.operation:
            continue
        for row in measure(task, ceilings, args.smoke):
            rows.append(row)
            target = "" if row.target is None else f"{row.target:.0f}"
            print(
                f"| {row.operation} | {row.shape} | {row.direction} | {row.who} | {row.ms:.4f} "
                f"| {row.rate:.1f} {row.unit} | {row.share:.0%} | {target} |",
                flush=True,
            )
    if args.out:
        write(rows, about, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
