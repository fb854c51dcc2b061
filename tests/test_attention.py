"""The attention kernels against torch in float64: outputs and gradients, over everything they take."""

import itertools
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings

import kernels
from kernels.attention import launch, reference
from kernels.attention.call import Call
from kernels.attention.tiles import Tiles, small_heads
from tests.kernel_helpers import DEVICE, DTYPES, check, name_of, pairwise, run
from tests.matrices import matrix
from tests.sanitizer import sanitize

SEED = torch.tensor([0x123456789ABCDEF])
SMALL = Tiles(16, 16, 4, 1)
LENGTHS = (0, 1, 2, 15, 16, 17, 31, 33, 127, 129)


@pytest.fixture(autouse=True)
def poisoned():
    """Memory that nothing was written to holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def tiled(monkeypatch, tiles: Tiles) -> None:
    monkeypatch.setattr(launch, "tiles", lambda *_: tiles)


def values(shape: tuple[int, ...], kind: str, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    x = torch.randn(shape, generator=generator)
    if kind == "constant":
        x = torch.full(shape, 0.5)
    if kind == "huge":
        x = x * 30 if dtype == torch.float16 else x * 1e3
    if kind == "tiny":
        x = x * 1e-20
    return x.to(dtype)


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """x (B, H, T, D) with other strides. "expanded" repeats the first of the batch without storing it."""
    if layout == "heads inside":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "packed":  # a view of a matrix that holds two more such parts
        B, H, T, D = x.shape
        return (
            torch.cat([x.transpose(1, 2).flatten(2)] * 3, 2)[:, :, H * D : 2 * H * D].view(B, T, H, D).transpose(1, 2)
        )
    if layout == "offset":
        room = x.new_full((*x.shape[:2], x.shape[2] + 3, x.shape[3] + 8), float("nan"))
        room[:, :, 2:-1, 5:-3] = x
        return room[:, :, 2:-1, 5:-3]
    if layout == "expanded":
        return x[:1].expand_as(x)
    return x


def inputs(case: dict, seed: int = 0) -> tuple[dict, list]:
    generator = torch.Generator().manual_seed(seed)
    (H, heads), D, dtype, (Tq, Tk), B = case["heads"], case["D"], case["dtype"], case["T"], case.get("B", 2)
    kind = case.get("values", "normal")
    q = values((B, H, Tq, D), kind, dtype, generator)
    k = values((B, heads, Tk, D), kind, dtype, generator)
    v = values((B, heads, Tk, D), "normal", dtype, generator)
    layout = case.get("layout", "plain")
    found = {name: laid_out(x, layout).to(DEVICE) for name, x in (("q", q), ("k", k), ("v", v))}
    upstream = [torch.randn(B, H, Tq, D, generator=generator), torch.randn(B, H, Tq, generator=generator)]
    if not case.get("lse"):
        upstream[1] = torch.zeros(B, H, Tq)
    return found, [x.to(DEVICE) for x in upstream]


def options_of(case: dict) -> dict:
    H = case["heads"][0]
    slopes = torch.tensor([2 ** (-8 * (i + 1) / H) for i in range(H)], device=DEVICE) if case.get("alibi") else None
    dropout = case.get("dropout", 0.0)
    return {
        "causal": case.get("causal", True), "window": case.get("window"), "slopes": slopes,
        "scale": case.get("scale"), "softcap": case.get("softcap"), "dropout": dropout,
        "seed": SEED.to(DEVICE) if dropout else None, "key_mask": key_mask(case),
    }  # fmt: skip


def key_mask(case: dict) -> torch.Tensor | None:
    """Which keys of each of the batch are no padding: all but some first or last ones, or none of the first text's."""
    where, B, Tk = case.get("padding"), case.get("B", 2), case["T"][1]
    if where is None:
        return None
    number, text = torch.arange(Tk), torch.arange(B)[:, None]
    seen = {
        "left": number >= 7 * text + 3,
        "right": number < Tk - 5 * text - 1,
        "all of one": number.expand(B, -1) >= 0,
    }
    mask = seen[where].clone()
    mask[:1] &= where != "all of one"
    return mask.to(DEVICE)


