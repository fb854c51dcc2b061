"""Several labels a text: from a list or a separator to examples that all have a list, and a split fit for these."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from data.errors import UserError
from data.labelled.example import Example, Fault

SEPARATORS = (",", ";", "|")  # that a hint knows
HINTED = 3  # texts whose label looks like a list, before it is given


def distinct(labels: Iterable[str]) -> tuple[str, ...]:
    """The labels without spaces around them, without empty ones, each once, in their order."""
    return tuple(dict.fromkeys(label for label in map(str.strip, labels) if label))


def separated(found: Iterable[Example | Fault], separator: str | None) -> Iterator[Example | Fault]:
    """What was `found`, with the labels between which `separator` stands as a list; None: as it is. An empty label is
    then an empty list."""
    for item in found:
        if separator is not None and isinstance(item, Example) and item.labels is None:
            item = item._replace(label="", labels=distinct(item.label.split(separator)))
        yield item


def has_lists(sides: Mapping[str, Sequence[Example]]) -> bool:
    """Whether any example has a list of labels: then all are read as having one."""
    return any(example.labels is not None for examples in sides.values() for example in examples)


def as_lists(examples: Iterable[Example]) -> list[Example]:
    """The examples, a single label as a list of one."""
    return [e if e.labels is not None else e._replace(label="", labels=(e.label,)) for e in examples]


def check_can_learn(examples: Sequence[Example], name: str, way_out: str = "") -> None:
    """Raise UserError where all examples have the same labels."""
    first = set(examples[0].labels or ())
    if all(set(example.labels or ()) == first for example in examples):
        have = f"the labels {', '.join(sorted(first))[:200]}" if first else "no label"
        raise UserError(f"all {len(examples)} texts of {name} have {have}: nothing to learn{way_out}")


def hint(examples: Sequence[Example]) -> str:
    """A sentence where the labels of a few texts look like lists: with a separator between parts that are labels too,
    or parts of other lists; '' where they do not."""
    labels = {example.label for example in examples}
    for separator in SEPARATORS:
        parts = {label: distinct(label.split(separator)) for label in labels}
        of_labels = Counter(part for found in parts.values() for part in found)
        lists = {label for label, found in parts.items() if len(found) > 1 and all(of_labels[p] > 1 for p in found)}
        if (count := sum(example.label in lists for example in examples)) >= HINTED:
            shortest = min(lists, key=lambda label: (len(label), label))
            return (
                f"the labels of {count:,} texts look like lists of labels, as '{shortest}' does: --label-separator "
                f"'{separator}' reads them so"
            )
    return ""
