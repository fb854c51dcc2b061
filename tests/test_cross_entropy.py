"""The cross-entropy kernels against torch in float64: losses and gradients, over everything they take."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
from kernels.cross_entropy import kernel, linear, reference
from tests.kernel_helpers import DEVICE, DTYPES, check, name_of, pairwise, run
from tests.sanitizer import sanitize


@pytest.fixture(autouse=True)
def poisoned():
    """Memory that nothing was written to holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def batch(case: dict, seed: int = 0) -> tuple[dict, list]:
    generator = torch.Generator().manual_seed(seed)
    N, V, dtype = case["rows"], case["vocabulary"], case["dtype"]
    size = {"normal": 2.0, "huge": 1e3 if dtype == torch.float16 else 1e6, "constant": 0.0}[
        case.get("values", "normal")
    ]
    logits = (torch.randn(N, V, generator=generator) * size).to(DEVICE, dtype)
    if case.get("layout") == "strided":
        logits = torch.cat([logits, logits], 1)[:, :V]
    targets = torch.randint(V, (N,), generator=generator)
    targets[:: case.get("ignore_every", 3)] = -1
    return {"logits": logits, "targets": targets.to(DEVICE)}, [torch.randn(N, generator=generator).to(DEVICE)]


def agree(case: dict, seed: int = 0) -> None:
    found, upstream = batch(case, seed)
    smoothing = case["smoothing"]

    def ours(logits, targets):
        return kernels.cross_entropy(
            logits * 1.0 if case["in_place"] else logits, targets, label_smoothing=smoothing, reduction="none",
            in_place=case["in_place"], backend="triton",
        )  # fmt: skip

    def plain(logits, targets):
        return reference.cross_entropy(logits, targets, -1, smoothing)

    dtype = case["dtype"]
    a, p, r = (run(f, found, kind, upstream) for f, kind in ((ours, dtype), (plain, dtype), (plain, torch.float64)))
    for name in r:
        check(name, a[name], r[name], p[name], dtype)


