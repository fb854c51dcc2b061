"""Every operation in Triton and in torch, in float32, beside its reference in float64: `python -m kernels --check`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

import kernels
from kernels.attention import reference as attention
from kernels.cross_entropy import reference as cross_entropy
from kernels.dispatch import why_not
from kernels.norm import reference as norm

T, HEADS, HEAD_SIZE = 200, 2, 32  # of attention: tiles that are skipped, masked and whole, and an unfinished one
ROWS, WIDTH, VOCABULARY = 200, 100, 3000
EPS = 1e-5


class Case(NamedTuple):
    """An operation: `run(backend, *tensors)`, its `reference(*tensors)`, and the shapes of the tensors by name."""

    name: str
    run: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    shapes: Mapping[str, tuple[int, ...]]


def cases(targets: Tensor) -> list[Case]:
    """All operations. `targets` (ROWS,) are those of the two losses."""
    qkv = dict.fromkeys("qkv", (1, HEADS, T, HEAD_SIZE))
    rows = {"x": (ROWS, WIDTH), "weight": (WIDTH,)}
    return [
        Case("attention", _on(kernels.attention), lambda q, k, v: attention.attention(q, k, v)[0], qkv),
        Case(
            "layer_norm",
            _on(kernels.layer_norm, eps=EPS),
            lambda x, w, b: norm.layer_norm(x, w, b, EPS)[0],
            rows | {"bias": (WIDTH,)},
        ),
        Case("rms_norm", _on(kernels.rms_norm, eps=EPS), lambda x, w: norm.rms_norm(x, w, EPS)[0], rows),
        Case(
            "cross_entropy",
            lambda backend, logits: kernels.cross_entropy(logits, targets, reduction="none", backend=backend),
            lambda logits: cross_entropy.cross_entropy(logits, targets),
            {"logits": (ROWS, VOCABULARY)},
        ),
        Case(
            "linear_cross_entropy",
            lambda backend, h, w: kernels.linear_cross_entropy(h, w, targets, chunk_rows=ROWS // 4, backend=backend),
            lambda h, w: cross_entropy.linear_cross_entropy(h, w, targets).sum(),
            {"hidden": (ROWS, WIDTH), "weight": (VOCABULARY, WIDTH)},
        ),
    ]


def _on(function: Callable[..., Any], **options: float) -> Callable[..., Tensor]:
    return lambda backend, *tensors: function(*tensors, **options, backend=backend)


def differences(case: Case, backend: str, device: str, rng: torch.Generator) -> dict[str, float]:
    """The largest difference of the output and of each gradient from the reference's, over its largest element."""
    tensors = [torch.randn(shape, generator=rng, dtype=torch.float64).to(device) for shape in case.shapes.values()]
    exact, upstream = _derived(case.reference, tensors, None, rng)
    found, _ = _derived(lambda *some: case.run(backend, *some), [x.float() for x in tensors], upstream, rng)
    names = ["output", *(f"gradient of {name}" for name in case.shapes)]
    pairs = zip(names, found, exact, strict=True)
    return {name: float((ours.double() - e).abs().max() / e.abs().max()) for name, ours, e in pairs}


def _derived(
    function: Callable[..., Tensor], tensors: list[Tensor], upstream: Tensor | None, rng: torch.Generator
) -> tuple[list[Tensor], Tensor]:
    """The output of `function` and the gradients of `tensors` for an upstream gradient, by default a random one."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    output = function(*leaves)
    if upstream is None:
        upstream = torch.randn(output.shape, generator=rng, dtype=output.dtype).to(output.device)
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream.to(output.dtype))], upstream


def print_differences() -> None:
    """Print the differences of Triton and of torch for each operation, and the largest one of Triton. Raises
    RuntimeError where Triton cannot run."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if reason := why_not(device):
        raise RuntimeError(f"the Triton kernels cannot run here: {reason}")
    rng = torch.Generator()
    targets = torch.randint(VOCABULARY, (ROWS,), generator=rng.manual_seed(0)).to(device)
    print(f"{'':44}{'Triton':>10}{'torch':>10}")
    largest = 0.0
    for case in cases(targets):
        triton, plain = (differences(case, backend, device, rng.manual_seed(0)) for backend in ("triton", "torch"))
        for i, name in enumerate(triton):
            print(f"{'' if i else case.name:22}{name:22}{triton[name]:10.1e}{plain[name]:10.1e}", flush=True)
        largest = max(largest, *triton.values())
    print(f"\nlargest difference of Triton: {largest:.1e}")
