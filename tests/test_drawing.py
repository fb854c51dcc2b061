"""How one token is drawn from logits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.run.noise import Noise
from engine.run.sampling import Sampling, draw


def frequencies(logits: list[float], seen: list[int] | None = None, **options) -> torch.Tensor:
    """How often each token is drawn."""
    n = 20_000
    marks = torch.zeros(n, len(logits), dtype=torch.bool)
    marks[:, seen or []] = True
    generator = torch.Generator().manual_seed(0)
    noise = Noise(generator, n, len(logits))
    drawn = draw(torch.tensor(logits).double().repeat(n, 1), Sampling(**options), [noise], marks)
    return torch.bincount(drawn, minlength=len(logits)) / n


P = [0.5, 0.25, 0.15, 0.07, 0.03]
LOGITS = [math.log(p) + 3 for p in P]


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, P),
        ({"temperature": 0}, [1, 0, 0, 0, 0]),
        ({"temperature": 0.5}, [p**2 for p in P]),
        ({"temperature": 2}, [p**0.5 for p in P]),
        ({"top_k": 1}, [1, 0, 0, 0, 0]),
        ({"top_k": 3}, [*P[:3], 0, 0]),
        ({"top_k": 99}, P),
        ({"top_p": 0.4}, [1, 0, 0, 0, 0]),
        ({"top_p": 0.6}, [*P[:2], 0, 0, 0]),
        ({"top_p": 0.8}, [*P[:3], 0, 0]),
        ({"top_p": 1.0}, P),
        ({"min_p": 0.2}, [*P[:3], 0, 0]),
        ({"min_p": 1.0}, [1, 0, 0, 0, 0]),
        ({"min_p": 0.0}, P),
        ({"temperature": 0.5, "top_p": 0.9}, [0.25, 0.0625, 0, 0, 0]),
        ({"top_k": 4, "min_p": 0.2}, [*P[:3], 0, 0]),
    ],
    ids=str,
)
def test_tokens_are_drawn_from_the_distribution_that_was_asked_for(options, expected):
    expected = torch.tensor(expected, dtype=torch.float)
    assert torch.allclose(frequencies(LOGITS, **options), expected / expected.sum(), atol=0.012)


@pytest.mark.parametrize("order", [[4, 3, 2, 1, 0], [2, 0, 4, 1, 3]])
def test_the_order_of_the_vocabulary_makes_no_difference(order):
    found = frequencies([LOGITS[i] for i in order], top_p=0.8)
    expected = torch.tensor([P[i] if i < 3 else 0 for i in order])
    assert torch.allclose(found, expected / expected.sum(), atol=0.012)


def test_repetition_makes_seen_tokens_less_likely_whatever_their_sign():
    logits = [2.0, 2.0, -1.0, -1.0]
    expected = torch.tensor([2.0 / 1.5, 2.0, -1.0 * 1.5, -1.0]).softmax(0)
    assert torch.allclose(frequencies(logits, seen=[0, 2], repetition_penalty=1.5), expected, atol=0.012)
    assert frequencies(logits, seen=[0], repetition_penalty=2.0, temperature=0)[1] == 1


@given(
    logits=st.lists(st.floats(-1e30, 1e30) | st.just(-math.inf), min_size=2, max_size=8),
    temperature=st.sampled_from([0, 1e-300, 1e-6, 0.7, 1.0, 1000.0]),
    top_k=st.none() | st.integers(1, 9),
    top_p=st.none() | st.floats(0, 1, exclude_min=True),
    min_p=st.none() | st.floats(0, 1),
    penalty=st.sampled_from([0.01, 1.0, 1.3, 100.0]),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_whatever_is_asked_for_something_possible_is_drawn(logits, temperature, top_k, top_p, min_p, penalty):
    if max(logits) == -math.inf:
        logits[0] = 0.0
    values = torch.tensor([logits] * 3, dtype=torch.float64)
    sampling = Sampling(temperature, top_k, top_p, min_p, penalty)
    seen = torch.zeros_like(values, dtype=torch.bool)
    seen[1:, 0] = True
    drawn = draw(values.clone(), sampling, [Noise(torch.Generator().manual_seed(0), *values.shape)], seen)
    assert all(math.isfinite(logits[i]) for i in drawn.tolist())
    if temperature == 0 or top_k == 1:
        # Logits that differ by less than a number of float64 tells beside 1 have one probability.
        assert math.isclose(logits[int(drawn[0])], max(logits), rel_tol=1e-15, abs_tol=1e-15)


@given(steps=st.lists(st.integers(1, 16), min_size=1, max_size=12), rows=st.integers(1, 3))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_how_many_random_numbers_are_asked_for_at_a_time_makes_no_difference(steps, rows):
    one, some = (Noise(torch.Generator().manual_seed(5), rows, 7) for _ in range(2))
    for count in steps:
        numbers, used = some.ahead(count).clone(), max(1, count // 2)  # compiled code may draw fewer steps than asked
        some.use(used)
        assert torch.equal(numbers[:used], torch.stack([one.next().clone() for _ in range(used)]))