def without_unseen(function):
    """The log-sum-exp of a row that sees nothing is -inf, through which no gradient goes: 0 instead, here."""

    def wrapped(**tensors):
        out, lse = function(**tensors)
        return out, lse.masked_fill(lse == -math.inf, 0.0)

    return wrapped


def terms_of(found: dict, upstream: list, options: dict) -> dict:
    """What the gradients of q and k add up: p (dp - delta), each part by its size. The two are equal, but for rounding,
    where a query sees one key only, or one that outweighs all others."""
    q, k, v = (x.double() for x in found.values())
    dout, dlse = (x.double().abs() for x in upstream)
    groups = q.shape[1] // k.shape[1]
    if k.shape[2] == 0:
        return {}
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    p = torch.eye(k.shape[2], dtype=torch.float64, device=q.device).expand(*k.shape[:2], -1, -1)
    shape = {name: value for name, value in options.items() if name not in ("dropout", "seed")}
    p, _ = reference.attention(q, k, p, **shape)  # (B, H, Tq, Tk): the weights of an identity
    dp = dout @ v.abs().transpose(-1, -2) / (1 - options["dropout"])
    ds = p * (dp + (p * dp).sum(-1, keepdim=True) + dlse[..., None])
    scale = options["scale"] or q.shape[-1] ** -0.5
    dk = scale * ds.transpose(-1, -2) @ q.abs()
    return {
        "gradient of q": scale * ds @ k.abs(),
        "gradient of k": dk.unflatten(1, (-1, groups)).sum(2),
    }


def agree(case: dict, seed: int = 0) -> None:
    found, upstream = inputs(case, seed)
    options, dtype = options_of(case), case["dtype"]
    ours = run(
        without_unseen(lambda **x: kernels.attention(**x, **options, return_lse=True, backend="triton")),
        found, dtype, upstream,
    )  # fmt: skip
    plain, exact = (
        run(without_unseen(lambda **x: reference.attention(**x, **options)), found, kind, upstream)
        for kind in (dtype, torch.float64)
    )
    terms = terms_of(found, upstream, options)
    for name in ours:
        check(name, ours[name], exact[name], plain[name], dtype, terms.get(name))


WINDOWS = [None, 1, 2, 15, 16, 17, (2, 0), (15, None), (0, 16), (None, 17)]
SIGHTS = [*itertools.product(WINDOWS, (True, False))]


@pytest.mark.parametrize("sight", matrix(SIGHTS, [(16, True), ((0, 16), False)]), ids=str)
def test_every_alignment_of_queries_and_keys_agrees(sight, monkeypatch):
    """The edges of the tiles, which queries and keys meet at different places for every difference in length."""
    window, causal = sight
    if causal and isinstance(window, tuple):
        window = window[0], 0
    if DEVICE == "cpu":
        tiled(monkeypatch, SMALL)
    for ahead in (-17, -15, -2, -1, 0, 1, 2, 13, 14, 15, 16, 17, 30, 31):
        case = {"heads": (1, 1), "T": (18, 18 + ahead), "D": 8, "dtype": torch.float32, "B": 1}
        agree(case | {"causal": causal, "window": window}, seed=ahead + 20)


def is_forbidden(case: dict) -> bool:
    """What is refused, what takes long, and what torch computes better: a capped score of 1.5 less 90 for its distance,
    which is exact for slopes that are powers of two, but not in units of log 2."""
    is_refused = case["causal"] and case["window"] == (5, 12)
    is_long = case["T"][0] * case["T"][1] > 2000
    is_exact = case["values"] == "huge" and case["alibi"] and case["softcap"] is not None
    return is_refused or (case["tiles"] != (64, 64) and is_long) or is_exact


