"""What does not go together with series of numbers."""

from data.errors import UserError
from data.recipe import ReadOptions
from data.series.bins import LEAST_BINS, MOST_BINS


def check_series(options: ReadOptions, bins: int | None, has_val_data: bool, extend: bool) -> None:
    """Raise UserError for options that mean nothing to series, with the reason."""
    if bins is not None and not LEAST_BINS <= bins <= MOST_BINS:
        raise UserError(f"--bins is {bins}; it has to be from {LEAST_BINS} to {MOST_BINS}")
    if options.tokenizer != "char":
        raise UserError(
            f"--tokenizer {options.tokenizer} is for text; of --kind series each value is one token (--bins)"
        )
    if options.bpe_sample is not None:
        raise UserError("--bpe-sample is for text: of --kind series each value is one token (--bins)")
    if options.separator is not None:
        raise UserError("--separator is for text; of --kind series each column is a series of its own")
    if options.text_column is not None:
        raise UserError("--text-column is for texts; the columns of --kind series are in --column")
    if has_val_data:
        raise UserError("--val-data is for text: of --kind series the last part of each series is for validation")
    if extend:
        raise UserError("--extend-vocabulary is for text: --kind series has all its tokens from the beginning")


def check_no_series(column: str | None, bins: int | None) -> None:
    """Raise UserError for options of series with a text that is none."""
    for name, value in (("--column", column), ("--bins", bins)):
        if value is not None:
            raise UserError(f"{name} goes with --kind series; the texts of a table are in --text-column")
