"""Hashed n-gram embeddings: a row for the last two tokens, one for the last three, ... added to each token's embedding.

Pagnoni et al., "Byte Latent Transformer: Patches Scale Better Than Tokens", 2024, section 3.2.1. There are far more
n-grams than rows, so a hash of the n-gram picks its row. N-grams of one length that share a row usually differ in the
rows of the other lengths.
"""

import torch
from torch import Tensor, nn

_MULTIPLIER = 1_000_003
_SCATTER = 2_654_435_761  # Knuth's multiplicative hash: 2^32 over the golden ratio


def longer(hashed: Tensor, token: Tensor) -> Tensor:
    """The hash of an n-gram of the hash `hashed` with one more `token` before it; that of the empty one is 0. Integers
    wrap around."""
    return hashed * _MULTIPLIER + token + 1


def row_of(hashed: Tensor, n: int, rows: int) -> Tensor:
    """The row, of `rows`, of an n-gram with this hash."""
    return ((hashed ^ (hashed >> 15)) * _SCATTER + n) % rows


class HashedNGrams(nn.Module):
    """tokens (B, n - 1 + T), of which the first n - 1 are the history -> (B, T, C): for each of the last T tokens the
    sum of the embeddings of the 2- to n-grams that end in it.

    The gradient is sparse: it holds only the rows that occur in the batch."""

    def __init__(self, n: int, rows: int, width: int):
        super().__init__()
        self.n, self.rows = n, rows
        self.table = nn.Embedding((n - 1) * rows, width, sparse=True)
        nn.init.zeros_(self.table.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        T = tokens.shape[1] - (self.n - 1)
        hashed, rows = torch.zeros_like(tokens[:, :T]), []
        for k in range(self.n):
            hashed = longer(hashed, tokens[:, self.n - 1 - k : self.n - 1 - k + T])
            if k:
                rows.append(row_of(hashed, k, self.rows) + (k - 1) * self.rows)
        return self.table(torch.stack(rows, -1)).sum(-2)
