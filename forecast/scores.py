"""What forecasts are worth, and the two that every forecast has to beat. All numbers are float64."""

import numpy as np

MOST_SEASON = 1000  # steps of a season that is looked for
ORIGINS = 200  # at which each season is tried
AS_GOOD = 1.02  # a shorter season that is nearly as good is taken


def seasonal_naive(history: np.ndarray, ahead: int, season: int) -> np.ndarray:
    """The values (ahead,) that stood one season before, the last season again and again; of season 1 the last value."""
    return np.resize(history[-season:], ahead)


def best_season(history: np.ndarray, ahead: int) -> int:
    """The season whose naive forecasts of so many steps were best in a history (T,), the shortest of equal ones."""
    longest = max(1, min(MOST_SEASON, len(history) // 3))
    if len(history) < longest + ahead:
        return 1
    origins = np.unique(np.linspace(longest, len(history) - ahead, ORIGINS).astype(int))[:, None]
    steps = np.arange(ahead)
    truth = history[origins + steps]
    errors = np.array([np.abs(history[origins - m + steps % m] - truth).mean() for m in range(1, longest + 1)])
    return int(np.argmax(errors <= AS_GOOD * errors.min())) + 1


def mean_absolute_error(forecast: np.ndarray, truth: np.ndarray) -> float:
    """The mean of |forecast - truth|, of arrays of one shape."""
    return float(np.abs(forecast - truth).mean())


def naive_error(history: np.ndarray, season: int) -> float | None:
    """The mean of |x[t] - x[t - season]| over a history: the unit of MASE. None where it is 0 or there is none."""
    if len(history) <= season:
        return None
    return mean_absolute_error(history[season:], history[:-season]) or None


def coverage(low: np.ndarray, high: np.ndarray, truth: np.ndarray) -> float:
    """The share of the values that lie from `low` to `high`."""
    return float(((low <= truth) & (truth <= high)).mean())


def weighted_quantile_loss(quantiles: np.ndarray, levels: np.ndarray, truth: np.ndarray) -> float | None:
    """Twice the quantile loss of `quantiles` (Q, ...) at `levels` (Q,), summed over `truth` (...), divided by the sum
    of |truth| and averaged over the levels. A point forecast stands for all of its quantiles; at levels around 0.5 its
    loss is about MAE / mean |truth|. None where the truth is 0."""
    off = truth - quantiles
    levels = levels.reshape(-1, *[1] * truth.ndim)
    total = 2 * np.maximum(levels * off, (levels - 1) * off).reshape(len(levels), -1).sum(1).mean()
    weight = np.abs(truth).sum()
    return float(total / weight) if weight else None