CASES = pairwise(
    T=[(t, t) for t in LENGTHS] + [(1, 17), (2, 33), (17, 129), (33, 16), (129, 31), (16, 0)],
    D=(8, 16, 24, 32, 40, 64, 80, 128),
    heads=((2, 2), (4, 2), (3, 1)),
    window=(None, 1, 7, 200, (3, None), (None, 0), (5, 12)),
    causal=(True, False),
    softcap=(None, 1.5),
    padding=(None, "left", "right", "all of one"),
    alibi=(False, True),
    dropout=(0.0, 0.2),
    dtype=DTYPES,
    layout=("plain", "heads inside", "packed", "offset", "expanded"),
    values=("normal", "huge", "tiny", "constant"),
    lse=(False, True),
    tiles=((64, 64), (32, 16), (16, 32)),
    forbid=is_forbidden,
)


@pytest.mark.parametrize("case", matrix(CASES, CASES[::15]), ids=name_of)
def test_outputs_and_gradients_are_as_near_as_torchs(case, monkeypatch):
    if DEVICE == "cpu":
        tiled(monkeypatch, Tiles(*case["tiles"], 4, 1))
    agree(case)


def test_the_cases_hold_every_pair_of_lengths_and_head_sizes():
    seen = {(case["T"], case["D"]) for case in CASES}
    assert {(t, t) for t in LENGTHS} <= {T for T, _ in seen} and len(seen) == 16 * 8


def any_shape(data) -> None:
    pick = data.draw
    group = pick(st.integers(1, 3))
    heads = pick(st.integers(1, 2))
    case = {
        "B": pick(st.integers(1, 3)), "heads": (group * heads, heads),
        "T": (pick(st.integers(0, 70)), pick(st.integers(0, 70))), "D": pick(st.integers(1, 128)),
        "dtype": pick(st.sampled_from(DTYPES)), "causal": pick(st.booleans()),
        "window": pick(st.none() | st.integers(1, 80) | st.tuples(st.integers(0, 40), st.none())),
        "alibi": pick(st.booleans()), "softcap": pick(st.none() | st.floats(0.5, 50)),
        "padding": pick(st.sampled_from((None, "left", "right", "all of one"))),
        "dropout": pick(st.sampled_from((0.0, 0.3))), "scale": pick(st.none() | st.floats(0.01, 2)),
        "lse": pick(st.booleans()),
    }  # fmt: skip
    agree(case, pick(st.integers(0, 100)))


@pytest.mark.parametrize("examples", matrix([5, 25], [5]))
def test_any_shape_agrees(examples):
    slow = [HealthCheck.too_slow]
    with_settings = settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=slow)
    with_settings(given(data=st.data())(any_shape))()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", matrix([None, 3], [3]))