CASES = pairwise(
    vocabulary=(1, 2, 63, 65, 1000, 3000),
    rows=(0, 1, 15, 33),
    dtype=DTYPES,
    smoothing=(0.0, 0.1),
    in_place=(False, True),
    values=("normal", "huge", "constant"),
    layout=("plain", "strided"),
    ignore_every=(1, 3),
)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_losses_and_gradients_are_as_near_as_torchs(case):
    agree(case)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_shape_agrees(data):
    pick = data.draw
    agree(
        {
            "vocabulary": pick(st.integers(1, 2500)), "rows": pick(st.integers(0, 40)), "in_place": pick(st.booleans()),
            "dtype": pick(st.sampled_from(DTYPES)), "smoothing": pick(st.sampled_from((0.0, 0.01, 0.5))),
            "ignore_every": pick(st.integers(1, 50)),
        },
        pick(st.integers(0, 100)),
    )  # fmt: skip


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_cross_entropy_agrees_and_never_holds_all_logits(backend, bias, smoothing, dtype, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    N, C, V, rows = 45, 24, 130, 16
    found = {
        "hidden": torch.randn(N, C, generator=generator).to(DEVICE, dtype),
        "weight": torch.randn(V, C, generator=generator).to(DEVICE, dtype),
        "targets": torch.randint(V, (N,), generator=generator).to(DEVICE),
    }
    found["targets"][::7] = -1
    if bias:
        found["bias"] = torch.randn(V, generator=generator).to(DEVICE, dtype)
    upstream, held = [torch.tensor(0.37, device=DEVICE)], []
    of_chunk = linear._loss_and_gradient

    def watched(logits, *args):
        held.append(logits.shape)
        assert logits.stride(0) % 64 == 0, "rows of an odd number of logits apart are slow on a GPU"
        return of_chunk(logits, *args)

    def ours(hidden, weight, targets, bias=None):
        return kernels.linear_cross_entropy(
            hidden, weight, targets, bias, label_smoothing=smoothing, chunk_rows=rows, backend=backend
        )

    def plain(hidden, weight, targets, bias=None):
        return reference.linear_cross_entropy(hidden, weight, targets, bias, -1, smoothing)

    monkeypatch.setattr(linear, "_loss_and_gradient", watched)
    a = run(ours, found, dtype, upstream)
    assert held == [(16, V), (16, V), (13, V)]
    p, r = (run(plain, found, kind, upstream) for kind in (dtype, torch.float64))
    for name in r:
        check(name, a[name], r[name], p[name], dtype)
    with torch.no_grad():
        assert torch.equal(ours(**found), a["output 0"])


def test_reductions_and_a_batch_without_targets():
    found, _ = batch({"rows": 12, "vocabulary": 9, "dtype": torch.float32})
    each = kernels.cross_entropy(**found, reduction="none", backend="triton")
    total, mean = (kernels.cross_entropy(**found, reduction=how, backend="triton") for how in ("sum", "mean"))
    assert torch.allclose(total, each.sum()) and torch.allclose(mean, each.sum() / 8)
    nothing = found | {"targets": torch.full_like(found["targets"], -1)}
    for backend in ("triton", "torch"):
        assert kernels.cross_entropy(**nothing, reduction="mean", backend=backend) == 0


def test_a_gradient_in_place_is_the_logits_memory_and_only_once():
    found, _ = batch({"rows": 12, "vocabulary": 9, "dtype": torch.float32})
    leaf = found["logits"].clone().requires_grad_()
    logits = leaf * 1.0
    values = logits.detach().clone()
    kernels.cross_entropy(logits, found["targets"], in_place=True, backend="triton").backward(retain_graph=True)
    assert torch.equal(logits.detach(), leaf.grad) and not torch.equal(logits.detach(), values)
    loss = kernels.cross_entropy(leaf * 1.0, found["targets"], in_place=True, backend="triton")
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.skipif(DEVICE != "cpu", reason="float64 runs in the interpreter only")
def test_gradients_are_derivatives():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 70, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.tensor([0, 3, -1, 69, 5])
    torch.use_deterministic_algorithms(False)
    assert torch.autograd.gradcheck(
        lambda x: kernels.cross_entropy(x, targets, label_smoothing=0.1, reduction="none", backend="triton"),
        logits,
        fast_mode=True,
    )
    hidden, weight = (torch.randn(n, 4, dtype=torch.float64, generator=generator, requires_grad=True) for n in (5, 70))
    for backend in ("triton", "torch"):
        assert torch.autograd.gradcheck(
            lambda h, w, backend=backend: kernels.linear_cross_entropy(h, w, targets, chunk_rows=2, backend=backend),
            (hidden, weight),
            fast_mode=True,
        )


@pytest.mark.skipif(DEVICE != "cpu", reason="the sanitizer watches the interpreter")
def test_no_access_is_out_of_bounds_and_no_programs_race(monkeypatch):
    monkeypatch.setattr(kernel, "tiles", lambda *_: kernel.Tiles(4, 32, 4))
    found, upstream = batch({"rows": 23, "vocabulary": 65, "dtype": torch.float32})
    results = []
    for order in ("forward", "reverse"):
        with sanitize(order) as programs:
            results.append(
                run(lambda **x: kernels.cross_entropy(**x, label_smoothing=0.1, reduction="none", backend="triton"),
                    found, torch.float32, upstream)
            )  # fmt: skip
        assert programs == [6, 18]
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_a_number_stays_in_its_row(bad):
    found, _ = batch({"rows": 12, "vocabulary": 9, "dtype": torch.float32, "ignore_every": 50})
    found["logits"][4, 3] = bad
    losses = kernels.cross_entropy(**found, reduction="none", backend="triton")
    assert losses[4].isnan() and losses[torch.arange(12) != 4].isfinite().all()


def test_what_stands_in_an_ignored_row_does_not_matter():
    found, upstream = batch({"rows": 12, "vocabulary": 9, "dtype": torch.float32})
    found["logits"][3] = float("nan")
    assert found["targets"][3] == -1
    ours = run(
        lambda **x: kernels.cross_entropy(**x, reduction="none", backend="triton"), found, torch.float32, upstream
    )
    assert ours["output 0"].isfinite().all() and ours["gradient of logits"].isfinite().all()
    assert ours["output 0"][3] == 0 and not ours["gradient of logits"][3].any()


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_what_an_ignored_row_is_made_of_does_not_matter_either(backend, smoothing):
    hidden, weight = torch.randn(6, 4, device=DEVICE), torch.randn(9, 4, device=DEVICE, requires_grad=True)
    hidden[2], targets = float("nan"), torch.tensor([0, 1, -1, 3, 4, 5], device=DEVICE)
    hidden.requires_grad_()
    loss = kernels.linear_cross_entropy(hidden, weight, targets, label_smoothing=smoothing, backend=backend)
    kept = targets != -1
    expected = reference.linear_cross_entropy(hidden[kept], weight, targets[kept], None, -1, smoothing)
    assert torch.allclose(loss, expected)


def test_a_second_derivative_is_refused_and_not_made_up():
    hidden = torch.randn(3, 4, device=DEVICE, requires_grad=True)
    loss = kernels.linear_cross_entropy(
        hidden, torch.randn(9, 4, device=DEVICE), torch.tensor([1, 2, 3], device=DEVICE)
    )
    (gradient,) = torch.autograd.grad(loss**2, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="linear_cross_entropy_backward"):
        gradient.square().sum().backward()


def test_a_gradient_in_place_has_no_derivative():
    leaf = torch.randn(3, 9, device=DEVICE, requires_grad=True)
    loss = kernels.cross_entropy(leaf * 1, torch.tensor([1, 2, 3], device=DEVICE), in_place=True, backend="triton")
    with pytest.raises(RuntimeError, match="leave out create_graph=True"):
        torch.autograd.grad(loss, leaf, create_graph=True)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("trained", [(), ("hidden",), ("weight",), ("bias",), ("hidden", "bias")], ids=str)
def test_nothing_is_computed_for_what_needs_no_gradient(trained, backend):
    inputs = {"hidden": torch.randn(12, 4), "weight": torch.randn(9, 4), "bias": torch.randn(9)}
    inputs = {name: x.to(DEVICE).requires_grad_(name in trained) for name, x in inputs.items()}
    targets = torch.randint(9, (12,), device=DEVICE)
    made = {}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **kwargs or {})
            if function is torch.ops.charlm.linear_cross_entropy.default:
                made.update(zip(inputs, result[1:], strict=True))
            return result

    with Watch():
        loss = kernels.linear_cross_entropy(**inputs, targets=targets, chunk_rows=5, backend=backend)
    assert {name for name, gradient in made.items() if gradient.numel()} == set(trained)
    if trained:
        loss.backward()
        exact = reference.linear_cross_entropy(inputs["hidden"], inputs["weight"], targets, inputs["bias"])
        wanted = torch.autograd.grad(exact, [inputs[name] for name in trained])
        assert all(torch.allclose(inputs[name].grad, x, atol=1e-5) for name, x in zip(trained, wanted, strict=True))
    assert all(x.grad is None for name, x in inputs.items() if name not in trained)


