"""Cross-entropy over a linear layer against torch in float64: losses and gradients, of logits that are never held."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
from kernels.cross_entropy import linear_op, reference
from tests.kernel_helpers import DEVICE, DTYPES, check, name_of, pairwise, run

OPTIONS = {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 3.0}
either = pytest.mark.parametrize("backend", ["torch", "triton"])

CASES = pairwise(
    backend=("torch", "triton"),
    dtype=DTYPES,
    bias=(False, True),
    weighted=("no", "yes", "with a gradient"),
    reduction=("sum", "mean", "none"),
    label_smoothing=(0.0, 0.1),
    z_loss=(0.0, 1e-2),
    softcap=(None, 3.0),
)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_losses_and_gradients_are_as_near_as_torchs_and_all_logits_never_there(case, monkeypatch):
    dtype, options = case["dtype"], {name: case[name] for name in ("label_smoothing", "z_loss", "softcap")}
    generator = torch.Generator().manual_seed(0)
    B, T, C, V, rows = 5, 9, 24, 130, 16
    found = {
        "hidden": torch.randn(B, T, C, generator=generator).to(DEVICE, dtype),
        "weight": torch.randn(V, C, generator=generator).to(DEVICE, dtype),
        "targets": torch.randint(V, (B, T), generator=generator).to(DEVICE),
    }
    found["targets"][:, ::4] = -1
    if case["bias"]:
        found["bias"] = torch.randn(V, generator=generator).to(DEVICE, dtype)
    fixed = torch.randn(B, T, generator=generator).to(DEVICE, dtype) if case["weighted"] == "yes" else None
    if case["weighted"] == "with a gradient":
        found["weights"] = torch.randn(B, T, generator=generator).to(DEVICE, dtype)
    shape = (B, T) if case["reduction"] == "none" else ()
    upstream, held = [torch.randn(shape, generator=generator).to(DEVICE)], []
    of_chunk = linear_op.loss_and_gradient

    def watched(logits, *args):
        held.append(logits.shape)
        assert logits.stride(0) % 64 == 0, "rows of an odd number of logits apart are slow on a GPU"
        return of_chunk(logits, *args)

    def ours(hidden, weight, targets, bias=None, weights=fixed):
        return kernels.linear_cross_entropy(
            hidden, weight, targets, bias, weights=weights, reduction=case["reduction"], chunk_rows=rows,
            backend=case["backend"], **options,
        )  # fmt: skip

    def plain(hidden, weight, targets, bias=None, weights=fixed):
        weights = None if weights is None else weights.to(hidden.dtype).flatten()
        each = reference.linear_cross_entropy(
            hidden.flatten(0, 1), weight, targets.flatten(), bias, weights=weights, **options
        )
        if case["reduction"] == "none":
            return each.view(B, T)
        counted = targets.flatten() != -1
        total = counted.sum() if weights is None else weights[counted].sum()
        return each.sum() if case["reduction"] == "sum" else each.sum() / total

    monkeypatch.setattr(linear_op, "loss_and_gradient", watched)
    a = run(ours, found, dtype, upstream)
    once = [(16, V), (16, V), (13, V)]
    assert held == (once if shape == () and "weights" not in found else once * 2), "forward, and backward again"
    p, r = (run(plain, found, kind, upstream) for kind in (dtype, torch.float64))
    for name in r:
        check(name, a[name], r[name], p[name], dtype)
    with torch.no_grad():
        assert torch.allclose(ours(**found), a["output 0"], rtol=1e-5)


@pytest.mark.skipif(DEVICE != "cpu", reason="float64 runs in the interpreter only")
@either
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_gradients_are_derivatives(backend, reduction):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 4, dtype=torch.float64, generator=generator, requires_grad=True) for n in (5, 70))
    weights = torch.randn(5, dtype=torch.float64, generator=generator)
    targets = torch.tensor([0, 3, -1, 69, 5])
    for options in ({}, OPTIONS | {"weights": weights}):
        assert torch.autograd.gradcheck(
            lambda h, w, options=options: kernels.linear_cross_entropy(
                h, w, targets, chunk_rows=2, reduction=reduction, backend=backend, **options
            ),
            (hidden, weight),
            fast_mode=True,
        )


@either
@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["plain", "options"])
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_what_an_ignored_row_is_made_of_does_not_matter(backend, options, reduction):
    hidden, weight = torch.randn(6, 4, device=DEVICE), torch.randn(9, 4, device=DEVICE, requires_grad=True)
    targets, weights = torch.tensor([0, 1, -1, 3, 4, 5], device=DEVICE), torch.rand(6, device=DEVICE)
    hidden[2], weights[2] = float("nan"), float("nan")
    hidden.requires_grad_()
    loss = kernels.linear_cross_entropy(
        hidden, weight, targets, weights=weights, reduction=reduction, backend=backend, **options
    )
    kept = targets != -1
    each = reference.linear_cross_entropy(hidden[kept], weight, targets[kept], weights=weights[kept], **options)
    total = each.sum() if reduction != "mean" else each.sum() / weights[kept].sum()
    assert torch.allclose(loss.sum(), total)
    loss.sum().backward()
    assert not hidden.grad[2].any() and hidden.grad[kept].all()


def test_a_second_derivative_is_refused_and_not_made_up():
    hidden = torch.randn(3, 4, device=DEVICE, requires_grad=True)
    targets = torch.tensor([1, 2, 3], device=DEVICE)
    for how, operator in (("sum", "linear_cross_entropy_backward"), ("none", "linear_cross_entropy_rows_backward")):
        loss = kernels.linear_cross_entropy(hidden, torch.randn(9, 4, device=DEVICE), targets, reduction=how)
        (gradient,) = torch.autograd.grad((loss**2).sum(), hidden, create_graph=True)
        with pytest.raises(RuntimeError, match=operator):
            gradient.square().sum().backward()


@either
@pytest.mark.parametrize("trained", [(), ("hidden",), ("weight",), ("bias",), ("hidden", "bias")], ids=str)
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_nothing_is_computed_for_what_needs_no_gradient(trained, backend, reduction):
    inputs = {"hidden": torch.randn(12, 4), "weight": torch.randn(9, 4), "bias": torch.randn(9)}
    inputs = {name: x.to(DEVICE).requires_grad_(name in trained) for name, x in inputs.items()}
    targets = torch.randint(9, (12,), device=DEVICE)
    made = {}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **kwargs or {})
            if function is torch.ops.charlm.linear_cross_entropy.default:
                made.update(zip(inputs, result[1:], strict=True))
            if function is torch.ops.charlm.linear_cross_entropy_rows_backward.default:
                made.update(zip(inputs, result, strict=True))
            return result

    with Watch():
        loss = kernels.linear_cross_entropy(
            **inputs, targets=targets, chunk_rows=5, reduction=reduction, backend=backend
        ).sum()
        if trained:
            loss.backward()
    assert {name for name, gradient in made.items() if gradient.numel()} == set(trained)
    if trained:
        exact = reference.linear_cross_entropy(inputs["hidden"], inputs["weight"], targets, inputs["bias"]).sum()
        wanted = torch.autograd.grad(exact, [inputs[name] for name in trained])
        assert all(torch.allclose(inputs[name].grad, x, atol=1e-5) for name, x in zip(trained, wanted, strict=True))
    assert all(x.grad is None for name, x in inputs.items() if name not in trained)


def test_a_target_outside_of_the_vocabulary_is_named_by_its_place():
    targets = torch.zeros(3, 4, dtype=torch.int64)
    targets[1, 2] = 9
    for how in ("sum", "none"):
        with pytest.raises(ValueError, match=r"targets\[1, 2\] is 9; it may be 0 to 8, or -1 to ignore"):
            kernels.linear_cross_entropy(torch.randn(3, 4, 5), torch.randn(9, 5), targets, reduction=how)


def test_the_module_is_the_function():
    head, hidden = kernels.LinearCrossEntropy(4, 9, chunk_rows=5, **OPTIONS).to(DEVICE), torch.randn(12, 4).to(DEVICE)
    targets, weights = torch.randint(9, (12,), device=DEVICE), torch.rand(12, device=DEVICE)
    loss = reference.linear_cross_entropy(hidden, head.weight, targets, head.bias, weights=weights, **OPTIONS).sum()
    assert torch.allclose(head(hidden, targets, weights), loss, rtol=1e-5)
