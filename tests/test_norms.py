"""The layer norm and RMS norm kernels against torch in float64: outputs and gradients, over everything they take."""

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings

import kernels
from kernels.norm import launch, reference
from tests.kernel_helpers import DEVICE, DTYPES, check, name_of, pairwise, run
from tests.matrices import matrix
from tests.sanitizer import sanitize

WIDTHS = (1, 3, 63, 65, 384, 768, 1023)


@pytest.fixture(autouse=True)
def poisoned():
    """Memory that nothing was written to holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def walked(monkeypatch):
    """Rows wider than 32 are walked tile by tile, as those wider than 8,192 are."""
    monkeypatch.setattr(launch, "ONE_TILE", 32)
    monkeypatch.setattr(launch, "tiles", lambda kernel, width, target: launch.Tiles(4, 32, 4))


def rows_of(case: dict, seed: int = 0) -> tuple[dict, list]:
    generator = torch.Generator().manual_seed(seed)
    shape, dtype = (*case["rows"], case["width"]), case["dtype"]
    x = torch.randn(shape, generator=generator)
    kind = case.get("values", "normal")
    if kind == "far from zero":
        x = x * 1e-2 + (100 if dtype == torch.float16 else 1e4)
    if kind == "constant":
        x = torch.full(shape, 3.0)
    if case.get("layout") == "strided":
        x = torch.stack([x, x + 1], -1)[..., 0]
    if case.get("layout") == "turned" and len(shape) > 2:
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    found = {"x": x.to(DEVICE, dtype)}
    if case.get("residual"):
        found["residual"] = torch.randn(shape, generator=generator).to(DEVICE, dtype)
    for name in ("weight", "bias"):
        if case.get(name) and not (name == "bias" and case["rms"]):
            found[name] = torch.randn(shape[-1], generator=generator).to(DEVICE, dtype)
    upstream = [torch.randn(shape, generator=generator).to(DEVICE) for _ in range(1 + bool(case.get("residual")))]
    return found, upstream


def functions(case: dict, eps: float) -> tuple:
    """The kernel, torch's own, and the plain reference, each taking tensors by name."""

    def ours(x, residual=None, weight=None, bias=None):
        if case["rms"]:
            return kernels.rms_norm(x, weight, eps, residual=residual, backend="triton")
        return kernels.layer_norm(x, weight, bias, eps, residual=residual, backend="triton")

    def torchs(x, residual=None, weight=None, bias=None):
        s = x if residual is None else x + residual
        width = s.shape[-1:]
        y = F.rms_norm(s, width, weight, eps) if case["rms"] else F.layer_norm(s, width, weight, bias, eps)
        return y if residual is None else (y, s)

    def exact(x, residual=None, weight=None, bias=None):
        if case["rms"]:
            y, s = reference.rms_norm(x, weight, eps, residual)
        else:
            y, s = reference.layer_norm(x, weight, bias, eps, residual)
        return y if residual is None else (y, s)

    return ours, torchs, exact


def agree(case: dict, seed: int = 0, eps: float = 1e-5) -> None:
    found, upstream = rows_of(case, seed)
    ours, torchs, exact = functions(case, eps)
    found_by = [run(f, found, kind, upstream) for f, kind in ((ours, case["dtype"]), (torchs, case["dtype"]))]
    precise = run(exact, found, torch.float64, upstream)
    for name in precise:
        check(name, found_by[0][name], precise[name], found_by[1][name], case["dtype"])


CASES = pairwise(
    width=WIDTHS,
    rows=((0,), (1,), (2, 3), (33,), (2, 2, 17)),
    rms=(False, True),
    residual=(False, True),
    weight=(False, True),
    bias=(False, True),
    dtype=DTYPES,
    layout=("plain", "strided", "turned"),
    values=("normal", "far from zero", "constant"),
)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_outputs_and_gradients_are_as_near_as_torchs(case):
    agree(case)


WIDE = [case for case in CASES if case["width"] > 32][::3]


@pytest.mark.parametrize("case", matrix(WIDE, lambda case: case["width"] < 700), ids=name_of)
def test_rows_too_wide_to_hold_agree_too(case, walked):
    agree(case)


@pytest.mark.parametrize("rms", matrix([False, True], [False]))
def test_the_widest_rows(rms):
    agree({"width": 65536, "rows": (3,), "rms": rms, "residual": True, "weight": True, "bias": True,
           "dtype": torch.float32})  # fmt: skip


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_shape_agrees(data):
    pick = data.draw
    agree(
        {
            "width": pick(st.integers(1, 300)), "rows": tuple(pick(st.lists(st.integers(0, 7), max_size=3))),
            "rms": pick(st.booleans()), "residual": pick(st.booleans()), "weight": pick(st.booleans()),
            "bias": pick(st.booleans()), "dtype": pick(st.sampled_from(DTYPES)),
        },
        pick(st.integers(0, 100)),
        pick(st.sampled_from((1e-5, 1e-2, 1.0))),
    )  # fmt: skip


