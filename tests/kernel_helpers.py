"""What the kernels' tests share: the rule that every output and gradient has to satisfy, and pairwise cases."""

import itertools
import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RELATIVE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DTYPES = tuple(RELATIVE)


def check(
    name: str, ours: Tensor, exact: Tensor, plain: Tensor, dtype: torch.dtype, terms: Tensor | None = None
) -> None:
    """Assert that `ours` is as near to `exact` (torch in float64) as `plain` (torch in the kernel's dtype), twice; in
    float32 on a GPU, where a product is three of TF32's, four times.

    Where the exact value is no number, neither may ours be one, and an infinity has to be the same one. `terms`: the
    size of what was added up to make the value, where much of it cancels; it may be off by two roundings of those."""
    assert ours.shape == exact.shape, f"{name} has shape {tuple(ours.shape)}, not {tuple(exact.shape)}"
    o, r, p = ours.double().cpu(), exact.double().cpu(), plain.double().cpu()
    assert torch.equal(o.isnan(), r.isnan()), f"{name}: {o.isnan().sum()} NaNs, {r.isnan().sum()} expected"
    infinite = r.isinf()
    assert torch.equal(o[infinite], r[infinite]), f"{name}: wrong infinities"
    finite = r.isfinite() & p.isfinite()
    o, r, p = o[finite], r[finite], p[finite]
    if not r.numel():
        return
    terms = torch.zeros(()) if terms is None else terms.cpu()[finite]
    eps = torch.finfo(dtype).eps
    times = 4 if DEVICE == "cuda" and dtype == torch.float32 else 2
    error, allowed = (o - r).abs().max(), times * (p - r).abs().max() + times * eps * max(r.abs().max(), terms.max())
    assert error <= allowed, f"{name}: off by {error:.2e}, {allowed:.2e} allowed"
    if r.norm() > 0:
        relative = (o - r).norm() / r.norm()
        # Where torch itself cannot do better, neither need the kernel: a mean of 1e4 under a deviation of 1e-2.
        allowed = max(RELATIVE[dtype], times * (p - r).norm() / r.norm(), times * eps * terms.norm() / r.norm())
        assert relative <= allowed, f"{name}: relative error {relative:.2e}, {allowed:.2e} allowed"


def run(function: Callable, inputs: dict[str, Tensor], dtype: torch.dtype, upstream: Sequence[Tensor]) -> dict:
    """The outputs of `function(**inputs)` in `dtype`, and the gradient of each input for the `upstream` gradients."""
    leaves = {
        name: value.detach().to(dtype).requires_grad_() if value.is_floating_point() else value
        for name, value in inputs.items()
    }
    outputs = function(**leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    pairs = [(out, given.to(out.dtype)) for out, given in zip(outputs, upstream, strict=True) if out.requires_grad]
    if pairs:
        torch.autograd.backward(*map(list, zip(*pairs, strict=True)))
    found = {f"output {i}": out.detach() for i, out in enumerate(outputs)}
    gradients = {
        f"gradient of {name}": leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
        for name, leaf in leaves.items()
        if leaf.is_floating_point()
    }
    return found | gradients


def pairwise(seed: int = 0, forbid: Callable[[dict], bool] = lambda case: False, **factors: Sequence) -> list[dict]:
    """Few cases in which every pair of values of every two factors occurs, but for the forbidden ones.

    Greedy: each next case holds the first pair that is missing and, of 30 random completions, covers the most."""
    draw = random.Random(seed)
    names = list(factors)

    def pairs_of(case: dict) -> set:
        return {(a, str(case[a]), b, str(case[b])) for a, b in itertools.combinations(names, 2)}

    missing = {}
    for a, b in itertools.combinations(names, 2):
        for x, y in itertools.product(factors[a], factors[b]):
            missing[a, str(x), b, str(y)] = {a: x, b: y}
    cases = []
    while missing:
        wanted = next(iter(missing.values()))
        best, covered = None, set()
        for _ in range(30):
            case = {name: wanted.get(name, draw.choice(factors[name])) for name in names}
            if forbid(case):
                continue
            new = pairs_of(case) & missing.keys()
            if best is None or len(new) > len(covered):
                best, covered = case, new
        if best is None:
            del missing[next(iter(missing))]
            continue
        cases.append(best)
        for pair in covered:
            del missing[pair]
    return cases


def name_of(case: dict) -> str:
    """A test id that says what the case is."""
    return "-".join(f"{name}={str(value).removeprefix('torch.')}" for name, value in case.items())
