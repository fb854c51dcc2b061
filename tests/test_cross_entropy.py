"""The cross-entropy kernels against torch in float64: losses and gradients, over everything they take."""

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings

import kernels
from kernels.cross_entropy import kernel, reference
from tests.kernel_helpers import DEVICE, DTYPES, check, name_of, pairwise, run
from tests.sanitizer import sanitize

OPTIONS = {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 3.0}


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
    found = {"logits": logits, "targets": targets.to(DEVICE)}
    upstream = torch.randn(N, generator=generator).to(DEVICE)
    if case.get("weighted"):
        found["weights"] = torch.randn(N, generator=generator).to(DEVICE)
    if case.get("layout") == "deep":  # (..., 3, V) where it goes
        found = {name: x.unflatten(0, (-1, 1 if N % 3 else 3)) for name, x in found.items()}
    return found, [upstream.view(found["targets"].shape)]


def agree(case: dict, seed: int = 0) -> None:
    found, upstream = batch(case, seed)
    options = {name: case[name] for name in ("label_smoothing", "z_loss", "softcap")}

    def ours(logits, targets, weights=None):
        return kernels.cross_entropy(
            logits * 1.0 if case["in_place"] else logits, targets, weights=weights, reduction="none",
            in_place=case["in_place"], backend="triton", **options,
        )  # fmt: skip

    def plain(logits, targets, weights=None):
        weights = None if weights is None else weights.flatten()
        losses = reference.cross_entropy(
            logits.flatten(0, -2), targets.flatten(), weights=weights, ignore_index=-1, **options
        )
        return losses.view(targets.shape)

    dtype = case["dtype"]
    a, p, r = (run(f, found, kind, upstream) for f, kind in ((ours, dtype), (plain, dtype), (plain, torch.float64)))
    for name in r:
        check(name, a[name], r[name], p[name], dtype)


CASES = pairwise(
    vocabulary=(1, 2, 63, 65, 1000, 3000),
    rows=(0, 1, 15, 33),
    dtype=DTYPES,
    label_smoothing=(0.0, 0.1),
    z_loss=(0.0, 1e-2),
    softcap=(None, 3.0),
    weighted=(False, True),
    in_place=(False, True),
    values=("normal", "huge", "constant"),
    layout=("plain", "strided", "deep"),
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
            "dtype": pick(st.sampled_from(DTYPES)), "label_smoothing": pick(st.sampled_from((0.0, 0.01, 0.5))),
            "z_loss": pick(st.sampled_from((0.0, 1e-4, 0.5))), "softcap": pick(st.sampled_from((None, 0.3, 30.0))),
            "weighted": pick(st.booleans()), "ignore_every": pick(st.integers(1, 50)),
        },
        pick(st.integers(0, 100)),
    )  # fmt: skip


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_reductions_and_a_batch_without_targets(backend):
    found, _ = batch({"rows": 12, "vocabulary": 9, "dtype": torch.float32, "weighted": True})
    logits, targets, weights = found.values()
    each = kernels.cross_entropy(logits, targets, reduction="none", backend=backend)
    total, mean = (kernels.cross_entropy(logits, targets, reduction=how, backend=backend) for how in ("sum", "mean"))
    assert torch.allclose(total, each.sum()) and torch.allclose(mean, each.sum() / 8)
    nothing = torch.full_like(targets, -1)
    for weighted in (None, weights, torch.zeros_like(weights)):
        assert kernels.cross_entropy(logits, nothing, weights=weighted, reduction="mean", backend=backend) == 0
    assert kernels.cross_entropy(logits, targets, weights=0 * weights, reduction="mean", backend=backend) == 0


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_a_weight_a_row_is_what_torchs_class_weights_are(backend):
    found, _ = batch({"rows": 12, "vocabulary": 9, "dtype": torch.float32})
    logits, targets = found.values()
    of_class = torch.rand(9, device=DEVICE)
    for how in ("sum", "mean"):
        wanted = F.cross_entropy(logits, targets, of_class, ignore_index=-1, reduction=how)
        weights = of_class[targets.clamp_min(0)]
        assert torch.allclose(
            kernels.cross_entropy(logits, targets, weights=weights, reduction=how, backend=backend), wanted
        )


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_an_ignored_row_is_exactly_nothing_whatever_its_weight(backend):
    found, _ = batch({"rows": 12, "vocabulary": 9, "dtype": torch.float32})
    ignored = found["targets"] == -1
    leaf = found["logits"].requires_grad_()
    weights = torch.where(ignored, torch.nan, 1.0).requires_grad_()
    losses = kernels.cross_entropy(
        leaf, found["targets"], weights=weights, **OPTIONS, reduction="none", backend=backend
    )
    losses.sum().backward()
    for each in (losses, leaf.grad, weights.grad):
        assert not each[ignored].any() and each[~ignored].all()


@pytest.mark.skipif(DEVICE != "cpu", reason="float64 runs in the interpreter only")
@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["plain", "options"])
def test_gradients_are_derivatives(options):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 70, dtype=torch.float64, generator=generator, requires_grad=True)
    weights = torch.randn(5, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.tensor([0, 3, -1, 69, 5])
    torch.use_deterministic_algorithms(False)
    assert torch.autograd.gradcheck(
        lambda x, w: kernels.cross_entropy(x, targets, weights=w, **options, reduction="none", backend="triton"),
        (logits, weights),
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
                run(lambda **x: kernels.cross_entropy(**x, **OPTIONS, reduction="none", backend="triton"),
                    found, torch.float32, upstream)
            )  # fmt: skip
        assert programs == [6, 18]
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_a_gradient_in_place_of_rows_in_several_dimensions_is_their_memory_too():
    leaf = torch.randn(2, 3, 9, device=DEVICE, requires_grad=True)
    targets = torch.zeros(2, 3, dtype=torch.int64, device=DEVICE)
    logits = leaf * 1.0
    kernels.cross_entropy(logits, targets, in_place=True, backend="triton").backward()
    assert torch.equal(logits.detach(), leaf.grad)
    with pytest.raises(ValueError, match="do not lie evenly apart"):
        kernels.cross_entropy((leaf * 1.0).transpose(0, 1), targets.T, in_place=True, backend="triton")


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


def test_a_gradient_in_place_has_no_derivative():
    leaf = torch.randn(3, 9, device=DEVICE, requires_grad=True)
    loss = kernels.cross_entropy(leaf * 1, torch.tensor([1, 2, 3], device=DEVICE), in_place=True, backend="triton")
    with pytest.raises(RuntimeError, match="leave out create_graph=True"):
        torch.autograd.grad(loss, leaf, create_graph=True)


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
        deep = found["logits"].view(3, 4, 9), found["targets"].view(3, 4)
        with pytest.raises(ValueError, match=r"targets\[1, 1\] is 9"):
            kernels.cross_entropy(*deep, backend=backend)


def test_the_module_is_the_function():
    found, _ = batch({"rows": 12, "vocabulary": 9, "dtype": torch.float32, "weighted": True})
    module = kernels.CrossEntropy(**OPTIONS, reduction="mean", backend="triton")
    assert torch.equal(module(**found), kernels.cross_entropy(**found, **OPTIONS, reduction="mean", backend="triton"))
