"""Measure the kernels beside torch's own on this GPU, in one run.

    python -m kernels.bench [--only attention] [--out docs/benchmarks/h200] [--smoke]

Prints TFLOP/s (attention, linear cross-entropy) or GB/s (norms, cross-entropy) of every operation, forward and
backward, for these kernels, torch eager, torch.compile, and SDPA on flash and on cuDNN; each with its share of what
this machine was just measured to do at best: copying memory, or multiplying matrices. Needs torch and triton only; with
--out writes a CSV, and a PNG where matplotlib is installed. --smoke runs everything once at tiny sizes, on any machine.
"""

import argparse
import csv
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import kernels
from kernels.attention import reference
from kernels.dispatch import interpreting, why_not

# The goal: TFLOP/s on an H200 at 1k, 4k and 16k tokens.
TARGETS = {
    ("forward", 64): (270, 350, 370),
    ("forward", 128): (280, 380, 430),
    ("backward", 64): (180, 250, 280),
    ("backward", 128): (190, 270, 310),
}
# Batch, heads, tokens, head size: the default model on names and on a stream, nanoGPT's baby GPT, GPT-2.
MODELS = ((64, 4, 32, 16), (32, 4, 64, 32), (64, 6, 256, 64), (12, 12, 1024, 64))


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


class Task(NamedTuple):
    """One operation at one size: `work` is what its forward and backward do, in FLOPs or bytes."""

    operation: str
    shape: str
    unit: str
    work: Mapping[str, float]
    inputs: tuple[Tensor, ...]
    who: dict[str, Callable]
    targets: Mapping[str, float]


def milliseconds(call: Callable[[], object], smoke: bool) -> float:
    """The median time of a call."""
    if not smoke:
        from triton.testing import do_bench

        return do_bench(call, warmup=50, rep=200, return_mode="median")
    started = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - started)


