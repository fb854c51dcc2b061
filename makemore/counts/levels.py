"""Counts of all n-grams of a text up to an order, and the Kneser-Ney tables that follow from them.

Contexts form a tree that grows backwards: the node of depth k stands for the last k tokens, its parent for the last
k - 1. So one walk from the root finds all known contexts, and the keys of every depth fit into 64 bits, whatever the
vocabulary: node * V + token.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from makemore.base import OURS


@dataclass
class Level:
    """All counts of one context length. Grams are sorted by (context, token)."""

    contexts: np.ndarray  # (contexts,) int64: parent context * V + the token one further back, sorted
    grams: np.ndarray  # (grams,) int64: context * V + token, sorted
    counts: np.ndarray  # (grams,) occurrences
    continuations: np.ndarray  # (grams,) different tokens one further back


def context_token(inputs: np.ndarray, position: np.ndarray, k: int, bos: int = OURS.bos) -> np.ndarray:
    """The token k >= 1 positions before each target, (N,). `inputs` (N,): the tokens one position before; `position`
    (N,): that of the target in its row, before which every token is `<bos>`."""
    return np.where(position >= k - 1, np.roll(inputs, k - 1), bos).astype(np.int64)


def count(
    inputs: np.ndarray, targets: np.ndarray, position: np.ndarray, order: int, vocab_size: int, bos: int = OURS.bos
) -> list[Level]:
    """Count every n-gram up to `order` that ends in one of `targets` (N,)."""
    targets = targets.astype(np.int64)
    context = np.zeros(len(targets), np.int64)
    levels: list[Level] = []
    for k in range(order):
        contexts = np.zeros(1, np.int64)
        if k:
            keys = context * vocab_size + context_token(inputs, position, k)
            contexts, context = np.unique(keys, return_inverse=True)
        grams, counts = np.unique(context * vocab_size + targets, return_counts=True)
        levels.append(Level(contexts, grams, counts, counts))
        if k:
            levels[k - 1].continuations = continuations(levels[k - 1], levels[k], vocab_size)
    return levels


def continuations(level: Level, longer: Level, vocab_size: int) -> np.ndarray:
    """Of each n-gram of `level`, the number of different tokens one further back, by the level of `longer` contexts."""
    shorter = longer.contexts[longer.grams // vocab_size] // vocab_size * vocab_size + longer.grams % vocab_size
    return np.bincount(np.searchsorted(level.grams, shorter), minlength=len(level.grams))


def held_out(position: np.ndarray) -> np.ndarray:
    """A mask (N,) of a tenth of a text, given each token's position in its row: every tenth row, so that a sorted list
    is not asked for letters that its beginning lacks; of fewer rows the last one, of a stream the last tenth."""
    starts = position == 0
    rows = int(starts.sum())
    if rows > 1:
        row = starts.cumsum() - 1
        return row % 10 == 9 if rows >= 10 else row == rows - 1
    return np.arange(len(position)) >= int(len(position) * 0.9)


def discounts(counts: np.ndarray) -> np.ndarray:
    """The discounts of counts of 0, 1, 2 and at least 3, (4,): Chen & Goodman's closed form."""
    n1, n2, n3, n4 = (np.bincount(np.minimum(counts, 5), minlength=6)[1:5]).astype(float)
    if not (n1 and n2 and n3):
        return np.array([0.0, 0.5, 0.5, 0.5])  # too little text to estimate them
    y = n1 / (n1 + 2 * n2)
    estimates = [0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    return np.clip(estimates, 0.0, [0.0, 0.99, 1.99, 2.99])


def smoothed(levels: list[Level], vocab_size: int) -> Iterator[dict[str, np.ndarray]]:
    """The tables of each context length, as `NGram` names them: from the counts of occurrences for the longest
    contexts, from continuation counts for the others."""
    for k, level in enumerate(levels):
        counts = level.counts if k == len(levels) - 1 else level.continuations
        context = level.grams // vocab_size
        total = np.bincount(context, counts, len(level.contexts))
        discount = discounts(counts)[np.minimum(counts, 3)]
        yield {
            "contexts": level.contexts,
            "grams": level.grams,
            "discounted": ((counts - discount) / total[context]).astype(np.float32),
            "backoff_weight": (np.bincount(context, discount, len(level.contexts)) / total).astype(np.float32),
            "total": total.astype(np.float32),
        }
