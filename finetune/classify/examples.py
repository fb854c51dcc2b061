"""What a classifier learns from: labelled examples on their sides, and the rows of tokens that they become."""

import dataclasses

import numpy as np

from data.batches import IGNORE
from data.errors import warn
from data.examples import Columns, Example, drop_duplicates, labels_of, read_examples, split_examples
from data.json_files import content_key
from data.rows import Row
from data.tokenizers import Tokenizer
from finetune.classify.options import ClassifyConfig
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
    """The examples of `config`, split. Warns of duplicates."""
    text = config.text
    columns = Columns(text.text_column, text.label_column)
    name, examples = read_examples(text.data, columns, text.encoding)
    distinct = drop_duplicates(examples)
    if repeats := len(examples) - len(distinct):
        kept = "dropped" if text.duplicates == "drop" else "kept, all copies on one side of the split"
        warn(f"{repeats:,} of {len(examples):,} examples are duplicates: {kept}")
    examples = distinct if text.duplicates == "drop" else examples
    labels = labels_of(examples, name)
    key = content_key([(e.text, e.label) for e in examples])
    return Labelled(name, labels, split_examples(examples, text.split_seed), key)


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
