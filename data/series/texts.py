"""The series of some tables as a training text and a validation text, cut by time. What comes last is in neither: it is
for tests."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from data import published
from data.errors import UserError
from data.series.bins import BETWEEN, BINS, Scale, bins_known, tokenizer
from data.series.columns import Series, read_columns
from data.sources import SPOOL_PREFIX, Text
from data.tokenizers import CharTokenizer, Tokenizer

UNIT = "value"
VAL_FRACTION = 0.1  # of each series
LEAST = 2  # values of a part


class Spelled(NamedTuple):
    """Both sides as texts, their scale and tokenizer, and notes on what was read."""

    texts: list[list[Text]]
    scale: Scale
    tokenizer: CharTokenizer
    notes: list[str]


def split_columns(columns: str | None) -> list[str]:
    """The names that `--column` lists."""
    names = [] if columns is None else [name.strip() for name in columns.split(",")]
    if "" in names:
        raise UserError("--column has an empty name; it takes names with commas between them")
    return names


def read_series(
    data: str | Sequence[str], columns: str | None = None, encoding: str = "utf-8"
) -> tuple[list[Series], str, list[str]]:
    """The series of the tables that `--data` names, what these are called together, and notes. Raises UserError where
    they cannot be read."""
    found: list[Series] = []
    notes: list[str] = []
    texts = [published.resolve(name) for name in ([data] if isinstance(data, str) else data)]
    try:
        for path in (path for text in texts for path in text.files):
            series, of_file = read_columns(path, split_columns(columns), encoding)
            found += series
            notes += of_file
    finally:
        for text in texts:
            if text.temporary:
                text.files[0].unlink(missing_ok=True)
    name = texts[0].name + (f"-and-{len(texts) - 1}-more" if len(texts) > 1 else "")
    return found, name, notes


def parts_of(series: Series, val_fraction: float = VAL_FRACTION) -> tuple[int, int]:
    """Where the validation part of a series begins and where it ends, after which comes a test part of the same length.
    With `val_fraction` 1 all of it is for validation."""
    n = len(series.values)
    size = int(n * val_fraction)
    return (0, n) if val_fraction == 1 else (max(0, n - 2 * size), n - size)


@contextlib.contextmanager
def spelled(
    data: str | Sequence[str],
    columns: str | None,
    bins: int | None,
    encoding: str,
    vocabulary: Tokenizer | None,
    val_fraction: float,
) -> Iterator[Spelled]:
    """A context with the texts of these series, in files that are deleted afterwards. They are cut as
    `parts_of` says, and the scale is that of the training parts alone, or with `val_fraction` 1 of all. `vocabulary`:
    that of a trained model, which says the bins."""
    known = bins_known(getattr(vocabulary, "alphabet", ""))
    if vocabulary is not None and known is None:
        raise UserError("a model of text knows no series of numbers, and --kind series starts from none")
    if known is not None and bins not in (None, known):
        raise UserError(f"--bins {bins} is not what the model has: {known}")
    series, name, notes = read_series(data, columns, encoding)
    parts = [parts_of(each, val_fraction) for each in series]
    train = [Series(s.name, s.values[:begin]) for s, (begin, _) in zip(series, parts, strict=True)]
    val = [Series(s.name, s.values[begin:end]) for s, (begin, end) in zip(series, parts, strict=True)]
    sides = [val] if val_fraction == 1 else [train, val]
    for n, each in enumerate(series):
        if min(len(side[n].values) for side in sides) < LEAST:
            raise UserError(f"column '{each.name}' has {len(each.values):,} values: too few to learn from and to check")
    scale = Scale.of(sides[0], known or bins or BINS)
    for n, each in enumerate(series):
        if beyond := scale.beyond(each.values[: parts[n][1]], n):
            notes.append(
                f"column '{each.name}' has {beyond:,} of {parts[n][1]:,} values that lie outside of all bins: each is "
                "taken for the nearest"
            )
    with tempfile.TemporaryDirectory(prefix="charlm-series-") as folder:
        texts = []
        for number, side in enumerate(sides):
            path = Path(folder, f"{SPOOL_PREFIX}{number}")  # so that nothing is noted of it
            text = "".join(BETWEEN + scale.write(part.values, n) for n, part in enumerate(side))
            path.write_text(text, "utf-8", newline="\n")
            texts.append([Text(name, (path,), unit=UNIT)])
        yield Spelled(texts, scale, tokenizer(scale.bins), notes)