def sdpa(backend: SDPBackend) -> Callable:
    """torch's causal attention on one of its backends."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return attend


def with_compiled(who: dict[str, Callable], smoke: bool) -> dict[str, Callable]:
    """`who` and "torch.compile", which is its "torch eager" compiled for the sizes of one task alone: what was compiled
    for others is forgotten, or the compiler would go on with variable sizes, and eagerly after a few more."""
    if smoke:
        return who
    torch.compiler.reset()
    return who | {"torch.compile": torch.compile(who["torch eager"])}


def attention_tasks(device: str, smoke: bool) -> Iterator[Task]:
    """Causal attention of 16k tokens in sequences of 1k, 4k and 16k, 2,048 wide; and of this project's models."""
    lengths = (1024, 4096, 16384)
    sizes = [(16384 // T, 2048 // D, T, D) for D, T in itertools.product((64, 128), lengths)]
    for B, H, T, D in [(1, 2, 32, 16)] if smoke else [*sizes, *MODELS]:
        q, k, v = (torch.randn(B, H, T, D, device=device, dtype=_half(device), requires_grad=True) for _ in range(3))
        who: dict[str, Callable] = {"ours": partial(kernels.attention, backend="triton")}
        who |= {"SDPA": partial(F.scaled_dot_product_attention, is_causal=True)}
        if device != "cpu":
            who |= {"SDPA flash": sdpa(SDPBackend.FLASH_ATTENTION), "SDPA cuDNN": sdpa(SDPBackend.CUDNN_ATTENTION)}
        if B * H * T * T <= 2**30:  # beyond, the tables of scores do not fit
            who = with_compiled(who | {"torch eager": lambda q, k, v: reference.attention(q, k, v)[0]}, smoke)
        flops = 4 * B * H * T * T * D / 2
        has_target = (B, H, T, D) in sizes and not smoke
        targets = {way: TARGETS[way, D][lengths.index(T)] for way in ("forward", "backward")} if has_target else {}
        work = {"forward": flops, "backward": 2.5 * flops}
        yield Task("attention", f"B{B} H{H} T{T} D{D}", "TFLOP/s", work, (q, k, v), who, targets)


def norm_tasks(device: str, smoke: bool) -> Iterator[Task]:
    """4,096 rows of layer norm and RMS norm, and of layer norm with the residual add."""

    def layer(x, w, b):
        return F.layer_norm(x, x.shape[-1:], w, b)

    def rms(x, w):
        return F.rms_norm(x, x.shape[-1:], w, 1e-5)

    def added(x, w, b, r):
        return layer(x + r, w, b), x + r

    def ours_added(x, w, b, r):
        return kernels.layer_norm(x, w, b, residual=r, backend="triton")

    N, widths = (8, (32,)) if smoke else (4096, (64, 128, 384, 768, 1024, 2048, 4096, 8192, 16384))
    for C in widths:
        x, r = (torch.randn(N, C, device=device, dtype=_half(device), requires_grad=True) for _ in range(2))
        w, b = (torch.randn(C, device=device, dtype=_half(device), requires_grad=True) for _ in range(2))
        for kind, inputs, ours, plain, passes in (
            ("layer_norm", (x, w, b), partial(kernels.layer_norm, backend="triton"), layer, (2, 3)),
            ("rms_norm", (x, w), partial(kernels.rms_norm, eps=1e-5, backend="triton"), rms, (2, 3)),
            ("add + layer_norm", (x, w, b, r), ours_added, added, (4, 4)),
        ):
            size = x.numel() * x.element_size()
            work = {"forward": passes[0] * size, "backward": passes[1] * size}
            who = with_compiled({"ours": ours, "torch eager": plain}, smoke)
            yield Task(kind, f"{N} x {C}", "GB/s", work, inputs, who, {})


def cross_entropy_tasks(device: str, smoke: bool) -> Iterator[Task]:
    """Losses over 8,192 rows: of logits, and of a linear layer to GPT-2's vocabulary."""
    N, C = (8, 16) if smoke else (8192, 768)

    def plain(logits, targets):
        return F.cross_entropy(logits.float(), targets, reduction="sum")

    def capped(logits, targets):
        logits = 30 * torch.tanh(logits.float() / 30)
        return plain(logits, targets) + 1e-4 * logits.logsumexp(-1).square().sum()

    def linear(hidden, weight, targets):
        return plain(hidden @ weight.T, targets)

    def each(hidden, weight, targets):
        return F.cross_entropy((hidden @ weight.T).float(), targets, reduction="none")

    for V in (65,) if smoke else (65, 50257):
        logits = torch.randn(N, V, device=device, dtype=_half(device), requires_grad=True)
        targets = torch.randint(V, (N,), device=device)
        size = logits.numel() * logits.element_size()
        work = {"forward": size, "backward": 2 * size}
        ours = partial(kernels.cross_entropy, backend="triton")
        for kind, function, theirs in (
            ("cross_entropy", ours, plain),
            ("cross_entropy, capped, z-loss", partial(ours, softcap=30.0, z_loss=1e-4), capped),
        ):
            who = with_compiled({"ours": function, "torch eager": theirs}, smoke)
            yield Task(kind, f"{N} x {V}", "GB/s", work, (logits, targets), who, {})
    hidden, weight = (torch.randn(n, C, device=device, dtype=_half(device), requires_grad=True) for n in (N, V))
    shape, inputs = f"{N} x {C} to {V}", (hidden, weight, targets)
    over_linear = partial(kernels.linear_cross_entropy, backend="triton")
    who = with_compiled({"ours": over_linear, "torch eager": linear}, smoke)
    # Ours makes the gradients in the forward, so only the sum of both directions compares.
    yield Task("linear_cross_entropy", shape, "TFLOP/s", {"both": 6 * N * C * V}, inputs, who, {})
    who = with_compiled({"ours": partial(over_linear, reduction="none"), "torch eager": each}, smoke)
    # Ours computes the logits again in the backward, which is not counted as work.
    work = {"forward": 2 * N * C * V, "backward": 4 * N * C * V}
    yield Task("linear_cross_entropy a row", shape, "TFLOP/s", work, inputs, who, {})


def _half(device: str) -> torch.dtype:
    return torch.float32 if device == "cpu" else torch.bfloat16


# The operations by kind, each with its sizes.
TASKS: dict[str, Callable[[str, bool], Iterator[Task]]] = {
    "attention": attention_tasks, "norm": norm_tasks, "cross_entropy": cross_entropy_tasks,
}  # fmt: skip


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
    outs = outputs()
    upstream = [torch.randn_like(out) for out in outs]

    def backward() -> None:
        clear_gradients()
        torch.autograd.backward(outs, upstream, retain_graph=True)

    with torch.no_grad():
        forward = milliseconds(outputs, smoke)
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
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__.splitlines()[0])
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