def test_a_sum_of_two_dtypes_is_the_wider_one():
    x, residual = torch.randn(5, 24, device=DEVICE, dtype=torch.bfloat16), torch.randn(5, 24, device=DEVICE)
    weight = torch.randn(24, device=DEVICE)
    y, s = kernels.rms_norm(x, weight, 1e-5, residual=residual, backend="triton")
    assert torch.equal(s, x + residual)
    assert torch.allclose(y, F.rms_norm(x + residual, (24,), weight, 1e-5), atol=1e-5)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)], ids=str)
def test_the_default_eps_is_torchs_for_every_backend(dtypes):
    x, residual = (torch.randn(6, 16, device=DEVICE).mul(1e-2).to(dtype) for dtype in dtypes)
    s = x + residual
    expected = F.rms_norm(s, (16,)).float()
    for backend in ("triton", "torch"):
        y, _ = kernels.rms_norm(x, residual=residual, backend=backend)
        assert y.dtype == s.dtype and (y.float() - expected).abs().max() < 0.02
    assert (
        kernels.RMSNorm(16, backend="triton").to(DEVICE, dtypes[0])(x).float() - F.rms_norm(x, (16,))
    ).abs().max() < 0.02


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_weights_of_another_dtype_are_taken_as_they_are(backend):
    x, weight = torch.randn(3, 8, device=DEVICE), torch.randn(8, device=DEVICE, dtype=torch.bfloat16)
    residual = torch.randn(3, 8, device=DEVICE, dtype=torch.bfloat16)
    y, s = kernels.layer_norm(x, weight, weight, residual=residual, backend=backend)
    assert y.dtype == s.dtype == torch.float32
    assert torch.allclose(y, F.layer_norm(x + residual, (8,), weight.float(), weight.float()), atol=1e-5)


@pytest.mark.skipif(DEVICE != "cpu", reason="float64 runs in the interpreter only")
@pytest.mark.parametrize("rms", matrix([False, True], [False]))
def test_gradients_are_derivatives(rms):
    generator = torch.Generator().manual_seed(0)
    x, r = (torch.randn(5, 7, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2))
    w, b = (torch.randn(7, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2))
    torch.use_deterministic_algorithms(False)
    if rms:
        assert torch.autograd.gradcheck(
            lambda x, r, w: kernels.rms_norm(x, w, 1e-5, residual=r, backend="triton"), (x, r, w)
        )
    else:
        assert torch.autograd.gradcheck(
            lambda x, r, w, b: kernels.layer_norm(x, w, b, 1e-5, residual=r, backend="triton"), (x, r, w, b)
        )


FULL = {"width": 65, "rows": (37,), "rms": False, "residual": True, "weight": True, "bias": True,
        "dtype": torch.float32}  # fmt: skip


@pytest.mark.skipif(DEVICE != "cpu", reason="the sanitizer watches the interpreter")
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("rms", [False, True])
def test_no_access_is_out_of_bounds_and_no_programs_race(wide, rms, request, monkeypatch):
    if wide:
        request.getfixturevalue("walked")
    else:
        monkeypatch.setattr(launch, "tiles", lambda kernel, width, target: launch.Tiles(4, 128, 4))
    case = FULL | {"rms": rms}
    found, upstream = rows_of(case)
    results = []
    for order in ("forward", "reverse"):
        with sanitize(order) as programs:
            results.append(run(functions(case, 1e-5)[0], found, torch.float32, upstream))
        assert len(programs) == (3 if wide else 2) and min(programs) > 3
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_the_same_call_gives_the_same_bits():
    found, upstream = rows_of(FULL | {"rows": (300,)})
    first, *others = (
        run(functions(FULL, 1e-5)[0], found, torch.float32, upstream) for _ in range(250 if DEVICE == "cuda" else 2)
    )
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_a_number_stays_in_its_row(bad):
    x = torch.randn(9, 40, device=DEVICE)
    x[4, 7] = bad
    for y in (kernels.layer_norm(x, backend="triton"), kernels.rms_norm(x, eps=1e-5, backend="triton")):
        assert y[4].isnan().any() and y[torch.arange(9) != 4].isfinite().all()


def test_the_modules_are_torchs_with_another_kernel():
    x, residual = torch.randn(2, 3, 5, 24, device=DEVICE)
    for ours, theirs in (
        (kernels.LayerNorm(24, backend="triton"), torch.nn.LayerNorm(24)),
        (kernels.LayerNorm(24, bias=False, backend="triton"), torch.nn.LayerNorm(24, bias=False)),
        (kernels.RMSNorm(24, backend="triton"), torch.nn.RMSNorm(24)),
    ):
        ours, theirs = ours.to(DEVICE), theirs.to(DEVICE)
        ours.load_state_dict(theirs.state_dict())
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)
        y, s = ours(x, residual)
        assert torch.equal(s, x + residual) and torch.allclose(y, theirs(s), atol=1e-5)
