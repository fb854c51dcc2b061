"""A classification task: its examples on their sides, and the rows of tokens that they become."""

import dataclasses
import hashlib
import json

import numpy as np

from data.batches import IGNORE
from data.errors import warn
from data.examples import Columns, Example, drop_duplicates, labels_of, read_examples, split_examples
from data.rows import Row
from data.tokenizers import Tokenizer
from finetune.classify.options import ClassifyConfig
from finetune.start import check_unknown, warn_if_few


@dataclasses.dataclass
class Task:
    """Everything about the texts: the sides of the split, their rows, and what a run keeps of them."""

    name: str
    labels: list[str]
    sides: dict[str, list[Example]]
    key: str

    def numbers(self, side: str) -> np.ndarray:
        """The class of each example of a side, (examples,)."""
        number = {label: n for n, label in enumerate(self.labels)}
        return np.array([number[example.label] for example in self.sides[side]], np.int64)


def read_task(config: ClassifyConfig) -> Task:
    """The examples of `config`, split. Warns of duplicates."""
    columns = Columns(config.text_column, config.label_column)
    name, examples = read_examples(config.data, columns, config.encoding)
    distinct = drop_duplicates(examples)
    if repeats := len(examples) - len(distinct):
        kept = "dropped" if config.duplicates == "drop" else "kept, all copies on one side of the split"
        warn(f"{repeats:,} of {len(examples):,} examples are duplicates: {kept}")
    examples = distinct if config.duplicates == "drop" else examples
    labels = labels_of(examples, name)
    digest = hashlib.sha256(json.dumps([(e.text, e.label) for e in examples]).encode()).hexdigest()[:16]
    return Task(name, labels, split_examples(examples, config.split_seed), digest)


def encode_task(task: Task, tokenizer: Tokenizer, config: ClassifyConfig) -> dict[str, list[Row]]:
    """The rows of each side. Warns of texts that are cut; UserError for texts that the vocabulary does not fit."""
    rows = {}
    for side, examples in task.sides.items():
        numbers = task.numbers(side)
        rows[side], cut, unknown = encode([e.text for e in examples], tokenizer, config.context, numbers)
        check_unknown(unknown, (e.text for e in examples), side, config, tokenizer)
        warn_if_few(len(examples), side)
        if cut:
            warn(f"{cut:,} of {len(examples):,} {side} texts are longer than {config.context} tokens: cut")
    return rows


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
