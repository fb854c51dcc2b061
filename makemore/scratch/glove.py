"""GloVe: vectors of words whose products are the logarithms of how often words stand near each other.

    python -m makemore.scratch.glove --data shakespeare [--words romeo king] [--out vectors.npz]

Pennington et al., "GloVe: Global Vectors for Word Representation", 2014. The text is read once, for the counts; what is
trained on are the counts.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data.errors import run_command
from makemore.scratch import word_command
from makemore.scratch.functions import Array
from makemore.scratch.rows import RowAdagrad
from makemore.scratch.words import Words

BATCH = 4096  # counts a step
PIECE = 1 << 20  # pairs that are counted at a time


@dataclass
class Options(word_command.Options):
    """Learn vectors of words from how often words stand near each other."""

    window: int = 10
    """Neighbours are at most this many words away; one d words away counts 1/d."""
    most: float = 10.0
    """Counts from this one on weigh the same, smaller ones less."""
    epochs: int = 10
    """Times over the counts."""
    lr: float = 0.05
    """Adagrad's learning rate."""


def weighted_squares(
    a: Array, b: Array, counts: Array, most: float
) -> tuple[Array, Callable[..., tuple[Array, Array]]]:
    """The mean over P pairs of f(x) (w v + b + c - log x)^2, f(x) = min(1, (x / most)^(3/4)): `a` (P, C + 1) are the
    vectors w and their biases b, `b` the v and c, `counts` the x (P,). `back` gives the derivatives by a and b."""
    off = (a[:, :-1] * b[:, :-1]).sum(1) + a[:, -1] + b[:, -1] - np.log(counts)
    weight = np.minimum(1, (counts / most) ** 0.75)

    def back(dloss: float = 1.0) -> tuple[Array, Array]:
        ds = (2 * weight * off * (dloss / len(off)))[:, None]
        return np.hstack([ds * b[:, :-1], ds]), np.hstack([ds * a[:, :-1], ds])

    return (weight * off * off).sum() / len(off), back


def train(words: Words, options: Options, report: Callable[[int, float], None]) -> Array:
    """The vectors (V, C) of the words, each the sum of its two; `report(epoch, loss)` after each time over the
    counts."""
    rng = np.random.default_rng(options.seed)
    rows, columns, counts = cooccurrences(words, options.window)
    size = (len(words.vocabulary), options.n_embd + 1)  # the last number of a row is its bias
    a, b = (((rng.random(size) - 0.5) / options.n_embd).astype(np.float32) for _ in range(2))
    steps = RowAdagrad(a, options.lr), RowAdagrad(b, options.lr)
    for epoch in range(options.epochs):
        total = 0.0
        for at in np.array_split(rng.permutation(len(rows)), -(-len(rows) // BATCH)):
            loss, back = weighted_squares(a[rows[at]], b[columns[at]], counts[at], options.most)
            da, db = back()
            steps[0].step(rows[at], da)
            steps[1].step(columns[at], db)
            total += float(loss) * len(at)
        report(epoch, total / len(rows))
    return (a + b)[:, :-1]


def cooccurrences(words: Words, window: int) -> tuple[Array, Array, Array]:
    """How often each word stands near each other one, as the row, the column and the count (P,) of all pairs that do.
    Both orders are there: the table is symmetric."""
    n, tokens = len(words.vocabulary), words.tokens.astype(np.int64)
    keys, counts = np.zeros(0, np.int64), np.zeros(0, np.float64)
    for start in range(0, len(tokens), PIECE):
        piece = tokens[start : start + PIECE + window]
        for distance in range(1, window + 1):
            a, b = piece[:-distance][:PIECE], piece[distance:][:PIECE]
            keys = np.concatenate([keys, a * n + b, b * n + a])
            counts = np.concatenate([counts, np.full(2 * len(a), 1 / distance)])
        keys, which = np.unique(keys, return_inverse=True)
        counts = np.bincount(which, counts).astype(np.float64)
    return keys // n, keys % n, counts.astype(np.float32)


if __name__ == "__main__":
    sys.exit(run_command(lambda: word_command.main(Options, train, "makemore.scratch.glove")))