@pytest.mark.parametrize("padding", matrix([0, 21], [21]))
def test_packed_sequences_are_those_sequences(causal, window, padding, monkeypatch):
    if DEVICE == "cpu":
        tiled(monkeypatch, SMALL)
    generator = torch.Generator().manual_seed(0)
    lengths_q, lengths_k = (5, 0, 33, 1), (7, 4, 33, 0)
    starts_q, starts_k = (torch.tensor([0, *lengths]).cumsum(0).to(torch.int32) for lengths in (lengths_q, lengths_k))
    q = torch.randn(sum(lengths_q) + padding, 4, 24, generator=generator)
    k, v = torch.randn(2, sum(lengths_k) + padding, 2, 24, generator=generator)
    upstream = [torch.randn(q.shape, generator=generator), torch.randn(4, len(q), generator=generator)]
    options = {"causal": causal, "window": window, "softcap": 2.0, "dropout": 0.25, "seed": SEED.to(DEVICE)}

    def ours(q, k, v):
        return kernels.attention_packed(q, k, v, starts_q, starts_k, **options, return_lse=True, backend="triton")

    def exact(q, k, v):
        inside = (x.transpose(0, 1)[None] for x in (q, k, v))
        out, lse = reference.attention_packed(*inside, starts_q, starts_k, **options)
        return out[0].transpose(0, 1), lse[0]

    tensors = {name: x.to(DEVICE) for name, x in (("q", q), ("k", k), ("v", v))}
    upstream = [x.to(DEVICE) for x in upstream]
    found, plain, precise = (
        run(without_unseen(f), tensors, dtype, upstream)
        for f, dtype in ((ours, torch.float32), (exact, torch.float32), (exact, torch.float64))
    )
    for name in found:
        check(name, found[name], precise[name], plain[name], torch.float32)
        assert not padding or "gradient" not in name or not found[name][-padding:].any(), name
    torch_backend = kernels.attention_packed(
        *tensors.values(), starts_q, starts_k, **options, return_lse=True, backend="torch"
    )
    for a, b in zip(torch_backend, exact(**tensors), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("causal", [True, False])
def test_a_window_wider_than_any_text_is_no_window(causal):
    found, upstream = inputs({"heads": (2, 1), "T": (20, 23), "D": 8, "dtype": torch.float32})
    wide, whole = (
        run(lambda window=window, **x: kernels.attention(**x, window=window, causal=causal, backend="triton"), found,
            torch.float32, upstream[:1])
        for window in (2**31 - 1, None)
    )  # fmt: skip
    for name in whole:
        assert torch.allclose(wide[name], whole[name], rtol=1e-5, atol=1e-6), name


def test_starts_may_lie_apart_in_memory():
    x = torch.randn(5, 2, 8, device=DEVICE)
    starts = torch.tensor([[0, 9], [2, 9], [5, 9]], dtype=torch.int32)
    apart, together = (
        kernels.attention_packed(x, x, x, each, backend="triton") for each in (starts[:, 0], starts[:, 0].contiguous())
    )
    assert torch.equal(apart, together)


def test_both_backends_give_a_precise_log_sum_exp_and_no_gradient_of_slopes():
    q = torch.randn(1, 2, 9, 16, device=DEVICE, dtype=torch.bfloat16)
    slopes = torch.tensor([0.5, 0.25], device=DEVICE, requires_grad=True)
    found = [
        kernels.attention(q, q, q, slopes=slopes, return_lse=True, backend=backend) for backend in ("triton", "torch")
    ]
    assert all(out.dtype == torch.bfloat16 and lse.dtype == torch.float32 for out, lse in found)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)
    assert not any(lse.requires_grad for _, lse in found)


def test_a_loss_of_the_log_sum_exp_alone_has_gradients():
    found, _ = inputs({"heads": (2, 1), "T": (9, 9), "D": 8, "dtype": torch.float32})
    gradients = []
    for call in (lambda **x: kernels.attention(**x, return_lse=True, backend="triton"), reference.attention):
        leaves = {name: x.clone().requires_grad_() for name, x in found.items()}
        call(**leaves)[1].sum().backward()
        gradients.append([leaves["q"].grad, leaves["k"].grad])
    for ours, exact in zip(*gradients, strict=True):
        assert torch.allclose(ours, exact, atol=1e-6)


