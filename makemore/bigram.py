"""Bigram: a table of logits with a row for each previous token. Trained by gradient, or counted.

Row i holds the logits of the token after token i; `(V, V)` numbers are the whole model. Counting gives the same table
in closed form: the maximum of the likelihood, but for a little that is added to every count.
"""

import numpy as np
import torch
from torch import Tensor, nn

from data.tokenizers import Special
from makemore.base import OURS, LanguageModel, State
from makemore.config import BigramConfig
from makemore.constants import IMPROBABLE
from makemore.counts.bigram import bigram_table


class Bigram(LanguageModel):
    """tokens (B, T) -> logits (B, T, V), for each token its row of the table."""

    def __init__(self, vocab_size: int, config: BigramConfig, special: Special = OURS):
        super().__init__(vocab_size, config, special)
        self.table = nn.Embedding(vocab_size, vocab_size)
        with torch.no_grad():
            self.table.weight.zero_()
            self.table.weight[:, special.never_predicted] = IMPROBABLE

    def reach(self) -> int:
        return 1

    def hidden(self, tokens: Tensor, state: State | None, valid: Tensor | None) -> tuple[Tensor, State]:
        return self.table(tokens), {}

    def head(self, hidden: Tensor) -> Tensor:
        return hidden


class CountedBigram(Bigram):
    """The same table, fitted by counting. `n_counts` is the number of different pairs."""

    pairs: Tensor

    def __init__(self, vocab_size: int, config: BigramConfig, special: Special = OURS):
        super().__init__(vocab_size, config, special)
        self.register_buffer("pairs", torch.zeros((), dtype=torch.int64))

    @property
    def n_counts(self) -> int:
        return int(self.pairs)

    def fit(self, inputs: np.ndarray, targets: np.ndarray, position: np.ndarray) -> None:
        """Count `targets` (N,) after `inputs` (N,), in one pass."""
        table, pairs = bigram_table(inputs, targets, self.vocab_size, self.special)
        self.table.weight.data.copy_(torch.from_numpy(table))
        self.pairs.fill_(pairs)
