"""What a run of `finetune.instruct` learns from: conversations or pairs on their sides, and their rows of tokens."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data import string_tasks
from data.conversation_files import read_conversations, read_pairs
from data.conversation_shapes import Columns
from data.conversations import Conversation, Pair, Turn, drop_duplicates
from data.errors import UserError, warn
from data.examples import SIDES
from data.json_files import content_key
from data.rows import PairRow, Row
from data.tokenizers import Tokenizer
from finetune.instruct.options import NO_QUESTIONS, STRINGS, InstructConfig
from finetune.instruct.templates import Template, without_oldest, written
from finetune.sides import published_sides, split
from finetune.task import check_unknown, refuse_edited, warn_if_few

MOST_ASKED = 256  # questions that --grpo measures on
_SILENCE = Conversation((Turn("assistant", ""),), where="")  # what stands before a text that answers nothing
Items = Sequence[Conversation | Pair]  # all of one kind


@dataclasses.dataclass
class Material:
    """The sides of the split, and what a run keeps of them."""

    name: str
    sides: Mapping[str, Items]
    key: str

    def texts(self, side: str, template: str) -> list[str]:
        """Every turn of a side as it is written down."""
        return [written(turn, template) for item in self.sides[side] for c in both(item) for turn in c.turns]


@dataclasses.dataclass
class Side:
    """One side as rows, each beside what it was made from: the turns that fit into the context. `left_out` examples
    did not; `shortened` ones lost their oldest turns. `answerable` (rows,) is False where the vocabulary lacks a
    character of an answer."""

    items: Items
    rows: Sequence[Row | PairRow]
    answerable: np.ndarray
    left_out: int
    shortened: int

    @property
    def conversations(self) -> list[Conversation]:
        """One an item, of a pair the chosen one."""
        return [both(item)[0] for item in self.items]


@dataclasses.dataclass
class InstructData:
    """All that a run has in memory of its examples."""

    material: Material
    template: Template
    sides: dict[str, Side]

    @property
    def tokenizer(self) -> Tokenizer:
        return self.template.tokenizer

    @property
    def rows(self) -> dict[str, Sequence[Row | PairRow]]:
        """Rows of tokens of each side."""
        return {name: side.rows for name, side in self.sides.items()}

    @property
    def about(self) -> dict[str, str]:
        """What a run says of its examples."""
        return {"key": self.material.key, "folder": "", "name": self.material.name, "start": ""}

    @property
    def what(self) -> str:
        """The examples in words."""
        sizes = ", ".join(f"{len(side.items):,} {name}" for name, side in self.sides.items())
        if self.material.name == NO_QUESTIONS:
            return "what it writes without a question"
        return f"{self.material.name}: {sizes}, template {self.template.name}"


def read_material(config: InstructConfig) -> Material:
    """The examples of `config`, split. Warns of duplicates."""
    if config.text.data == STRINGS:
        sides = string_tasks.string_tasks(config.text.split_seed)
        return Material(STRINGS, sides, _key([c for side in sides.values() for c in side]))
    if config.text.data == NO_QUESTIONS:
        return Material(NO_QUESTIONS, dict.fromkeys(SIDES, [_SILENCE] * MOST_ASKED), content_key([]))
    name, items = read_all(config)
    published = published_sides(
        config.text, {"train": list(items)}, lambda data: {"train": list(_read(config, data)[1])}
    )
    sides = split(config.text, published, drop_duplicates)
    if len(published) > 1:
        return Material(name, sides, content_key({side: _key(items) for side, items in published.items()}))
    return Material(name, sides, _key(drop_duplicates(items) if config.text.duplicates == "drop" else items))


def read_all(config: InstructConfig) -> tuple[str, Items]:
    """The short name of `--data` and all that is in the file; of the bundled strings the test side."""
    if config.text.data == STRINGS:
        return STRINGS, read_material(config).sides["test"]
    return _read(config, config.text.data)


def _read(config: InstructConfig, data: str) -> tuple[str, Items]:
    text, read = config.text, read_pairs if config.tuning.dpo else read_conversations
    columns = Columns(text.prompt_column, text.answer_column, text.system_column)
    return read(data, text.encoding, columns, text.strict)


def own_material(config: InstructConfig, facts: dict[str, Any]) -> Material:
    """The examples of the run with these facts. UserError when they are others now."""
    material = read_material(config)
    refuse_edited(config, material.key, facts, "name some with --data")
    return material


def encode_sides(material: Material, template: Template, config: InstructConfig) -> InstructData:
    """The rows of each side. Warns of what does not fit; UserError where nothing is left, or the vocabulary is
    another's."""
    sides = {}
    for name, items in material.sides.items():
        sides[name] = encode(items, template, config, name)
        warn_if_few(len(sides[name].items), name)
    return InstructData(material, template, sides)


