"""What a classifier learns from: labelled examples on their sides, and the rows of tokens that they become."""

import dataclasses

import numpy as np

from data.batches import IGNORE
from data.errors import UserError, warn
from data.examples import drop_duplicates, labels_of, read_sides
from data.json_files import content_key
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
    """Labelled texts, on the sides of the split, and what a run keeps of them."""

    name: str
    labels: list[str]
    sides: dict[str, list[Example]]
    key: str

    def numbers(self, side: str) -> np.ndarray:
        """The class of each example of a side, (examples,)."""
        number = {label: n for n, label in enumerate(self.labels)}
        return np.array([number[example.label] for example in self.sides[side]], np.int64)


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
        return f"{self.labelled.name}: {sizes}, {len(self.labelled.labels)} classes"


def read_labelled(config: ClassifyConfig) -> Labelled:
    """The examples of `config` on the sides of the split. Warns of duplicates.

    Raises UserError for a label that no training example has."""
    text = config.text
    columns = Columns(text.text_column, text.label_column)
    name, own = read_sides(text.data, columns, text.encoding)
    published = published_sides(text, own, lambda data: read_sides(data, columns, text.encoding)[1])
    alone = len(published) == 1
    examples = drop_duplicates(published["train"]) if text.duplicates == "drop" else published["train"]
    path = path_of(text.data)
    way_out = f". {WAY_OUT}" if path and path.is_file() and not any(columns) else ""
    labels = labels_of(examples, name, to_split=alone, way_out=way_out)
    sides = split(text, published, drop_duplicates)
    _refuse_foreign(sides, labels)
    if alone:
        return Labelled(name, labels, sides, content_key([(e.text, e.label) for e in examples]))
    key = content_key({side: [(e.text, e.label) for e in examples] for side, examples in published.items()})
    return Labelled(name, labels, sides, key)


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
