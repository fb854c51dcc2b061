"""Conversations for instruction tuning, and pairs of a better and a worse answer: reading JSON and JSONL files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data import packed, reading
from data.bad_examples import BadExample, Notes, Tally
from data.conversation_shapes import Columns, read_conversation
from data.conversations import Conversation, Pair
from data.errors import UserError
from data.json_items import json_items
from data.preference_shapes import read_pair
from data.sources import path_of

Parse = Callable[[Any, str, Notes, Columns], Any]
DEFAULT = Columns()


def read_conversations(
    data: str, encoding: str = "utf-8", columns: Columns = DEFAULT, strict: bool = False
) -> tuple[str, list[Conversation]]:
    """The short name of `data`, a .json or .jsonl file, and its conversations, in one of the shapes of
    data/conversation_shapes.py. Warns of examples that are left out, and of what is not read in the others.

    Raises UserError, with the file and the lines or numbers, where more than a tenth of the examples are malformed or
    incomplete, with `strict` at the first, and where none is left."""
    return _read(data, encoding, read_conversation, columns, strict)


def read_pairs(
    data: str, encoding: str = "utf-8", columns: Columns = DEFAULT, strict: bool = False
) -> tuple[str, list[Pair]]:
    """The same for pairs, in one of the shapes of data/preference_shapes.py."""
    return _read(data, encoding, read_pair, columns, strict)


def _read(data: str, encoding: str, parse: Parse, columns: Columns, strict: bool) -> tuple[str, list]:
    reading.check_encoding(encoding)
    path = path_of(data) or Path(data)
    if packed.unpacked_name(path).suffix.lower() not in (".json", ".jsonl"):
        raise UserError(f"{data} holds no conversations: give 'strings' (bundled) or a .json or .jsonl file")
    items, tally = [], Tally(strict)
    for where, item in json_items(path, encoding, on_bad=tally.add_bad):
        notes = Notes()
        try:
            items.append(parse(item, where, notes, columns))
        except BadExample as error:
            tally.add_bad(error)
        else:
            tally.add_good(notes)
    tally.report(data)
    if not items:
        raise UserError(f"{data} holds no examples")
    return packed.unpacked_name(path.resolve()).stem, items
