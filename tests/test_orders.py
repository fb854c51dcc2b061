"""Orders that are computed: a permutation of every size, any part of it by itself, random as far as a test sees."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import loaders
from data.loaders import LineLoader, StreamLoader
from data.orders import BLOCK, ComputedOrder, Permutation
from tests.test_batches import lines, same, stream

FIXED = settings(max_examples=60, deadline=None, derandomize=True)
LARGE = st.integers(1 << 22, 1 << 50)


def permutation(n: int, seed: int = 0) -> Permutation:
    return Permutation(n, np.random.default_rng((seed, 0)))


def test_it_is_a_permutation_of_every_small_size():
    for n in [*range(1, 300), 1023, 1024, 1025, 4095, 4096, 4097, 65_535, 65_536, 65_537]:
        assert np.array_equal(np.sort(permutation(n)(np.arange(n))), np.arange(n)), n


@FIXED
@given(n=LARGE, seed=st.integers(0, 9), share=st.floats(0, 1))
def test_of_a_large_size_no_two_positions_have_the_same_number(n, seed, share):
    start = int(share * (n - 20_000))
    numbers = permutation(n, seed)(np.arange(start, start + 20_000))
    assert numbers.dtype == np.int64 and 0 <= numbers.min() and numbers.max() < n
    assert len(np.unique(numbers)) == 20_000


@FIXED
@given(n=LARGE, first=st.integers(0, 1 << 21), sizes=st.lists(st.integers(0, 2 * BLOCK), max_size=12))
def test_any_part_of_an_order_can_be_computed_by_itself(n, first, sizes):
    whole = permutation(n)(np.arange(first, first + sum(sizes)))
    order = ComputedOrder(n, permutation(n))
    for size in sizes:
        assert np.array_equal(order[first : first + size], whole[:size])
        first, whole = first + size, whole[size:]


def test_an_order_ends_where_its_items_end():
    order = ComputedOrder(10, lambda positions: positions * 2)
    assert len(order) == 10 and order[7:99].tolist() == [14, 16, 18] and order[10:12].tolist() == []


@pytest.mark.parametrize("n", [1 << 22, (1 << 22) + 1, 10**12])
def test_the_numbers_are_spread_and_each_is_independent_of_the_one_before(n):
    count, cells = 1 << 16, 16
    cell = permutation(n, seed=1)(np.arange(count)) * cells // n  # which sixteenth of the items
    pairs = np.bincount(cell[:-1] * cells + cell[1:], minlength=cells * cells)
    expected = (count - 1) / cells**2
    chi_square = ((pairs - expected) ** 2 / expected).sum()
    assert 150 < chi_square < 370, "255 degrees of freedom: five standard deviations"
    low = np.bincount(permutation(n, seed=1)(np.arange(count)) % cells, minlength=cells)
    assert ((low - count / cells) ** 2 / (count / cells)).sum() < 45, "the lowest bits"


def test_as_many_numbers_stay_where_they_are_as_in_a_random_permutation():
    fixed = [int((permutation(1000, seed)(np.arange(1000)) == np.arange(1000)).sum()) for seed in range(400)]
    assert 0.8 < np.mean(fixed) < 1.2 and 0.7 < np.var(fixed) < 1.4, "Poisson, mean 1"


def test_another_seed_or_epoch_gives_another_order():
    keys = [(seed, epoch) for seed in range(4) for epoch in range(4)]
    firsts = {tuple(Permutation(1 << 30, np.random.default_rng(key))(np.arange(5))) for key in keys}
    assert len(firsts) == len(keys)


LOADERS = {"stream": lambda **how: StreamLoader(stream(500), 3, 4, 7, **how),
           "lines": lambda **how: LineLoader(lines([1 + i % 7 for i in range(120)]), 3, 4, 7, **how)}  # fmt: skip


@pytest.mark.parametrize("kind", LOADERS)
def test_only_a_large_epoch_of_a_loader_that_computes_its_order_is_in_another_order(kind, monkeypatch):
    def begin(**how) -> list:
        loader = LOADERS[kind](**how)
        return [loader.next() for _ in range(90)]

    arrays = begin()
    assert all(map(same, begin(computes_order=True), arrays))
    monkeypatch.setattr(loaders, "LARGE_EPOCH", 50)
    assert all(map(same, begin(), arrays))
    assert not any(map(same, begin(computes_order=True), arrays))


@pytest.mark.parametrize("kind", LOADERS)
def test_a_large_epoch_visits_every_item_once_and_goes_on_from_its_state(kind, monkeypatch):
    monkeypatch.setattr(loaders, "LARGE_EPOCH", 50)
    loader, array = LOADERS[kind](computes_order=True), LOADERS[kind]()
    rng = np.random.default_rng((loader.seed, 0))
    items = loader._epoch_order(rng)
    assert isinstance(items, ComputedOrder)
    assert sorted(items[:]) == sorted(array._epoch_order(np.random.default_rng((loader.seed, 0))))
    shared = LOADERS[kind](computes_order=True)
    for n in range(100):
        if n % 7 == 3:
            again = LOADERS[kind](computes_order=True)
            again.load_state_dict(json.loads(json.dumps(loader.state_dict())))
            loader = again
        batch, deal = loader.next(), shared.deal()
        parts = [shared.batch(deal.share(rank, 2)) for rank in range(2)]
        assert [*batch.position] == [start for part in parts for start in part.position]


def test_an_epoch_of_ten_to_the_twelve_tokens_needs_no_memory():
    class Huge:
        dtype = np.dtype(np.uint16)

        def __len__(self) -> int:
            return 10**12

    loader = StreamLoader(type("Split", (), {"tokens": Huge(), "special": None})(), 1024, 480, 0, computes_order=True)
    starts = np.concatenate([loader._take(480) for _ in range(20)])
    assert len(np.unique(starts)) == 9600 and starts.min() >= 0 and starts.max() + 1024 < 10**12
