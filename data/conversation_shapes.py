"""The shapes in which conversations are published: one item of a JSON file as a conversation."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from data.bad_examples import BadExample, Notes, NothingToLearn
from data.conversations import Conversation, Turn
from data.errors import UserError, nearest
from data.messages import (
    Message,
    in_turns,
    keys_of,
    nonblank,
    read_message,
    read_messages,
    text_of,
    without_key,
)

PAIRED = (  # keys of a better and a worse answer, which data/preference_shapes.py reads
    ("chosen", "rejected"),
    ("preferred_output", "non_preferred_output"),
    ("chosen_messages", "rejected_messages"),
)
LISTS = ("messages", "conversations")
SYSTEM = ("system", "system_prompt")
# Keys of an item that are not read although they may change what it means.
_UNREAD = (
    "images", "image", "audios", "audio", "videos", "video", "tools", "functions", "context", "input", "history",
)  # fmt: skip


class Columns(NamedTuple):
    """The keys of the prompt, the answer and the system's message; None: see `SHAPES`."""

    prompt: str | None = None
    answer: str | None = None
    system: str | None = None


class Shape(NamedTuple):
    """The keys of a prompt, of its answer, and of what goes with the prompt, the first of them that is there. Without
    an `answer`, `prompt` is the key of all messages."""

    prompt: str
    answer: str = ""
    second: tuple[str, ...] = ()


# The first that an item has is how it is read.
SHAPES = (
    Shape("messages"),
    Shape("instruction", "output", ("input",)),
    Shape("prompt", "completion"),
    Shape("conversations"),
    Shape("instruction", "response", ("context", "input")),
    Shape("question", "answer", ("context",)),
    Shape("question", "response", ("context",)),
    Shape("query", "response", ("context",)),
    Shape("query", "answer", ("context",)),
    Shape("prompt", "response"),
)


def read_conversation(item: Any, where: str, notes: Notes, columns: Columns) -> Conversation:
    """The conversation of an item: an object in one of `SHAPES` or with `columns`, or a list of messages.

    Raises BadExample for one that is malformed or incomplete, UserError for a file that is of another kind."""
    if isinstance(item, list) and item:
        return Conversation(_answered(in_turns(read_messages(item, where, notes)), where, notes), where)
    if not isinstance(item, dict):
        raise BadExample(f"{where} is no object, but a {type(item).__name__}")
    _refuse_judged(item, where)
    label = text_of(item, "task", where, optional=True)
    shape = _shape(item, where, columns)
    note_unread(item, shape, notes)
    if shape.answer:
        messages = opening(item, shape, where, notes, columns)
        if isinstance(item[shape.prompt], list):  # beside a completion of its own its answers are given, as in TRL
            messages = [_not_learned(message) for message in messages]
        messages += said(item, shape.answer, "assistant", where, notes)
    else:
        messages = read_messages(item[shape.prompt], f"{where}: '{shape.prompt}'", notes)
        messages = with_system(messages, item, where, columns)
    return Conversation(_answered(in_turns(messages), where, notes), where, label)


def opening(item: dict, shape: Shape, where: str, notes: Notes, columns: Columns) -> list[Message]:
    """The messages up to the prompt: the system's, an Alpaca `history` of pairs of question and answer, the prompt."""
    messages = [*_history(item, where), *said(item, shape.prompt, "user", where, notes)]
    if second := _second(item, shape):
        turn = messages[-1].turn._replace(input=text_of(item, second, where, optional=True))
        messages[-1] = messages[-1]._replace(turn=turn)
    return with_system(messages, item, where, columns)


def with_system(messages: list[Message], item: dict, where: str, columns: Columns) -> list[Message]:
    """`messages` after the system's message of an item, if it has one and the messages begin without."""
    if columns.system is not None and columns.system not in item:
        raise without_key(item, columns.system, where)
    for name in SYSTEM if columns.system is None else (columns.system,):
        if messages[0].turn.role != "system" and (text := text_of(item, name, where, optional=True)):
            return [Message(Turn("system", text), where), *messages]
    return messages


def note_unread(item: dict, shape: Shape | None, notes: Notes) -> None:
    """Take down the keys of an item that might matter and are not read in this shape."""
    read = {shape.prompt, shape.answer, _second(item, shape)} if shape else set()
    if shape and shape.prompt not in LISTS and isinstance(item.get("history"), list):
        read.add("history")
    notes.unread |= {name for name in _UNREAD if item.get(name) and name not in read}


