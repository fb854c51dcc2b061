"""What a run of `finetune.instruct` learns from: conversations or pairs on their sides, and their rows of tokens."""

import dataclasses
import hashlib
import json

from data import string_tasks
from data.conversations import Conversation, Pair, Turn, drop_duplicates, read_conversations, read_pairs
from data.errors import UserError, warn
from data.examples import split_examples
from data.rows import PairRow, Row
from finetune.instruct.options import STRINGS, InstructConfig
from finetune.instruct.templates import Template, without_oldest, written
from finetune.start import check_unknown, warn_if_few


@dataclasses.dataclass
class Material:
    """The sides of the split, and what a run keeps of them."""

    name: str
    sides: dict[str, list[Conversation]] | dict[str, list[Pair]]
    key: str

    def texts(self, side: str, template: str) -> list[str]:
        """Every turn of a side as it is written down."""
        return [written(turn, template) for item in self.sides[side] for c in both(item) for turn in c.turns]


@dataclasses.dataclass
class Side:
    """One side as rows, each beside what it was made from. `left_out` did not fit into the context; of `shortened`
    the oldest turns did not."""

    items: list[Conversation] | list[Pair]
    rows: list[Row] | list[PairRow]
    left_out: int
    shortened: int

    @property
    def conversations(self) -> list[Conversation]:
        """One an item, of a pair the chosen one."""
        return [both(item)[0] for item in self.items]


def read_material(config: InstructConfig) -> Material:
    """The examples of `config`, split. Warns of duplicates."""
    if config.data == STRINGS:
        sides = string_tasks.string_tasks(config.split_seed)
        return Material(STRINGS, sides, _key([c for side in sides.values() for c in side]))
    name, items = read_all(config)
    distinct = drop_duplicates(items)
    if repeats := len(items) - len(distinct):
        kept = "dropped" if config.duplicates == "drop" else "kept, all copies on one side of the split"
        warn(f"{repeats:,} of {len(items):,} examples are duplicates: {kept}")
    items = distinct if config.duplicates == "drop" else items
    return Material(name, split_examples(items, config.split_seed), _key(items))


def read_all(config: InstructConfig) -> tuple[str, list[Conversation] | list[Pair]]:
    """The short name of `--data`, a file, and all that is in it."""
    return (read_pairs if config.dpo else read_conversations)(config.data, config.encoding)


def encode_material(material: Material, template: Template, config: InstructConfig) -> dict[str, Side]:
    """The rows of each side. Warns of what does not fit; UserError where nothing is left, or the vocabulary is
    another's."""
    sides = {side: encode(items, template, config.context) for side, items in material.sides.items()}
    for side, encoded in sides.items():
        texts = material.texts(side, template.name)
        unknown = sum(
            int((template.tokenizer.encode(t, "mask") == template.tokenizer.special.unk).sum()) for t in texts
        )
        check_unknown(unknown, texts, side, config)
        tell(encoded, side, config.context)
        warn_if_few(len(encoded.items), side)
    return sides


def encode(items: list[Conversation] | list[Pair], template: Template, context: int) -> Side:
    """Rows of `items`, none longer than `context` tokens. From a conversation that is longer the oldest turns go; an
    example whose last turns alone are longer is left out."""
    side = Side([], [], 0, 0)
    for item in items:
        rows = [row_within(c.turns, template, context) for c in both(item)]
        if any(row is None for row, _ in rows):
            side.left_out += 1
            continue
        side.items.append(item)
        side.rows.append(PairRow(rows[0][0], rows[1][0]) if isinstance(item, Pair) else rows[0][0])
        side.shortened += any(shortened for _, shortened in rows)
    return side


def row_within(turns: tuple[Turn, ...], template: Template, context: int) -> tuple[Row | None, bool]:
    """The row of `turns`, without as many of the oldest ones as it takes, and whether some are missing; None where
    that is not enough."""
    kept: tuple[Turn, ...] | None = turns
    while kept is not None and len((row := template.row(kept)).tokens) > context:
        kept = without_oldest(kept)
    return (None, True) if kept is None else (row, kept != turns)


def tell(side: Side, name: str, context: int) -> None:
    """Warn of what did not fit. UserError where nothing did."""
    total = len(side.items) + side.left_out
    if not side.items:
        raise UserError(
            f"all {total:,} {name} examples are longer than the context of {context} tokens; raise --context, or start "
            "from a model with a longer one"
        )
    if side.left_out:
        warn(f"{side.left_out:,} of {total:,} {name} examples are longer than the context of {context}: left out")
    if side.shortened:
        warn(f"{side.shortened:,} of {total:,} {name} conversations are longer than {context}: their oldest turns went")


def both(item: Conversation | Pair) -> tuple[Conversation, ...]:
    """The conversations that an item holds: one, or of a pair the chosen and the rejected one."""
    return (item.chosen, item.rejected) if isinstance(item, Pair) else (item,)


def _key(items: list[Conversation] | list[Pair]) -> str:
    said = [[c.label, c.turns] for item in items for c in both(item)]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