@pytest.mark.parametrize("T", [45, 100])
@pytest.mark.parametrize("causal", [True, False])
def test_a_negative_slope_is_no_trap(T, causal):
    q, k, v = torch.randn(3, 1, 2, T, 16, device=DEVICE)
    slopes = torch.tensor([-1.0, -0.25], device=DEVICE)
    found = {}
    for backend in ("torch", "triton"):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        kernels.attention(*leaves, slopes=slopes, causal=causal, backend=backend).square().sum().backward()
        found[backend] = [x.grad for x in leaves]
    for ours, theirs in zip(found["triton"], found["torch"], strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


HIDDEN = (torch.arange(19) % 5 > 0)[None]
DIFFERENTIATED = [
    {}, {"dropout": 0.3, "seed": SEED}, {"window": 4, "causal": False}, {"softcap": 0.7, "key_mask": HIDDEN},
]  # fmt: skip


@pytest.mark.skipif(DEVICE != "cpu", reason="float64 runs in the interpreter only")
@pytest.mark.parametrize("options", matrix(DIFFERENTIATED, DIFFERENTIATED[-1:]), ids=str)
def test_gradients_are_derivatives(options, monkeypatch):
    tiled(monkeypatch, SMALL)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, H, T, 3, dtype=torch.float64, generator=generator, requires_grad=True)
        for H, T in ((2, 17), (1, 19), (1, 19))
    )
    slopes = torch.tensor([0.5, 0.25])

    def both(q, k, v):
        return kernels.attention(q, k, v, slopes=slopes, return_lse=True, backend="triton", **options)

    torch.use_deterministic_algorithms(False)
    assert torch.autograd.gradcheck(both, (q, k, v), fast_mode=True)


EVERYTHING = {
    "heads": (4, 2), "T": (37, 45), "D": 24, "dtype": torch.float32, "window": 9, "alibi": True, "dropout": 0.2,
    "softcap": 2.0, "padding": "left",
}  # fmt: skip


NOT_CAUSAL = EVERYTHING | {"window": (None, 3), "causal": False, "T": (45, 37)}


@pytest.mark.skipif(DEVICE != "cpu", reason="the sanitizer watches the interpreter")
@pytest.mark.parametrize("case", matrix([EVERYTHING, NOT_CAUSAL], [EVERYTHING]), ids=name_of)
def test_no_access_is_out_of_bounds_and_no_programs_race(case, monkeypatch):
    tiled(monkeypatch, SMALL)
    found, upstream = inputs(case)
    results = []
    for order in ("forward", "reverse"):
        with sanitize(order) as programs:
            results.append(
                run(lambda **x: kernels.attention(**x, **options_of(case), backend="triton"), found, torch.float32,
                    upstream[:1])
            )  # fmt: skip
        assert len(programs) == 3 and min(programs) > 8
    for name in results[0]:
        assert torch.equal(results[0][name], results[1][name]), f"{name} depends on the order of the programs"


def test_the_same_call_gives_the_same_bits():
    case = EVERYTHING | ({"T": (129, 129), "heads": (8, 1)} if DEVICE == "cuda" else {})
    found, upstream = inputs(case)
    options = options_of(case)
    repeats = 250 if DEVICE == "cuda" else 2
    first, *others = (
        run(lambda **x: kernels.attention(**x, **options, backend="triton"), found, torch.float32, upstream[:1])
        for _ in range(repeats)
    )
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)


def test_the_tiles_do_not_change_what_is_computed(monkeypatch):
    case = EVERYTHING | {"heads": (2, 1), "B": 1}
    found, upstream = inputs(case)
    results = []
    for tiles in ((16, 16), (64, 16), (16, 64), (32, 32)):
        tiled(monkeypatch, Tiles(*tiles, 4, 1))
        results.append(
            run(lambda **x: kernels.attention(**x, **options_of(case), backend="triton"), found, torch.float32,
                upstream[:1])
        )  # fmt: skip
    for name in results[0]:
        assert all(torch.allclose(results[0][name], other[name], rtol=1e-5, atol=2e-6) for other in results[1:])