def _second(item: dict, shape: Shape) -> str:
    """The key of what goes with the prompt of an item; '' without any."""
    return next((name for name in shape.second if name in item), "")


def _shape(item: dict, where: str, columns: Columns) -> Shape:
    """How an item is read. UserError for a pair, and BadExample for an item of no shape that is known."""
    if columns.prompt or columns.answer:
        usual = next((shape for shape in SHAPES if shape.answer and _has(item, _renamed(shape, columns))), SHAPES[2])
        shape = _renamed(usual, columns)
        if missing := [name for name in shape[:2] if name not in item]:
            raise without_key(item, missing[0], where)
        return shape
    is_pair = any(better in item and worse in item for better, worse in PAIRED)
    for shape in SHAPES:
        if _has(item, shape) and not (is_pair and shape.prompt == "conversations"):  # these are a pair's prompt
            return shape
    if is_pair:
        raise UserError(f"{where} is a pair of a chosen and a rejected answer; --dpo trains on those")
    raise _foreign(item, where)


def _has(item: dict, shape: Shape) -> bool:
    return shape.prompt in item and (not shape.answer or shape.answer in item)


def _renamed(shape: Shape, columns: Columns) -> Shape:
    return Shape(columns.prompt or shape.prompt, columns.answer or shape.answer, () if columns.prompt else shape.second)


def _foreign(item: dict, where: str) -> BadExample:
    """The error for an item of no shape: what goes with the key that it has is missing, or it has none."""
    for one, other in (("instruction", "output"), ("prompt", "completion"), ("completion", "prompt"),
                       ("output", "instruction"), ("question", "answer")):  # fmt: skip
        if one in item:
            close = nearest(other, map(str, item))
            way_out = close or f" --{'prompt' if other in ('prompt', 'instruction') else 'answer'}-column names another"
            return BadExample(f"{where} has no key '{other}'; it has: {keys_of(item)}.{way_out}")
    kinds = "'messages', 'instruction' and 'output', 'prompt' and 'completion', 'conversations', or other known keys"
    return BadExample(
        f"{where} has none of {kinds}; it has: {keys_of(item)}. Name yours with --prompt-column and --answer-column"
    )


def _refuse_judged(item: dict, where: str) -> None:
    """Raise UserError for an answer that was judged bad: one learns from those by comparison alone."""
    for name in ("label", "kto_tag"):
        if item.get(name) is False:
            raise UserError(
                f"{where} has '{name}': false, an answer that is not to be learned (as in data for KTO): take such "
                "examples out, or make pairs of chosen and rejected answers for --dpo"
            )


def said(item: dict, name: str, role: str, where: str, notes: Notes) -> list[Message]:
    """What is under a key: a text, which is said by `role`, a message, or a list of them, which may stand under
    'messages'."""
    value = item[name]
    if isinstance(value, dict) and "messages" in value:
        notes.unread |= {key for key in _UNREAD if value.get(key)}
        value = value["messages"]
    if isinstance(value, list):
        return read_messages(value, f"{where}: '{name}'", notes)
    if isinstance(value, dict):
        return [read_message(value, f"{where}: '{name}'", notes)]
    return [Message(Turn(role, nonblank(value, where, name)), f"{where}: '{name}'")]


def _history(item: dict, where: str) -> list[Message]:
    history = item.get("history")
    if not isinstance(history, list):
        return []
    messages = []
    for n, exchange in enumerate(history, 1):
        place = f"{where}: 'history' {n}"
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise BadExample(f"{place} is no pair of a question and an answer")
        for role, text in zip(("user", "assistant"), exchange, strict=True):
            messages.append(Message(Turn(role, nonblank(text, place, role)), place))
    return messages


def _not_learned(message: Message) -> Message:
    return message._replace(turn=message.turn._replace(learned=message.turn.role != "assistant"))


def _answered(turns: Sequence[Turn], where: str, notes: Notes) -> tuple[Turn, ...]:
    """The turns up to the last answer that is to be learned."""
    if not any(turn.role == "assistant" for turn in turns):
        raise BadExample(f"{where} has no answer")
    if turns[-1].role == "user":
        notes.lost_question = True
        turns = turns[:-1]
    while turns and turns[-1].role == "assistant" and not turns[-1].learned:
        turns = turns[:-2]
    if not turns or turns[-1].role != "assistant":
        raise NothingToLearn(f"{where} has no answer that is to be learned")
    return tuple(turns)
