"""Values as tokens: each series by its own mean and deviation, into bins of one width, one character a bin.

Ansari et al. 2024 (Chronos): a language model of such tokens forecasts a series as it goes on with a text.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data.errors import UserError
from data.json_files import Whole, check_schema
from data.series.columns import Series
from data.tokenizers import CharTokenizer

LIMIT = 4.0  # deviations on each side of the mean that the bins cover; what lies beyond is in the outermost
LARGEST = 1e150  # of a mean and of a deviation: what is computed with them has squares
BINS = 64
LEAST_BINS, MOST_BINS = 4, 256
FIRST = 0x2800  # the braille patterns: 256 characters in a row that every font has
BETWEEN = "\n"  # one series and the next
_SCHEMA = {"columns": [str], "means": [float], "deviations": [float], "bins": Whole(LEAST_BINS, MOST_BINS)}


@dataclass(frozen=True)
class Scale:
    """How values are written: of each column its mean and its deviation, which is 1 where all values are equal."""

    columns: list[str]
    means: list[float]
    deviations: list[float]
    bins: int = BINS

    @classmethod
    def of(cls, series: Sequence[Series], bins: int = BINS) -> "Scale":
        """The scale of these values. Raises UserError for numbers that are too large to take the mean of."""
        with np.errstate(over="ignore", invalid="ignore"):
            means = [float(each.values.mean()) for each in series]
            deviations = [float(each.values.std()) for each in series]
        for n, each in enumerate(series):
            if not _can_be(means[n], deviations[n]):
                raise UserError(f"the numbers of column '{each.name}' are too large to work with")
            if each.values.min() == each.values.max() or not deviations[n]:
                means[n], deviations[n] = float(each.values[0]), 1.0
        return cls([each.name for each in series], means, deviations, bins)

    @classmethod
    def from_json(cls, stored: Any, path: str) -> "Scale":
        """The scale that `to_json` described, of the file `path`. Raises UserError for anything else."""
        check_schema(stored, _SCHEMA, path, "data.series")
        scale = cls(**{name: stored[name] for name in _SCHEMA})
        if not len(scale.columns) == len(scale.means) == len(scale.deviations) > 0 or not all(
            deviation > 0 and _can_be(mean, deviation)
            for mean, deviation in zip(scale.means, scale.deviations, strict=True)
        ):
            raise UserError(f"{path} is damaged: data.series is no scale")
        return scale

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def step(self) -> float:
        """The width of a bin, in deviations."""
        return 2 * LIMIT / self.bins

    def bins_of(self, values: np.ndarray, column: int) -> np.ndarray:
        """The bin of each value of a column, (T,) int64; the mean is in the middle of bin `bins // 2`."""
        with np.errstate(over="ignore"):
            steps = (np.asarray(values, float) - self.means[column]) / self.deviations[column] / self.step
        return np.rint(np.clip(steps, -self.bins, self.bins)).astype(np.int64).clip(
            -(self.bins // 2), (self.bins - 1) // 2
        ) + (self.bins // 2)

    def values_of(self, bins: np.ndarray, column: int) -> np.ndarray:
        """The middle of each bin, as values of a column, float64."""
        return self.means[column] + self.deviations[column] * self.step * (bins - self.bins // 2)

    def beyond(self, values: np.ndarray, column: int) -> int:
        """How many values of a column lie outside of all bins."""
        off = np.abs(self.values_of(self.bins_of(values, column), column) - values)
        return int((off > 0.5001 * self.step * self.deviations[column]).sum())

    def write(self, values: np.ndarray, column: int) -> str:
        """The values of a column as text."""
        return (self.bins_of(values, column) + FIRST).astype("<u4").tobytes().decode("utf-32-le")

    def read(self, text: str, column: int) -> np.ndarray:
        """The values (T,) of a text of such characters."""
        return self.values_of(np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.int64) - FIRST, column)


def _can_be(mean: float, deviation: float) -> bool:
    return abs(mean) <= LARGEST and deviation <= LARGEST  # of NaN neither is so


def tokenizer(bins: int) -> CharTokenizer:
    """The tokenizer of all bins, whether a text has them or not, and of what stands between two series."""
    return CharTokenizer(BETWEEN + "".join(chr(FIRST + n) for n in range(bins)))


def bins_known(alphabet: str) -> int | None:
    """The number of bins of which `alphabet` is the tokenizer's; None for another alphabet."""
    return len(alphabet) - 1 if alphabet == tokenizer(max(len(alphabet) - 1, 1)).alphabet else None
