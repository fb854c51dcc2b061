"""Lists of messages, as chat data has them, read as turns: who speaks, what is said, and whether it is learned."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from data.bad_examples import BadExample, EmptyText, Notes
from data.conversations import Turn
from data.errors import nearest

# What each role of published data is to a template, which has three.
ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "tool": "user", "function": "user", "observation": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "function_call": "assistant",
}  # fmt: skip
RESULTS = {"tool", "function", "observation"}  # of a tool: several may follow each other, and the user's words them
WEIGHTS = ("weight", "loss_weight", "train")  # keys of a message that may say that it is not to be learned
TEXT_PARTS = ("text", "input_text", "output_text", "tool_call")
# Keys of a message that are not read although they may change what it means.
_UNREAD = (
    "images", "image", "audios", "audio", "videos", "video", "reasoning_content", "reasoning", "thinking",
    "train_detail",
)  # fmt: skip


class Message(NamedTuple):
    """A turn before the order of turns is checked. `where`: its place, for messages; `is_result`: a tool says it."""

    turn: Turn
    where: str
    is_result: bool = False


def read_messages(value: Any, where: str, notes: Notes) -> list[Message]:
    """The messages of a list of objects, each with a 'role' (or 'from') and a 'content' (or 'value')."""
    if not isinstance(value, list) or not value:
        raise BadExample(f"{where} is no list of messages, each with a role and a content")
    return [read_message(message, f"{where} message {n}", notes) for n, message in enumerate(value, 1)]


def read_message(value: Any, where: str, notes: Notes) -> Message:
    """One message. The tool calls of an assistant follow its text, each a line of JSON."""
    if not isinstance(value, dict):
        raise BadExample(f"{where} is no object with a role and a content")
    role_key = "from" if "from" in value and "role" not in value else "role"
    said = text_of(value, role_key, where).lower()
    if said not in ROLES:
        raise BadExample(f"{where} has the role '{said}'; there are: {', '.join(ROLES)}.{nearest(said, ROLES)}")
    notes.unread |= {key for key in _UNREAD if value.get(key)}
    content_key = "value" if "value" in value and "content" not in value else "content"
    calls = _calls(value, where)
    text = _content(value.get(content_key), f"{where}: '{content_key}'", notes)
    if not text and not calls:
        raise _without_text(value, content_key, where)
    whole = "\n".join(filter(None, (text, *calls)))
    return Message(Turn(ROLES[said], whole, learned=_is_learned(value, where)), where, said in RESULTS)


def in_turns(messages: Sequence[Message]) -> tuple[Turn, ...]:
    """The turns of messages: at most one of the system, then the user's and the assistant's alternating.

    An answer that nobody asked for, at the beginning or after the system's message, answers an empty user's turn. What
    tools say is the user's turn, together with the messages of tools and of the user beside it.

    Raises BadExample for any other order."""
    turns: list[Turn] = []
    after_result = False
    for message in messages:
        turn, last = message.turn, turns[-1].role if turns else "system"
        if turn.role == "system" and turns:
            raise _out_of_order(message, "assistant" if last == "user" else "user")
        if turn.role == last == "user" and (message.is_result or after_result):
            before = turns.pop()
            turn = Turn("user", f"{before.whole}\n{turn.whole}", learned=before.learned and turn.learned)
        elif turn.role == last and turns:
            raise _out_of_order(message, "assistant" if last == "user" else "user")
        elif turn.role == "assistant" and last == "system":
            turns.append(Turn("user", ""))
        turns.append(turn)
        after_result = message.is_result
    return tuple(turns)


def text_of(item: dict, name: str, where: str, optional: bool = False) -> str:
    """The text under a key, which is not blank unless it is `optional` and missing, null or empty."""
    if name not in item:
        if optional:
            return ""
        raise without_key(item, name, where)
    if optional and item[name] in (None, ""):
        return ""
    return nonblank(item[name], where, name)


def nonblank(value: Any, where: str, name: str) -> str:
    """`value`, which has to be a text that is not blank."""
    if not isinstance(value, str):
        raise BadExample(f"{where}: '{name}' is no text, but a {type(value).__name__}")
    if not value.strip():
        raise EmptyText(f"{where}: '{name}' is empty")
    return value


def without_key(item: dict, name: str, where: str) -> BadExample:
    """The error for an item that lacks a key."""
    return BadExample(f"{where} has no key '{name}'; it has: {keys_of(item)}.{nearest(name, map(str, item))}")


def keys_of(item: dict) -> str:
    """The keys of an item, for messages."""
    return ", ".join(map(str, item))[:200] or "none"


def _out_of_order(message: Message, expected: str) -> BadExample:
    return BadExample(f"{message.where} is the {message.turn.role}'s where the {expected}'s has to be")


def _without_text(message: dict, key: str, where: str) -> BadExample:
    value = message.get(key)
    if key not in message:
        return without_key(message, key, where)
    if value is None or isinstance(value, list):
        return EmptyText(f"{where}: '{key}' has no text")
    return EmptyText(f"{where}: '{key}' is empty")


def _content(value: Any, where: str, notes: Notes) -> str:
    """A text, the texts of a list of parts one after the other, or nothing for null; '' for a blank text."""
    if isinstance(value, list):
        value = "".join(_part(part, f"{where} part {n}", notes) for n, part in enumerate(value, 1))
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadExample(f"{where} is no text, but a {type(value).__name__}")
    return value if value.strip() else ""


def _part(part: Any, where: str, notes: Notes) -> str:
    """The text of a part; of a picture, a sound and the like none, which `notes` takes down."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise BadExample(f"{where} is no object with a type and a text")
    kind = part.get("type", "text")
    if kind not in TEXT_PARTS:
        notes.unread.add(str(kind)[:40])
        return ""
    text = part.get("text", part.get("value"))
    if not isinstance(text, str):
        raise BadExample(f"{where} has no text")
    return text


def _calls(message: dict, where: str) -> list[str]:
    """The calls of tools, each as JSON with its name and arguments. Arguments that are a text, as OpenAI's are, are
    JSON already."""
    found = message.get("tool_calls") or ([message["function_call"]] if message.get("function_call") else [])
    calls = []
    for call in found if isinstance(found, list) else [found]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadExample(f"{where} has a tool call without a name")
        arguments = function.get("arguments", {})
        shown = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        calls.append(f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "arguments": {shown}}}')
    return calls


def _is_learned(message: dict, where: str) -> bool:
    for key in WEIGHTS:
        if (value := message.get(key)) is not None:
            if value not in (0, 1):  # true and false are equal to these
                raise BadExample(f"{where}: '{key}' is {str(value)[:40]}; it has to be 0 or 1, false or true")
            if not value:
                return False
    return True
