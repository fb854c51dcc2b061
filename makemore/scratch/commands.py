"""What the small commands share: numbers that are checked, and arrays in a file, for pictures."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.disk import replace_file
from data.errors import UserError, flag
from makemore.scratch.functions import Array


def check_positive(options: Any, *names: str) -> None:
    """Raise UserError where one of these settings, or any of those that there are, is not above 0; and where the file
    of --out is not one that arrays can be written to."""
    for name in names:
        if (value := getattr(options, name, 1)) <= 0 or value != value or value == float("inf"):
            raise UserError(f"{flag(name)} is {value}; it has to be above 0")
    if options.out and options.out.suffix != ".npz":
        raise UserError(f"--out is {options.out}; name a file that ends in .npz")


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """The file of named arrays that `np.load` reads; the same arrays give the same bytes."""
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]  # names are names
    replace_file(path, file.getvalue())
