"""Conversations for instruction tuning, and pairs of a better and a worse answer."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class Turn(NamedTuple):
    """One message of a conversation. `role`: 'system', 'user' or 'assistant'; `input`: the second part of an Alpaca
    instruction, else empty; `learned`: False for an answer that is only read, not trained on."""

    role: str
    text: str
    input: str = ""
    learned: bool = True

    @property
    def whole(self) -> str:
        """Both parts, a line each."""
        return f"{self.text}\n{self.input}" if self.input else self.text


class Conversation(NamedTuple):
    """Turns that end with an answer. `label`: the task it belongs to, if any; `where`: its file and line, for messages;
    `group`: the group under which it is reported, if any."""

    turns: tuple[Turn, ...]
    where: str
    label: str = ""
    group: str = ""

    @property
    def text(self) -> str:
        """The first question, by which the examples are split: conversations that share it are on one side. Where the
        user says nothing, the answer."""
        return next((turn.whole for turn in self.turns if turn.role == "user" and turn.whole), self.answer)

    @property
    def prompt(self) -> tuple[Turn, ...]:
        """All turns but the last answer."""
        return self.turns[:-1]

    @property
    def answer(self) -> str:
        return self.turns[-1].text


class Pair(NamedTuple):
    """One prompt with a chosen and a rejected answer."""

    chosen: Conversation
    rejected: Conversation

    @property
    def text(self) -> str:
        return self.chosen.text

    @property
    def label(self) -> str:
        return self.chosen.label

    @property
    def where(self) -> str:
        return self.chosen.where


def drop_duplicates(items: Sequence[Any]) -> list[Any]:
    """The conversations, or pairs, without later copies of the same turns."""
    distinct: dict[tuple[tuple[str, bool], ...], Any] = {}
    for item in items:
        conversations = item if isinstance(item, Pair) else (item,)
        distinct.setdefault(tuple((turn.whole.strip(), turn.learned) for c in conversations for turn in c.turns), item)
    return list(distinct.values())
