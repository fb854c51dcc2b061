"""The bigram by counting: the table that gradients would end at, in closed form."""

import numpy as np
from numpy.typing import NDArray

from data.tokenizers import Special

SMOOTHING = 0.1
IMPOSSIBLE = -50.0  # the log-probability given to specials that are never predicted


def bigram_table(inputs: NDArray, targets: NDArray, vocab_size: int, special: Special) -> tuple[NDArray, int]:
    """The log-probability of each token after each other, (V, V) float64, and the number of different pairs. From all
    pairs of a text, (N,) each, with `SMOOTHING` added to every count (Laplace 1812)."""
    pairs = inputs.astype(np.int64) * vocab_size + targets
    counts = np.bincount(pairs, minlength=vocab_size**2).reshape(vocab_size, vocab_size)
    smoothed = counts + SMOOTHING
    smoothed[:, special.never_predicted] = 0
    with np.errstate(divide="ignore"):
        table = np.log(smoothed / smoothed.sum(1, keepdims=True))
    return np.maximum(table, IMPOSSIBLE), int((counts > 0).sum())