@pytest.mark.parametrize("window", [None, 5])
def test_a_key_changes_nothing_before_it(window, monkeypatch):
    if DEVICE == "cpu":
        tiled(monkeypatch, SMALL)
    found, _ = inputs({"heads": (2, 1), "T": (40, 40), "D": 16, "dtype": torch.float32})
    before = kernels.attention(**found, window=window, backend="triton")
    for j in (0, 15, 16, 39):
        changed = {name: x.clone() for name, x in found.items()}
        changed["k"][:, :, j] += 1
        changed["v"][:, :, j] -= 1
        after = kernels.attention(**changed, window=window, backend="triton")
        assert torch.equal(before[:, :, :j], after[:, :, :j]) and not torch.equal(before[:, :, j], after[:, :, j])
        if window:
            assert torch.equal(before[:, :, j + window :], after[:, :, j + window :])


def test_decoding_from_a_cache_is_reading_at_once():
    found, _ = inputs({"heads": (4, 2), "T": (33, 33), "D": 32, "dtype": torch.float32})
    q, k, v = found.values()
    options = {"window": 12, "slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625], device=DEVICE), "backend": "triton"}
    whole = kernels.attention(q, k, v, **options)
    for t in (1, 2, 20, 33):
        last = kernels.attention(q[:, :, t - 1 : t], k[:, :, :t], v[:, :, :t], **options)
        assert torch.allclose(last, whole[:, :, t - 1 : t], rtol=1e-5, atol=1e-6)


DECODED = {"heads": (2, 1), "T": (3, 777), "D": 24, "dtype": torch.float32}
OF_MANY_KEYS = [
    DECODED,
    DECODED | {"T": (1, 400), "causal": False, "lse": True},
    DECODED | {"window": 300, "alibi": True, "softcap": 2.0, "dtype": torch.bfloat16},
    DECODED | {"T": (16, 513), "padding": "left", "dropout": 0.3, "lse": True},
    DECODED | {"T": (2, 600), "padding": "all of one", "window": (250, None), "dtype": torch.float16},
]


@pytest.mark.parametrize("case", matrix(OF_MANY_KEYS, OF_MANY_KEYS[2:4]), ids=name_of)
def test_the_keys_of_few_queries_are_split(case, monkeypatch):
    combined, launches = launch.combine_kernel, []

    class Counted:
        def __getitem__(self, grid):
            launches.append(grid)
            return combined[grid]

    monkeypatch.setattr(launch, "combine_kernel", Counted())
    agree(case)
    assert launches == [(2 * 2 * case["T"][0],)], "in shares"


@pytest.mark.skipif(DEVICE != "cpu", reason="the sanitizer watches the interpreter")
def test_no_two_shares_of_the_keys_race(monkeypatch):
    found, _ = inputs(DECODED)
    results = []
    for order in ("forward", "reverse"):
        with sanitize(order) as programs:
            results.append(kernels.attention(**found, window=500, backend="triton"))
        assert len(programs) == 2 and min(programs) > 8
    assert torch.equal(*results)


def test_a_key_mask_has_the_say_over_what_torch_sees():
    found, _ = inputs({"heads": (2, 1), "T": (9, 9), "D": 8, "dtype": torch.float32})
    mask = torch.ones(2, 9, dtype=torch.bool, device=DEVICE)
    mask[0, 5:], mask[1] = False, False
    for causal in (True, False):
        ours, theirs = (
            kernels.attention(**found, key_mask=mask, causal=causal, backend=backend) for backend in ("triton", "torch")
        )
        torch.testing.assert_close(ours, theirs)
        alone = {name: x[:1, :, :5] for name, x in found.items()}
        assert torch.allclose(ours[:1, :, :5], kernels.attention(**alone, causal=causal), atol=1e-6)
        assert not ours[1].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_a_number_stays_where_it_is_seen(bad):
    found, upstream = inputs({"heads": (2, 2), "T": (20, 20), "D": 16, "dtype": torch.float32})
    found["q"][0, 1, 7, 3] = bad
    ours = kernels.attention(**found, backend="triton")
    spoiled = torch.zeros(2, 2, 20, dtype=torch.bool, device=DEVICE)
    spoiled[0, 1, 7] = True
    assert torch.equal(ours.isnan().all(-1), spoiled) and torch.equal(ours.isnan().any(-1), spoiled)


def test_rows_that_see_nothing_are_zero_and_pass_no_gradient():
    found, upstream = inputs({"heads": (2, 1), "T": (20, 7), "D": 16, "dtype": torch.float32})
    out, lse = kernels.attention(**found, return_lse=True, backend="triton")
    assert not out[:, :, :13].any() and (lse[:, :, :13] == -math.inf).all() and lse[:, :, 13:].isfinite().all()
    ours = run(lambda **x: kernels.attention(**x, backend="triton"), found, torch.float32, upstream[:1])
    assert not ours["gradient of q"][:, :, :13].any() and ours["gradient of q"][:, :, 13:].all()


def test_dropout_drops_its_share_and_the_seed_decides_which():
    ones = torch.ones(1, 1, 128, 64, device=DEVICE)
    value = torch.eye(128, 64, device=DEVICE)[None, None]
    options = {"causal": False, "dropout": 0.25, "backend": "triton"}
    first, again, other = (
        kernels.attention(ones, ones, value, seed=torch.tensor([s], device=DEVICE), **options) for s in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert abs((first == 0).float().mean().item() - 0.25) < 0.02
    assert torch.allclose(first[first != 0], torch.tensor(1 / 128 / 0.75))
    torch.manual_seed(3)
    drawn = kernels.attention(ones, ones, value, **options)
    torch.manual_seed(3)
    assert torch.equal(drawn, kernels.attention(ones, ones, value, **options))
    assert not torch.equal(drawn, kernels.attention(ones, ones, value, **options))


def test_the_four_weights_that_share_a_draw_are_dropped_apart():
    kept = reference.dropout_keeps((2, 3), 64, 64, torch.tensor([7]), 0.5)
    for along in ((0, 1), (1, 0), (0, 8), (8, 0), (8, 8), (16, 0)):
        both = kept & kept.roll(along, (-2, -1))
        assert abs(both.float().mean().item() - 0.25) < 0.02, along


@pytest.fixture
def ways(monkeypatch):
    """Sets the way of small heads."""

    def choose(way: str) -> None:
        monkeypatch.setenv("CHARLM_SMALL_HEADS", way)
        small_heads.cache_clear()

    yield choose
    small_heads.cache_clear()


def test_small_heads_have_ways_around_a_compiler_that_fails(ways):
    found, _ = inputs({"heads": (2, 1), "T": (40, 40), "D": 24, "dtype": torch.float32})
    plain = kernels.attention(**found, backend="triton")
    ways("padded")
    assert torch.equal(kernels.attention(**found, backend="triton"), plain)
    call = Call(None, 0, 1.0, 0.0, 0.0, None, None, None, None, None, 0, 0)
    for kernel in ("forward", "dq", "dkv"):
        for dtype in (torch.bfloat16, torch.float32):
            of_way = {way: launch.constants(kernel, 24, dtype, "sm90", call, way) for way in ("padded", "two-warps")}
            assert of_way["padded"]["BLOCK_D"] == 64 and of_way["two-warps"]["num_warps"] == 2
            for way in of_way:
                assert launch.constants(kernel, 64, dtype, "sm90", call, way) == launch.constants(
                    kernel, 64, dtype, "sm90", call
                )
    ways("wide")
    with pytest.raises(ValueError, match="CHARLM_SMALL_HEADS is 'wide'; it may be plain, padded, two-warps"):
        kernels.attention(**found, backend="triton")


@pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU: 4 GB of keys")
def test_more_than_two_billion_elements():
    q = torch.randn(1, 1, 64, 64, device=DEVICE, dtype=torch.float16)
    k, v = torch.randn(2, 1, 1, 2**25 + 2**20, 64, device=DEVICE, dtype=torch.float16)
    ours = kernels.attention(q, k, v, causal=False, backend="triton")
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert torch.allclose(ours, theirs, atol=1e-3)
