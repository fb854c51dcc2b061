"""What a classifier learns from: labelled examples on their sides, and the rows of tokens that they become."""

import dataclasses
import functools

import numpy as np

from data.batches import IGNORE
from data.errors import UserError, warn
from data.examples import drop_duplicates, keep_labels_in_training, labels_of, read_sides
from data.json_files import content_key
from data.labelled import several
from data.labelled.columns import WAY_OUT
from data.labelled.example import Columns, Example
from data.rows import Row
from data.sources import path_of
from data.tokenizers import Tokenizer
from finetune.classify.options import ClassifyConfig
from finetune.sides import published_sides, split
from finetune.task import check_unknown, warn_if_few


@dataclasses.dataclass
class Labelled:
    """Labelled texts, on the sides of the split, and what a run keeps of them. `is_multi`: whether a text has a set of
    labels, perhaps an empty one, instead of one label."""

    name: str
    labels: list[str]
    sides: dict[str, list[Example]]
    key: str
    is_multi: bool = False

    def numbers(self, side: str) -> np.ndarray:
        """The class of each example of a side, or the row of its labels in `label_sets`, (examples,)."""
        if self.is_multi:
            rows = self._set_rows
            return np.array([rows[self._classes(example)] for example in self.sides[side]], np.int64)
        number = {label: n for n, label in enumerate(self.labels)}
        return np.array([number[example.label] for example in self.sides[side]], np.int64)

    @functools.cached_property
    def label_sets(self) -> np.ndarray:
        """The different sets of labels that texts have: their classes, (sets, classes of the largest), -1 where a set
        has no more."""
        found = np.full((len(self._set_rows), max(1, *map(len, self._set_rows))), -1, np.int64)
        for classes, row in self._set_rows.items():
            found[row, : len(classes)] = classes
        return found

    def has_label(self, side: str) -> np.ndarray:
        """Which labels each example of a side has, (examples, classes) bool."""
        return self.are_labels(self.label_sets[self.numbers(side)])

    def are_labels(self, classes: np.ndarray) -> np.ndarray:
        """Which labels these `classes` (..., n) are, of which -1 is none: (..., classes) bool."""
        found = np.zeros((*classes.shape[:-1], len(self.labels) + 1), bool)
        np.put_along_axis(found, classes, True, -1)  # -1: the last column, which goes
        return found[..., :-1]

    @functools.cached_property
    def _set_rows(self) -> dict[tuple[int, ...], int]:
        every = {self._classes(example) for examples in self.sides.values() for example in examples}
        return {classes: row for row, classes in enumerate(sorted(every))}

    def _classes(self, example: Example) -> tuple[int, ...]:
        return tuple(sorted(self._class_of[label] for label in example.labels or ()))

    @functools.cached_property
    def _class_of(self) -> dict[str, int]:
        return {label: n for n, label in enumerate(self.labels)}


@dataclasses.dataclass
class ClassifierData:
    """Labelled texts, and the rows of tokens of each side."""

    labelled: Labelled
    tokenizer: Tokenizer
    rows: dict[str, list[Row]]

    @property
    def about(self) -> dict[str, str]:
        """What a run says of its examples."""
        return {"key": self.labelled.key, "folder": "", "name": self.labelled.name, "start": ""}

    @property
    def what(self) -> str:
        """The examples in words."""
        sizes = ", ".join(f"{len(examples):,} {side}" for side, examples in self.labelled.sides.items())
        of_a_text = ", any number a text" if self.labelled.is_multi else ""
        return f"{self.labelled.name}: {sizes}, {len(self.labelled.labels)} classes{of_a_text}"


