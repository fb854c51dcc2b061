"""Intervals of 95% around what was measured on a sample."""

import math

import numpy as np

Z = 1.959964  # of a normal distribution 95% lie within so many deviations
RESAMPLES = 2000
SEED = 0  # the same interval at every call


def of_share(hits: int, count: int) -> tuple[float, float]:
    """Of a share of `count` cases (Wilson 1927): it stays within 0 and 1 and is sound for few cases too."""
    if not count:
        return 0.0, 1.0
    p, square = hits / count, Z * Z / count
    middle = (p + square / 2) / (1 + square)
    half = Z / (1 + square) * math.sqrt(p * (1 - p) / count + square / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def of_ratio(above: np.ndarray, below: np.ndarray) -> tuple[float, float]:
    """Of sum(above) / sum(below), (N,) each, the cases drawn again with replacement (Efron 1979)."""
    rng, N = np.random.default_rng(SEED), len(above)
    found = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        drawn = rng.integers(0, N, N)
        found[i] = above[drawn].sum() / below[drawn].sum()
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)
