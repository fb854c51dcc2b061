"""What every reader of labelled texts yields: an example, or a fault that costs one row and not the file."""

from collections.abc import Iterable
from typing import NamedTuple

from data import reading
from data.errors import UserError, warn

FEW_FAULTS = 3  # do not refuse a file, if they are less than half of it ...
MOST_FAULTS = 0.1  # ... nor does this part of it
NAMED = 3  # faults that a warning names


class Example(NamedTuple):
    """One text and its label. `where`: its file and line, for messages. `labels`: of data with several labels a text
    all of them, each once, perhaps none; `label` is then empty."""

    text: str
    label: str
    where: str
    labels: tuple[str, ...] | None = None


class Columns(NamedTuple):
    """The names or numbers of the columns (or keys); None: the default, see `data.labelled.tables`."""

    text: str | None = None
    label: str | None = None


class Fault(NamedTuple):
    """A row that is no example, and why, in a sentence that names its file and line."""

    reason: str


def whole_examples(found: Iterable[Example | Fault], name: object) -> list[Example]:
    """The examples among what a reader `found`, without those whose text or label is empty. Warns of what is left out.

    Raises UserError where nothing is left of `name`, or where more than a tenth is left out: then it is the wrong
    column or the wrong file."""
    examples, faults = [], []
    for item in found:
        if isinstance(item, Example) and item.text.strip() and (item.labels is not None or item.label.strip()):
            for label in item.labels or (item.label,):
                reading.check_characters(label, item.where)  # it may be the name of a file
            examples.append(item)
        elif isinstance(item, Example):
            faults.append(f"{item.where} has an empty {'label' if item.text.strip() else 'text'}")
        else:
            faults.append(item.reason)
    rows = len(examples) + len(faults)
    if len(faults) > max(min(FEW_FAULTS, 0.5 * (rows - 1)), MOST_FAULTS * rows):
        others = f"; {len(faults):,} of {rows:,} rows cannot be used" if rows > 1 else ""
        no_label = faults[0].endswith("an empty label")
        way_out = ". Where a text may have any number of labels, --label-separator , says so" if no_label else ""
        raise UserError(f"{faults[0]}{others}{way_out}")
    if not examples:
        raise UserError(f"{name} holds no examples")
    if faults:
        more = f"; and {len(faults) - NAMED:,} more" if len(faults) > NAMED else ""
        warn(f"{len(faults):,} of {rows:,} rows are left out: {'; '.join(faults[:NAMED])}{more}")
    return examples
