"""The shapes in which preferences are published: one item of a JSON file as a pair of a better and a worse answer."""

import re
from collections.abc import Sequence
from typing import Any

from data.bad_examples import BadExample, EmptyText, Notes, NothingToLearn
from data.conversation_shapes import PAIRED, Columns, Shape, note_unread, opening, said, with_system
from data.conversations import Conversation, Pair, Turn
from data.messages import Message, in_turns, keys_of, nonblank, text_of, without_key

# Keys of a prompt, and of what goes with it; the first that an item has. Without any, the prompt is what both answers
# begin with.
PROMPTS = (
    Shape("prompt"),
    Shape("instruction", second=("input", "context")),
    Shape("question", second=("context",)),
    Shape("query", second=("context",)),
    Shape("conversations"),
    Shape("messages"),
    Shape("input"),
)
_TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant):")  # of Anthropic's data, as one text
_ROLES = {"Human": "user", "Assistant": "assistant"}


def read_pair(item: Any, where: str, notes: Notes, columns: Columns) -> Pair:
    """The pair of an item. An answer is a text, a message, or a whole conversation, whose turns before the answer have
    to be those of the other one, and of the prompt if there is one.

    Raises BadExample for one that is malformed or incomplete, NothingToLearn where an answer is empty or both are the
    same."""
    if not isinstance(item, dict):
        raise BadExample(f"{where} is no object, but a {type(item).__name__}")
    names = next((pair for pair in PAIRED if any(name in item for name in pair)), PAIRED[0])
    for name in (*filter(None, (columns.prompt,)), *names):
        if name not in item:
            raise without_key(item, name, where)
    label = text_of(item, "task", where, optional=True)
    shapes = (Shape(columns.prompt),) if columns.prompt else PROMPTS
    shape = next((shape for shape in shapes if shape.prompt in item), None)
    note_unread(item, shape, notes)
    asked = opening(item, shape, where, notes, columns) if shape else []
    if shape and asked[-1].turn.role == "assistant":
        raise BadExample(f"{where}: '{shape.prompt}' ends with the assistant's message; it has to end with the user's")
    sides = [_side(item[name], where, name, notes, is_whole=shape is None) for name in names]
    before = _longer(*(side[:-1] for side in sides))
    if before is None:
        raise BadExample(f"{where}: '{names[0]}' and '{names[1]}' differ before their last answers")
    prompt = _continued(asked, before)
    if prompt is None:
        raise BadExample(f"{where}: '{shape.prompt if shape else ''}' is not what comes before the answers")
    if not prompt:
        raise BadExample(f"{where} has no prompt: {keys_of(item)} have no turn in common before the answers")
    prompt = prompt if shape else with_system(prompt, item, where, columns)
    return _compared(prompt, [side[-1] for side in sides], where, names, label)


def _compared(prompt: list[Message], answers: list[Message], where: str, names: Sequence[str], label: str) -> Pair:
    chosen, rejected = (answer.turn for answer in answers)
    if chosen.text == rejected.text:
        raise NothingToLearn(f"{where}: '{names[0]}' and '{names[1]}' are the same")
    if not (chosen.learned and rejected.learned):
        raise NothingToLearn(f"{where} has an answer that is not to be learned")
    return Pair(*(Conversation(in_turns([*prompt, answer]), where, label) for answer in answers))


def _side(value: Any, where: str, name: str, notes: Notes, is_whole: bool) -> list[Message]:
    """What is said on one side, the answer last. `is_whole`: the prompt, too, has to be there."""
    if value in ("", [], None):
        raise NothingToLearn(f"{where}: '{name}' is empty")
    try:
        if isinstance(value, str) and is_whole:
            messages = _transcript(value, f"{where}: '{name}'")
        else:
            messages = said({name: value}, name, "assistant", where, notes)
    except EmptyText as error:
        raise NothingToLearn(str(error)) from error
    if (last := messages[-1].turn.role) != "assistant":
        raise BadExample(f"{where}: '{name}' ends with the {last}'s message; it has to end with an answer")
    return messages


def _transcript(text: str, where: str) -> list[Message]:
    """The messages of a conversation in one text."""
    start, *parts = _TRANSCRIPT.split(text)
    if start.strip() or not parts:
        raise BadExample(f"{where} is no conversation ('\\n\\nHuman: ...\\n\\nAssistant: ...'), and there is no prompt")
    return [
        Message(Turn(_ROLES[speaker], nonblank(words.strip(), where, speaker)), where)
        for speaker, words in zip(parts[::2], parts[1::2], strict=True)
    ]


def _longer(one: list[Message], other: list[Message]) -> list[Message] | None:
    """The longer list, the first of two as long, where the shorter is its end; else None."""
    longer, shorter = (other, one) if len(other) > len(one) else (one, other)
    return longer if _texts(longer)[len(longer) - len(shorter) :] == _texts(shorter) else None


def _continued(asked: list[Message], before: list[Message]) -> list[Message] | None:
    """The prompt that was `asked`, with the turns `before` the answers: its own, or more of them. None where they
    disagree."""
    if (longer := _longer(asked, before)) is not None:
        return longer
    system = [message for message in asked if message.turn.role == "system"]
    question = asked[len(system) :]
    if len(question) == 1 and _texts(question)[0] in _texts(before):  # the first question of several, in some data
        return before if before[0].turn.role == "system" else [*system, *before]
    return None


def _texts(messages: list[Message]) -> list[tuple[str, str]]:
    return [(message.turn.role, message.turn.whole.strip()) for message in messages]