def read_labelled(config: ClassifyConfig) -> Labelled:
    """The examples of `config` on the sides of the split. Warns of duplicates.

    Raises UserError for a label that no training example has, where a text has one label."""
    text = config.text
    columns, separator = Columns(text.text_column, text.label_column), text.label_separator
    name, own = read_sides(text.data, columns, text.encoding, separator)
    published = published_sides(text, own, lambda data: read_sides(data, columns, text.encoding, separator)[1])
    if several.has_lists(published):
        return _of_several(config, name, {side: several.as_lists(examples) for side, examples in published.items()})
    if hint := several.hint(published["train"]):
        warn(hint)
    alone = len(published) == 1
    examples = drop_duplicates(published["train"]) if text.duplicates == "drop" else published["train"]
    labels = labels_of(examples, name, to_split=alone, way_out=_way_out(config))
    sides = split(text, published, drop_duplicates)
    _refuse_foreign(sides, labels)
    if alone:
        return Labelled(name, labels, sides, content_key([(e.text, e.label) for e in examples]))
    key = content_key({side: [(e.text, e.label) for e in examples] for side, examples in published.items()})
    return Labelled(name, labels, sides, key)


def _of_several(config: ClassifyConfig, name: str, published: dict[str, list[Example]]) -> Labelled:
    """The same of texts with several labels. A label that no training example has is a class all the same, which is
    said."""
    several.check_can_learn(published["train"], name, _way_out(config))
    every = [example for examples in published.values() for example in examples]
    separator = config.text.label_separator
    if separator is not None and all(len(example.labels or ()) < 2 for example in every):
        warn(f"no text of {name} has two labels with the --label-separator '{separator}' between them")
    sides = split(config.text, published, drop_duplicates)
    sides = keep_labels_in_training(sides, [side for side in sides if side not in published])
    labels = sorted({label for example in every for label in example.labels or ()})
    known = {label for example in sides["train"] for label in example.labels or ()}
    if unknown := [label for label in labels if label not in known]:
        listed = ", ".join(unknown)[:200]
        warn(f"{len(unknown):,} of {len(labels):,} labels have no training example, and will be missed: {listed}")
    said = {side: [(e.text, list(e.labels or ())) for e in examples] for side, examples in published.items()}
    return Labelled(name, labels, sides, content_key(said), is_multi=True)


def _way_out(config: ClassifyConfig) -> str:
    """What to say of a file whose columns were not named."""
    text = config.text
    path = path_of(text.data)
    named = text.text_column is not None or text.label_column is not None
    return f". {WAY_OUT}" if path and path.is_file() and not named else ""


def _refuse_foreign(sides: dict[str, list[Example]], labels: list[str]) -> None:
    known = set(labels)
    for side, examples in sides.items():
        if foreign := [e for e in examples if e.label not in known]:
            others = f" (and {len(foreign) - 1:,} more of the {side} examples)" if len(foreign) > 1 else ""
            raise UserError(
                f"{foreign[0].where}{others} has the label '{foreign[0].label}', which no training example has; there "
                f"are: {', '.join(labels)[:200]}"
            )


def encode_sides(labelled: Labelled, tokenizer: Tokenizer, config: ClassifyConfig) -> ClassifierData:
    """The rows of each side. Warns of texts that are cut; UserError for texts that the vocabulary does not fit."""
    rows, context = {}, config.net.context
    for side, examples in labelled.sides.items():
        numbers = labelled.numbers(side)
        rows[side], cut, unknown = encode([e.text for e in examples], tokenizer, context, numbers)
        check_unknown(unknown, (e.text for e in examples), side, config, tokenizer)
        warn_if_few(len(examples), side)
        if cut:
            warn(f"{cut:,} of {len(examples):,} {side} texts are longer than {context} tokens: cut")
    return ClassifierData(labelled, tokenizer, rows)


def encode(
    texts: list[str], tokenizer: Tokenizer, context: int, numbers: np.ndarray | None = None
) -> tuple[list[Row], int, int]:
    """One row a text: `<bos>`, then its first tokens, its class at the last of them (0 where `numbers` is None). Also
    how many texts were cut and how many unknown characters there were."""
    rows, cut, unknown = [], 0, 0
    for i, text in enumerate(texts):
        ids = tokenizer.encode(text, "mask")
        unknown += int((ids == tokenizer.special.unk).sum())
        cut += len(ids) + 1 > context
        tokens = np.concatenate([[tokenizer.special.bos], ids])[:context].astype(np.int64)
        targets = np.full(len(tokens), IGNORE, np.int64)
        targets[-1] = 0 if numbers is None else numbers[i]
        rows.append(Row(tokens, targets))
    return rows, cut, unknown
