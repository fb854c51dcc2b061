"""Training texts with random changes of single characters, others in each epoch, so that no label hangs on one.

What a text becomes follows from (seed, epoch, its number) alone, so that a run that goes on draws the same.
"""

from collections.abc import Callable, Sequence

import numpy as np

from data.batches import Array, Batch
from data.loaders import Deal
from data.rows import Row, RowLoader, collate

CHANGES = 3  # kinds: replaced, left out, put in


class AugmentedLoader(RowLoader):
    """The rows of `texts`, each changed at `rate` and read by `encode`, which takes a text and its number. `rows` are
    those of the unchanged texts, by whose lengths batches are made; `longest` is the most tokens that any has."""

    def __init__(
        self,
        rows: Sequence[Row],
        texts: Sequence[str],
        rate: float,
        encode: Callable[[str, int], Row],
        batch_size: int,
        seed: int,
        pad: int,
        longest: int,
    ):
        super().__init__(rows, batch_size, seed, pad)
        self.texts, self.rate, self.encode, self._most = texts, rate, encode, longest
        self.alphabet = sorted(set().union(*texts))

    @property
    def longest(self) -> int:
        return self._most

    def batch(self, deal: Deal) -> Batch[Array]:
        rows = []
        for item in deal.items.tolist():
            rng = np.random.default_rng((self.seed, deal.epoch, item))
            rows.append(self.encode(changed(self.texts[item], self.rate, self.alphabet, rng), item))
        return collate(rows, self.pad)._replace(fresh=deal.fresh)


def changed(text: str, rate: float, alphabet: Sequence[str], rng: np.random.Generator) -> str:
    """`text`, where each character is changed with probability `rate`: replaced by one of `alphabet`, left out, or with
    one of them put in before it, each a third of the time. A text of which nothing would be left stays as it is."""
    hit = rng.random(len(text)) < rate
    kinds, new = rng.integers(0, CHANGES, len(text)), rng.integers(0, len(alphabet), len(text))
    parts = []
    for n, character in enumerate(text):
        if hit[n]:
            character = (alphabet[new[n]], "", alphabet[new[n]] + character)[kinds[n]]
        parts.append(character)
    return found if (found := "".join(parts)).strip() else text