def test_memory_that_cannot_take_a_gradient_in_place_is_refused():
    targets = torch.tensor([1, 2, 3], device=DEVICE)
    leaf = torch.randn(3, 9, device=DEVICE, requires_grad=True)
    with pytest.raises(ValueError, match="in_place is True and logits is a leaf"):
        kernels.cross_entropy(leaf, targets, in_place=True, backend="triton")
    for view in (leaf[:], leaf.view(-1, 9), leaf.T.T):
        with pytest.raises(ValueError, match="in_place is True and logits is a view of a leaf"):
            kernels.cross_entropy(view, targets, in_place=True, backend="triton")
    with pytest.raises(ValueError, match="in_place is True and the rows of logits share memory"):
        kernels.cross_entropy(torch.randn(1, 9, device=DEVICE).expand(3, 9), targets, in_place=True, backend="triton")


def test_a_target_outside_of_the_vocabulary_is_not_passed_over():
    found, _ = batch({"rows": 12, "vocabulary": 9, "dtype": torch.float32})
    found["targets"][5] = 9
    if DEVICE == "cuda":
        assert kernels.cross_entropy(**found, backend="triton").isnan()
        return
    for backend in ("torch", "triton"):
        with pytest.raises(ValueError, match=r"targets\[5\] is 9; it may be 0 to 8, or -1 to ignore"):
            kernels.cross_entropy(**found, backend=backend)
        with pytest.raises(ValueError, match=r"targets\[5\] is -100"):
            kernels.cross_entropy(found["logits"], found["targets"].where(found["targets"] < 9, -100), backend=backend)
    with pytest.raises(ValueError, match=r"targets\[5\] is 9"):
        kernels.linear_cross_entropy(torch.randn(12, 4), torch.randn(9, 4), found["targets"])


def test_the_modules_are_the_functions():
    found, _ = batch({"rows": 12, "vocabulary": 9, "dtype": torch.float32})
    module = kernels.CrossEntropy(label_smoothing=0.1, reduction="mean", backend="triton")
    expected = kernels.cross_entropy(**found, label_smoothing=0.1, reduction="mean", backend="triton")
    assert torch.equal(module(**found), expected)
    head, hidden = kernels.LinearCrossEntropy(4, 9, chunk_rows=5).to(DEVICE), torch.randn(12, 4, device=DEVICE)
    loss = reference.linear_cross_entropy(hidden, head.weight, found["targets"], head.bias)
    assert torch.allclose(head(hidden, found["targets"]), loss, rtol=1e-5)
