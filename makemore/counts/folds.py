"""Leave-one-out probabilities: each target of a text under the counts of all other folds of the text.

Counts of a text contain every target of it. A gate that learns how far to trust them has to see the counts without the
fold that the target is in. Nothing is counted again: the counts of a fold are subtracted.
"""

import numpy as np

from makemore.counts.levels import Level, context_token, discounts


def leave_one_out(
    levels: list[Level],
    inputs: np.ndarray,
    targets: np.ndarray,
    position: np.ndarray,
    fold: np.ndarray,
    vocab_size: int,
    uniform: float,
    bos: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The likelihood (N,) of each target that was counted into `levels`, and the confidence (N, 2 * order) of its
    context, as `NGram` computes them, without the counts of the target's `fold` (N,). `uniform`: the probability of a
    token under the uniform distribution.

    The discounts are those of all counts."""
    order, n_folds = len(levels), int(fold.max()) + 1
    discounted, backoff_weight, log_counts = (np.empty((order, len(targets)), np.float32) for _ in range(3))
    grams = gram_indices(levels, inputs, targets, position, vocab_size, bos)
    only_in_fold = None  # of the level of longer contexts: a target of each n-gram that no other fold has
    for k in reversed(range(order)):
        level = levels[k]
        # The pairs of an n-gram and a fold that it occurs in, a target and the number of targets of each pair, and the
        # pair of each target.
        pairs, first, pair, occurrences = np.unique(grams[k] * n_folds + fold, True, True, True)
        gram = pairs // n_folds
        counts = level.counts if only_in_fold is None else level.continuations
        removed = occurrences if only_in_fold is None else np.bincount(pair[only_in_fold], minlength=len(pairs))
        remaining = counts[gram] - removed
        discount = discounts(counts)
        context = level.grams // vocab_size
        total = np.bincount(context, counts, len(level.contexts))
        discount_mass = np.bincount(context, discount[np.minimum(counts, 3)], len(level.contexts))
        # The same for the pairs of a context and a fold; `row` is the one of each pair of an n-gram.
        keys, row = np.unique(context[gram] * n_folds + pairs % n_folds, return_inverse=True)
        total = total[keys // n_folds] - np.bincount(row, removed, len(keys))
        change = discount[np.minimum(remaining, 3)] - discount[np.minimum(counts[gram], 3)]
        discount_mass = discount_mass[keys // n_folds] + np.bincount(row, change, len(keys))
        is_known = total > 0
        frequency = (remaining - discount[np.minimum(remaining, 3)]) / np.maximum(total, 1)[row]
        discounted[k] = np.where(is_known[row], frequency, 0)[pair]
        backoff_weight[k] = np.where(is_known, discount_mass / np.maximum(total, 1), 1)[row[pair]]
        log_counts[k] = np.log1p(total)[row[pair]]
        only_in_fold = first[occurrences == level.counts[gram]]
    likelihood = np.full(len(targets), uniform)
    for k in range(order):
        likelihood = discounted[k] + backoff_weight[k] * likelihood
    confidence = np.stack([log_counts, backoff_weight], 1).reshape(2 * order, -1).T.copy()
    return likelihood.astype(np.float32), confidence


def gram_indices(
    levels: list[Level], inputs: np.ndarray, targets: np.ndarray, position: np.ndarray, vocab_size: int, bos: int
) -> list[np.ndarray]:
    """The index, in each level, of the n-gram that ends in each target, (N,) each."""
    targets = targets.astype(np.int64)
    node, indices = np.zeros(len(targets), np.int64), []
    for k, level in enumerate(levels):
        if k:
            node = np.searchsorted(level.contexts, node * vocab_size + context_token(inputs, position, k, bos))
        indices.append(np.searchsorted(level.grams, node * vocab_size + targets))
    return indices
