"""One small shape of attention, compiled, forward and backward, against torch in float64; python -m bench.gpu.shapes.

Head sizes 16 and 32 with 4 warps are said to be miscompiled for Hopper by some versions of Triton: a fault spoils the
process that meets it, so each shape has one of its own. Judged as the tests judge (tests/kernel_helpers.py): of every
output and gradient the error may be twice that of torch in the same dtype, four times in float32. The same call again
has to give the same bits.
"""

import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import kernels
from bench.gpu.jobs import job_parser
from bench.gpu.machine import device, synchronize
from bench.gpu.plan import Shape
from bench.gpu.rows import Row, append
from kernels.attention import launch, reference

RELATIVE = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}  # of the norm, as in tests/kernel_helpers.py
REPEATS = 20  # some faults are seen now and then only
B, H = 2, 2


OPTIONS: dict[str, dict] = {
    "causal": {},
    "full": {"causal": False},
    "window+alibi": {"window": 40, "slopes": [2.0 ** (-2 * i) for i in range(1, H + 1)]},
    "grouped": {},
}


def excess(ours: Tensor, exact: Tensor, plain: Tensor, dtype: torch.dtype) -> float:
    """The error of `ours` as a share of what it may be: above 1 it is wrong."""
    o, r, p = ours.double(), exact.double(), plain.double()
    if not bool(o.isfinite().all()):
        return float("inf")
    times = 4 if dtype == torch.float32 else 2  # a product of float32 is three of TF32's
    allowed = times * (p - r).abs().max() + times * torch.finfo(dtype).eps * r.abs().max()
    name = str(dtype).removeprefix("torch.")
    relative = max(RELATIVE[name] * float(r.norm()), times * float((p - r).norm()))
    worst = [(float((o - r).abs().max()), float(allowed)), (float((o - r).norm()), relative)]
    return max(error / most if most else float(error > 0) * float("inf") for error, most in worst if error or most)


def outputs(attend: Callable[..., Tensor], inputs: list[Tensor], upstream: Tensor, dtype: torch.dtype) -> dict:
    """The output of `attend` in `dtype`, and the gradients of q, k and v."""
    leaves = [x.to(dtype, copy=True).requires_grad_() for x in inputs]
    out = attend(*leaves)
    out.backward(upstream.to(dtype))
    return dict(zip(("output", "dq", "dk", "dv"), [out.detach(), *(x.grad for x in leaves)], strict=True))


def announced() -> Iterator[str]:
    """From the first `next` on, each launch is printed before it is made; then every kernel's, as they were."""
    original, seen = launch.constants, dict[str, str]()

    def constants(kernel: str, *args, **kwargs) -> dict:
        chosen = original(kernel, *args, **kwargs)
        seen[kernel] = f"{kernel} {chosen['BLOCK_M']}x{chosen['BLOCK_N']}, {chosen['num_warps']} warps"
        print(f"at: {seen[kernel]}", flush=True)
        return chosen

    launch.constants = constants
    yield ""
    launch.constants = original
    yield "; ".join(seen.values())


def measure(shape: Shape, repeats: int) -> Row:
    """The row of a shape: its largest error, as a share of what it may be."""
    dtype, options = getattr(torch, shape.dtype), dict(OPTIONS[shape.options])
    generator = torch.Generator().manual_seed(shape.D * 10007 + shape.T)
    heads = 1 if shape.options == "grouped" else H
    sizes = [(B, n, shape.T, shape.D) for n in (H, heads, heads, H)]
    drawn = [torch.randn(size, generator=generator).to(dtype).to(device()) for size in sizes]
    inputs, upstream = drawn[:3], drawn[3]
    if "slopes" in options:
        options["slopes"] = torch.tensor(options["slopes"], device=device())

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = kernels.attention(q, k, v, **options, backend="triton")
        assert isinstance(out, Tensor)  # nobody asks for the log-sum-exp
        return out

    def torchs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return reference.attention(q, k, v, **options)[0]

    launches = announced()
    next(launches)
    found = outputs(ours, inputs, upstream, dtype)
    synchronize()
    tiles = next(launches)
    plain, exact = (outputs(torchs, inputs, upstream, kind) for kind in (dtype, torch.float64))
    shares = {name: excess(found[name], exact[name], plain[name], dtype) for name in found}
    worst = max(shares, key=lambda name: shares[name])
    unequal = 0
    for _ in range(repeats):
        again = outputs(ours, inputs, upstream, dtype)
        unequal += any(not torch.equal(found[name], again[name]) for name in found)
    synchronize()
    note = f"worst: {worst}; {tiles}"
    if unequal:
        note = f"{unequal} of {repeats} repeats gave other bits; {note}"
    outcome = "ok" if shares[worst] <= 1 and not unequal else "failed"
    unit = "of the allowed error"
    return Row("tests", "attention shape", str(shape), value=shares[worst], unit=unit, outcome=outcome, note=note)


def main() -> int:
    parser = job_parser("shapes", __doc__)
    parser.add_argument("shape", nargs=5, metavar=("D", "T", "DTYPE", "OPTIONS", "WAY"))
    args = parser.parse_args()
    D, T, dtype, options, way = args.shape
    row = measure(Shape(int(D), int(T), dtype, options, way), 1 if args.smoke else REPEATS)
    append(args.rows, row)
    print(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
