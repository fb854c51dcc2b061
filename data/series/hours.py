"""The bundled series: ten years of hours that were made up, as of a city's electricity."""

import functools
from datetime import datetime, timedelta

import numpy as np

HOURS = 10 * 365 * 24
SEED = 23
_BEGIN = datetime(2014, 1, 6)  # a Monday


@functools.cache
def values(seed: int = SEED) -> np.ndarray:
    """The values, (HOURS,): a level that rises by a tenth over the years, a day with two peaks, weekends that are lower
    and peak later, a year that is highest in winter, and noise of which nine tenths are left after an hour."""
    t = np.arange(HOURS)
    hour, weekday = t % 24, t // 24 % 7
    day = 0.8 * np.exp(-(((hour - 8) / 2.5) ** 2)) + 1.2 * np.exp(-(((hour - 19) / 3.0) ** 2)) - 0.4
    weekend = 0.4 * np.exp(-(((hour - 12) / 3.5) ** 2)) + 0.7 * np.exp(-(((hour - 20) / 3.0) ** 2)) - 0.7
    year = 0.5 * np.cos(2 * np.pi * t / (365 * 24))
    random = np.random.Generator(np.random.PCG64(seed))
    noise = np.zeros(HOURS)
    steps = 0.1 * random.standard_normal(HOURS)
    for i in range(1, HOURS):
        noise[i] = 0.9 * noise[i - 1] + steps[i]
    shape = np.where(weekday < 5, day, weekend) + year + 0.3 * t / HOURS + noise
    return np.round(50 + 10 * shape, 2)


def table(seed: int = SEED) -> str:
    """The series as CSV, with the hours; of another seed with other noise."""
    rows = (f"{_BEGIN + timedelta(hours=n):%Y-%m-%d %H:%M},{value:.2f}\n" for n, value in enumerate(values(seed)))
    return "hour,load\n" + "".join(rows)
