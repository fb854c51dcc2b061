"""The order of an epoch without an array of it: any part is computed by itself, whatever the number of items.

A permutation of [0, n) is a Feistel network (Luby & Rackoff 1988): it splits the bits of a number in two halves, and in
every round adds a hash of one half to the other by XOR, which can be undone whatever the hash is. So it is a bijection
of the numbers of so many bits; one that is mapped to n or more is mapped again, until it is below n (cycle walking,
Black & Rogaway 2002).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
ROUNDS = 6  # in each the halves change places, of which one may be a bit longer
BLOCK = 1 << 12  # positions that are computed at once: NumPy's fixed cost of 50 calls is shared by many batches


class Permutation:
    """A random permutation of [0, n), for n up to 2^62, with keys drawn from `rng`."""

    def __init__(self, n: int, rng: np.random.Generator):
        bits = max(2, (n - 1).bit_length())
        self.n, self._low = n, bits // 2  # the bits of the lower half
        self._high = bits - self._low
        self._keys = rng.integers(1 << 64, size=ROUNDS, dtype=np.uint64)

    def __call__(self, positions: Array) -> Array:
        """The numbers at these positions of the permutation: int64, of any shape."""
        numbers = self._network(positions.astype(np.uint64).ravel())
        while len(outside := np.flatnonzero(numbers >= self.n)):  # on average fewer than half of a large n's
            numbers[outside] = self._network(numbers[outside])
        return numbers.astype(np.int64).reshape(positions.shape)

    def _network(self, numbers: Array) -> Array:
        """The Feistel network on uint64 numbers below 2^bits, (numbers,)."""
        low, high = self._low, self._high
        left, right = numbers >> np.uint64(low), numbers & np.uint64((1 << low) - 1)
        for key in self._keys:
            left, right = right, left ^ (hashed(right + key) & np.uint64((1 << high) - 1))
            low, high = high, low
        return left << np.uint64(low) | right


def hashed(x: Array) -> Array:
    """A hash of each uint64: the finalizer of SplitMix64 (Steele, Lea & Flood 2014)."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


class ComputedOrder:
    """A sequence of `length` items, of which slices are computed: `items_at` maps positions (int64) to items."""

    def __init__(self, length: int, items_at: Callable[[Array], Array]):
        self._length, self._items_at = length, items_at
        self._first, self._block = 0, np.zeros(0, np.int64)  # the items that were computed last, from `_first` on

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice) -> Array:
        start, stop, _ = part.indices(self._length)
        if not self._first <= start <= stop <= self._first + len(self._block):
            positions = np.arange(start, min(max(stop, start + BLOCK), self._length))
            self._first, self._block = start, self._items_at(positions)
        return self._block[start - self._first : stop - self._first]
