"""Conversations for instruction tuning, and pairs of a better and a worse answer: reading them from JSON and JSONL."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data import packed, reading
from data.errors import UserError, nearest
from data.json_items import json_items
from data.sources import path_of

ROLES = ("system", "user", "assistant")


class Turn(NamedTuple):
    """One message of a conversation. `input` is the second part of an Alpaca instruction, else empty."""

    role: str
    text: str
    input: str = ""

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
        """The first question, by which the examples are split: conversations that share it are on one side."""
        return next(turn.whole for turn in self.turns if turn.role == "user")

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


def read_conversations(data: str, encoding: str = "utf-8") -> tuple[str, list[Conversation]]:
    """The short name of `data`, a .json or .jsonl file, and its conversations. An item has 'messages' (a list of role
    and content), or 'instruction', optionally 'input', and 'output', or 'prompt' and 'completion'; and optionally a
    'task'.

    Raises UserError, with the file and the line or example, for an item that is malformed or incomplete."""
    return _read(data, encoding, _conversation)


def read_pairs(data: str, encoding: str = "utf-8") -> tuple[str, list[Pair]]:
    """The same for pairs: items with 'prompt', 'chosen' and 'rejected', each a text or a list of messages."""
    return _read(data, encoding, _pair)


def drop_duplicates(items: Sequence[Any]) -> list[Any]:
    """The conversations, or pairs, without later copies of the same turns."""
    distinct: dict[tuple[str, ...], Any] = {}
    for item in items:
        conversations = item if isinstance(item, Pair) else (item,)
        distinct.setdefault(tuple(turn.whole.strip() for c in conversations for turn in c.turns), item)
    return list(distinct.values())


def _read(data: str, encoding: str, parse: Callable[[dict, str], Any]) -> tuple[str, list]:
    reading.check_encoding(encoding)
    path = path_of(data) or Path(data)
    if packed.unpacked_name(path).suffix.lower() not in (".json", ".jsonl"):
        raise UserError(f"{data} holds no conversations: give 'strings' (bundled) or a .json or .jsonl file")
    items = []
    for where, item in json_items(path, encoding):
        if not isinstance(item, dict):
            raise UserError(f"{where} is no object, but a {type(item).__name__}")
        items.append(parse(item, where))
    if not items:
        raise UserError(f"{data} holds no examples")
    return packed.unpacked_name(path.resolve()).stem, items


def _conversation(item: dict, where: str) -> Conversation:
    label = _text(item, "task", where, optional=True)
    if "messages" in item:
        turns = _messages(item["messages"], f"{where}: 'messages'")
    elif "instruction" in item:
        question = Turn("user", _text(item, "instruction", where), _text(item, "input", where, optional=True))
        turns = (question, Turn("assistant", _text(item, "output", where)))
    elif "prompt" in item and "completion" in item:
        turns = (Turn("user", _text(item, "prompt", where)), Turn("assistant", _text(item, "completion", where)))
    elif "chosen" in item and "rejected" in item:
        raise UserError(f"{where} is a pair of a chosen and a rejected answer; --dpo trains on those")
    else:
        raise _foreign(item, where)
    if turns[-1].role != "assistant":
        raise UserError(f"{where} ends without an answer: its last message is the {turns[-1].role}'s")
    return Conversation(turns, where, label)


def _foreign(item: dict, where: str) -> UserError:
    """The error for an item that is none of the three kinds."""
    for one, other in (("prompt", "completion"), ("completion", "prompt"), ("output", "instruction")):
        if one in item:
            return UserError(f"{where} has no key '{other}'; it has: {_keys(item)}.{nearest(other, map(str, item))}")
    kinds = "'messages', 'instruction' and 'output', or 'prompt' and 'completion'"
    return UserError(f"{where} has none of {kinds}; it has: {_keys(item)}")


def _pair(item: dict, where: str) -> Pair:
    for name in ("prompt", "chosen", "rejected"):
        if name not in item:
            raise UserError(f"{where} has no key '{name}'; it has: {_keys(item)}.{nearest(name, map(str, item))}")
    label = _text(item, "task", where, optional=True)
    prompt = item["prompt"]
    question = (Turn("user", _nonblank(prompt, where, "prompt")),) if isinstance(prompt, str) else _messages(
        prompt, f"{where}: 'prompt'"
    )  # fmt: skip
    if question[-1].role != "user":
        raise UserError(f"{where}: 'prompt' ends with the {question[-1].role}'s message; it has to end with the user's")
    answers = [_last_answer(item[name], where, name) for name in ("chosen", "rejected")]
    if answers[0] == answers[1]:
        raise UserError(f"{where}: 'chosen' and 'rejected' are the same")
    return Pair(*(Conversation((*question, Turn("assistant", text)), where, label) for text in answers))


def _last_answer(value: Any, where: str, name: str) -> str:
    """The answer `value`: a text, or a list of messages of which the last has to be the assistant's."""
    if isinstance(value, list) and value:
        last = _message(value[-1], f"{where}: '{name}' message {len(value)}")
        if last.role != "assistant":
            raise UserError(f"{where}: '{name}' ends with the {last.role}'s message; it has to end with an answer")
        return last.text
    return _nonblank(value, where, name)


def _messages(value: Any, where: str) -> tuple[Turn, ...]:
    """The turns of a list of messages: at most one system message, then user and assistant alternating."""
    if not isinstance(value, list) or not value:
        raise UserError(f"{where} is no list of messages, each with a role and a content")
    turns = tuple(_message(message, f"{where} message {n}") for n, message in enumerate(value, 1))
    expected = "user"
    for n, turn in enumerate(turns, 1):
        if turn.role == "system" and n == 1:
            continue
        if turn.role != expected:
            raise UserError(f"{where} message {n} is the {turn.role}'s where the {expected}'s has to be")
        expected = "assistant" if turn.role == "user" else "user"
    if turns[-1].role == "system":
        raise UserError(f"{where} has a system message only")
    return turns


def _message(value: Any, where: str) -> Turn:
    if not isinstance(value, dict):
        raise UserError(f"{where} is no object with a role and a content")
    role, text = _text(value, "role", where), _text(value, "content", where)
    if role not in ROLES:
        raise UserError(f"{where} has the role '{role}'; there are: {', '.join(ROLES)}.{nearest(role, ROLES)}")
    return Turn(role, text)


def _text(item: dict, name: str, where: str, optional: bool = False) -> str:
    if name not in item:
        if optional:
            return ""
        raise UserError(f"{where} has no key '{name}'; it has: {_keys(item)}.{nearest(name, map(str, item))}")
    if optional and item[name] in (None, ""):
        return ""
    return _nonblank(item[name], where, name)


def _nonblank(value: Any, where: str, name: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: '{name}' is no text, but a {type(value).__name__}")
    if not value.strip():
        raise UserError(f"{where}: '{name}' is empty")
    return value


def _keys(item: dict) -> str:
    return ", ".join(map(str, item))[:200] or "none"
