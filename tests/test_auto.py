"""What `auto` takes of the kernels: Triton where it was measured to be faster, on such a GPU alone."""

import pytest
import torch

import kernels
from kernels import auto
from kernels.attention.tiles import tiles


@pytest.fixture
def hopper(monkeypatch):
    monkeypatch.setattr(auto, "on_hopper", lambda device: True)


def queries(T: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(1, 1, T, 16, dtype=dtype)


@pytest.mark.parametrize(
    "T, options, wins",
    [
        (256, {"is_capped": True}, True),
        (256, {"is_capped": True, "dropout": 0.1}, True),
        (255, {"is_capped": True}, False),
        (1024, {"is_sloped": True}, True),
        (1024, {"is_sloped": True, "dropout": 0.1}, False),
        (1024, {"is_windowed": True}, False),
        (2048, {"is_windowed": True}, True),
        (16384, {}, False),
    ],
)
def test_attention_takes_triton_where_it_was_faster(hopper, T, options, wins):
    assert auto.attention_wins(queries(T), **options) == wins
    assert not auto.attention_wins(queries(T, torch.float32), **options)


def test_under_autocast_its_dtype_counts(hopper):
    with torch.autocast("cpu", torch.bfloat16):
        assert auto.attention_wins(queries(256, torch.float32), is_capped=True)


def test_cross_entropy_takes_triton_of_many_logits(hopper):
    like = queries(1)
    assert auto.cross_entropy_wins(like, 2048, 32768) and not auto.cross_entropy_wins(like, 2047, 32768)
    assert not auto.cross_entropy_wins(like.float(), 2048, 32768)


def test_no_other_machine_takes_it():
    assert not auto.on_hopper(torch.device("cpu"))
    assert not auto.attention_wins(queries(4096), is_capped=True)


def test_auto_is_asked_with_what_a_call_is_given(monkeypatch):
    asked = []
    monkeypatch.setattr(auto, "attention_wins", lambda *given: asked.append(given[1:]) or False)
    monkeypatch.setattr(auto, "cross_entropy_wins", lambda like, *given: asked.append(given) or False)
    q, logits, targets = torch.randn(1, 2, 4, 16), torch.randn(2, 3, 7), torch.zeros(2, 3, dtype=torch.int64)
    kernels.attention(q, q, q, softcap=2.0, dropout=0.5)
    kernels.attention(q, q, q, slopes=torch.ones(2), window=3)
    kernels.cross_entropy(logits, targets)
    kernels.linear_cross_entropy(logits, torch.randn(9, 7), targets)
    assert asked == [(True, False, False, 0.5), (False, True, True, 0.0), (6, 7), (6, 9)]


def test_no_tile_of_the_keys_gradient_has_few_queries():
    """With 16 of them the compiler of Triton 3.6 made wrong gradients: dropout and a key mask together."""
    every = [
        tiles("dkv", size, dtype, target, plain, way)
        for size in (16, 32, 64, 128)
        for dtype in (torch.float32, torch.bfloat16)
        for target in ("sm80", "sm90", "hip")
        for plain in (True, False)
        for way in ("plain", "two-warps")
    ]
    assert all(isinstance(tile, tuple) and tile.block_m >= 32 for tile in every)


def test_a_layer_is_filled_up_with_nothing_that_counts():
    """A row that is ignored may hold no numbers: neither then may the logits that only fill up."""
    from kernels.cross_entropy.linear_op import _Layer

    layer = _Layer(torch.randn(9, 4), torch.randn(9), rows=3)
    hidden = torch.randn(3, 4)
    hidden[1] = float("nan")
    layer.logits(hidden)
    assert torch.isfinite(layer.back(torch.ones(3, 9))).all()
