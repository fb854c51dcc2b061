"""Hashed n-grams: to each token's embedding come those of the last two, three, ... tokens together.

Pagnoni et al., "Byte Latent Transformer: Patches Scale Better Than Tokens", 2024, section 3.2.1. There are far more
n-grams than rows, so that a hash says which row an n-gram has; those that share one are told apart by the others.
"""

import torch
from torch import Tensor, nn

_MULTIPLIER = 1_000_003
_SCATTER = 2_654_435_761  # Knuth's multiplicative hash: 2^32 over the golden ratio


def longer(hashed: Tensor, before: Tensor) -> Tensor:
    """The hash of an n-gram with one token more `before` it; of nothing it is 0. Integers wrap around."""
    return hashed * _MULTIPLIER + before + 1


def row_of(hashed: Tensor, n: int, rows: int) -> Tensor:
    """Which of `rows` rows an n-gram of this hash has."""
    return ((hashed ^ (hashed >> 15)) * _SCATTER + n) % rows


class HashedNGrams(nn.Module):
    """tokens (B, n - 1 + T), the first n - 1 being what was read before -> (B, T, C), the sum of the embeddings of the
    2- to n-grams that end in each of the last T.

    The gradient is sparse: it holds the rows that a batch has met, whatever their number."""

    def __init__(self, n: int, rows: int, width: int):
        super().__init__()
        self.n, self.rows = n, rows
        self.table = nn.Embedding((n - 1) * rows, width, sparse=True)
        nn.init.zeros_(self.table.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        T = tokens.shape[1] - (self.n - 1)
        hashed, places = torch.zeros_like(tokens[:, :T]), []
        for k in range(self.n):
            hashed = longer(hashed, tokens[:, self.n - 1 - k : self.n - 1 - k + T])
            if k:
                places.append(row_of(hashed, k, self.rows) + (k - 1) * self.rows)
        return self.table(torch.stack(places, -1)).sum(-2)