def encode(items: Items, template: Template, config: InstructConfig, name: str) -> Side:
    """Rows of `items`, none longer than the context. From a conversation that is longer the oldest turns go; an example
    whose last turns alone are longer is left out. Warns of both, and of characters that the vocabulary lacks."""
    kept = [within(item, template, config.net.context) for item in items]
    fit = [item for item in kept if item is not None]
    shortened = sum(after is not None and after != before for before, after in zip(items, kept, strict=True))
    answerable = [not any(_unknown(c.answer, template) for c in both(item)) for item in fit]
    prompt_weight = config.tuning.prompt_loss_weight if name == "train" else 0.0  # validation compares answers alone
    side = Side(
        fit,
        [
            template.question(_said(item)) if config.tuning.grpo else row_of(item, template, prompt_weight)
            for item in fit
        ],
        np.array(answerable),
        len(items) - len(fit),
        shortened,
    )
    texts = [written(turn, template.name) for item in items for c in both(item) for turn in c.turns]
    check_unknown(sum(_unknown(text, template) for text in texts), texts, name, config, template.tokenizer)
    if not fit:
        raise UserError(
            f"all {len(items):,} {name} examples are longer than the context of {config.net.context} tokens; raise "
            "--context, or start from a model with a longer one"
        )
    of = f"of {len(items):,} {name} examples are longer than the context of {config.net.context}"
    if side.left_out:
        warn(f"{side.left_out:,} {of}: left out")
    if shortened:
        warn(f"{shortened:,} {of}: their oldest turns went")
    return side


def row_of(item: Conversation | Pair, template: Template, prompt_weight: float = 0.0) -> Row | PairRow:
    """What is learned from an item; of a pair its last answers alone, since all before them is said on both sides."""
    if isinstance(item, Pair):
        return PairRow(*(template.row(c.turns, last_alone=True) for c in item))
    return template.row(item.turns, prompt_weight=prompt_weight)


def within(item: Conversation | Pair, template: Template, context: int) -> Conversation | Pair | None:
    """The item without as many of its oldest turns, of both sides of a pair, as it takes to fit; None where that is
    not enough."""
    while max(len(template.row(c.turns).tokens) for c in both(item)) > context:
        fewer = [turns for c in both(item) if (turns := without_oldest(c.turns)) is not None]
        if len(fewer) < len(both(item)):
            return None
        shorter = [c._replace(turns=turns) for c, turns in zip(both(item), fewer, strict=True)]
        item = Pair(*shorter) if isinstance(item, Pair) else shorter[0]
    return item


def _said(item: Conversation | Pair) -> tuple[Turn, ...]:
    return both(item)[0].prompt


def _unknown(text: str, template: Template) -> int:
    """How many characters of a text the vocabulary lacks."""
    return int((template.tokenizer.encode(text, "mask") == template.tokenizer.special.unk).sum())


def both(item: Conversation | Pair) -> tuple[Conversation, ...]:
    """The conversations that an item holds: one, or of a pair the chosen and the rejected one."""
    return (item.chosen, item.rejected) if isinstance(item, Pair) else (item,)


def _key(items: Items) -> str:
    """The key of examples: that of older versions, which knew no turns that are only read, where there are none."""
    said = [[c.label, [turn[:3] if turn.learned else turn for turn in c.turns]] for item in items for c in both(item)]
    return content_key(said)
