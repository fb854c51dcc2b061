"""Batches with a part of each row hidden, for a model that says what stands there.

Devlin et al., "BERT", 2019; whole spans instead of single tokens: Joshi et al., "SpanBERT", 2020. What is hidden
follows from (seed, epoch, item, position) by a hash: so it is another in each epoch, the same after a resume, and the
same whichever process makes a row.
"""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from data.batches import IGNORE, Array, Batch
from data.orders import hashed
from data.tokenizers import Special

OF_EVALUATION = 2**63  # in the place of a run's seed, which is smaller


@dataclasses.dataclass(frozen=True)
class Masking:
    """Hides spans of the tokens of each row behind `<unk>`: about `rate` of them, in spans of `span` tokens in the
    middle, from 1 to 2 `span` - 1. Of a row that has a token to hide at least one is. `rows_end`: whether rows are
    lines, of which what follows `<eos>` is padding."""

    rate: float
    span: int
    seed: int
    special: Special
    rows_end: bool

    def __call__(self, batch: Batch[Array], items: Array, epoch: int, /) -> Batch[Array]:
        """`batch` (B, T), of the items (B,): what is hidden is the targets, IGNORE elsewhere."""
        tokens = batch.tokens
        if self.rows_end:  # a model that reads both ways reads padding too: it has to be told apart
            tokens = np.where(tokens == self.special.eos, self.special.pad, tokens)
        hidden = self.hidden(tokens, items, epoch)
        targets = np.where(hidden, tokens, IGNORE)
        tokens = np.where(hidden, self.special.unk, tokens)
        return batch._replace(tokens=tokens, targets=targets, n_tokens=int(hidden.sum()), position=None)

    def hidden(self, tokens: Array, items: Array, epoch: int) -> Array:
        """Which of the tokens (B, T) are hidden: bool."""
        may_be = ~np.isin(tokens, self.special)
        begins, length = self._draws(items, epoch, tokens.shape[1])
        begins_here = begins < 1 - (1 - self.rate) ** (1 / self.span)  # the chance that `span` places hide one
        reach = 1 + (length * (2 * self.span - 1)).astype(np.int64)
        hidden = begins_here.copy()
        for n in range(1, min(2 * self.span - 1, tokens.shape[1])):
            hidden[:, n:] |= (begins_here & (reach > n))[:, :-n]
        hidden &= may_be
        bare = may_be.any(1) & ~hidden.any(1)
        one = np.where(may_be, begins, 2).argmin(1)
        hidden[bare, one[bare]] = True
        return hidden

    def _draws(self, items: Array, epoch: int, width: int) -> tuple[Array, Array]:
        """Two numbers from 0 to 1 for each place of the rows, (B, width) each."""
        run = hashed(np.array([self.seed], np.uint64) + hashed(np.array([epoch], np.uint64)))
        row = hashed(run + items.astype(np.uint64))[:, None]
        place = hashed(row + np.arange(width, dtype=np.uint64))
        return tuple(each / 2.0**64 for each in (place, hashed(place + np.uint64(1))))  # type: ignore[return-value]

    def of_evaluation(self, batches: Iterable[Batch[Array]]) -> Iterator[Batch[Array]]:
        """The batches of an evaluation, with the same hidden each time, whatever the seed of the run."""
        fixed, count = dataclasses.replace(self, seed=OF_EVALUATION), 0
        for batch in batches:
            items = np.arange(count, count + len(batch.tokens))
            yield fixed(batch, items, 0)
            count += len(items)
