"""What counts would say of their own text: each part of it judged by the counts of all the other parts.

Counts remember: they know every target of the text they were taken from. So whoever is to learn how far they can be
trusted has to see them without the part, or fold, that the target is in (leave-one-out, with folds as what is left
out). Nothing is counted anew: what a fold put into the tables is taken out again, place by place.
"""

import numpy as np

from makemore.counts.ngram import Level, backwards, discounts


def elsewhere(
    levels: list[Level],
    inputs: np.ndarray,
    targets: np.ndarray,
    position: np.ndarray,
    fold: np.ndarray,
    vocab_size: int,
    base: float,
    bos: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The likelihood (N,) of each target that was counted into `levels`, and the confidence (N, 2 * order) of each
    context, as `NGram` has them, without the counts of its `fold` (N,). `base`: the probability of any token.

    Discounts stay those of all counts."""
    order, n_folds = len(levels), int(fold.max()) + 1
    shares, freed, totals = (np.empty((order, len(targets)), np.float32) for _ in range(3))
    grams = _places(levels, inputs, targets, position, vocab_size, bos)
    only_here = None  # of the level below: a target of each n-gram that no other fold has
    for k in reversed(range(order)):
        level = levels[k]
        # Every n-gram with every fold that it occurs in, and which of these pairs each target is
        pairs, first, pair, raw = np.unique(grams[k] * n_folds + fold, True, True, True)
        gram = pairs // n_folds
        counts = level.counts if only_here is None else level.continuations
        lost = raw if only_here is None else np.bincount(pair[only_here], minlength=len(pairs))
        left = counts[gram] - lost
        taken = discounts(counts)
        context = level.grams // vocab_size
        total = np.bincount(context, counts, len(level.contexts))
        mass = np.bincount(context, taken[np.minimum(counts, 3)], len(level.contexts))
        # The same for each context with each fold
        keys, within = np.unique(context[gram] * n_folds + pairs % n_folds, return_inverse=True)
        total = total[keys // n_folds] - np.bincount(within, lost, len(keys))
        change = taken[np.minimum(left, 3)] - taken[np.minimum(counts[gram], 3)]
        mass = mass[keys // n_folds] + np.bincount(within, change, len(keys))
        seen = total > 0
        share = (left - taken[np.minimum(left, 3)]) / np.maximum(total, 1)[within]
        shares[k] = np.where(seen[within], share, 0)[pair]
        freed[k] = np.where(seen, mass / np.maximum(total, 1), 1)[within[pair]]
        totals[k] = np.log1p(total)[within[pair]]
        only_here = first[raw == level.counts[gram]]
    likelihood = np.full(len(targets), base)
    for k in range(order):
        likelihood = shares[k] + freed[k] * likelihood
    return likelihood.astype(np.float32), np.stack([totals, freed], 1).reshape(2 * order, -1).T.copy()


def _places(
    levels: list[Level], inputs: np.ndarray, targets: np.ndarray, position: np.ndarray, vocab_size: int, bos: int
) -> list[np.ndarray]:
    """Which n-gram of each level every target ends, (N,) each."""
    targets = targets.astype(np.int64)
    node, found = np.zeros(len(targets), np.int64), []
    for k, level in enumerate(levels):
        if k:
            node = np.searchsorted(level.contexts, node * vocab_size + backwards(inputs, position, k, bos))
        found.append(np.searchsorted(level.grams, node * vocab_size + targets))
    return found
