"""A conversation in the terminal, or with whatever writes to standard input."""

import contextlib
import io
import json
import os
import re
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

from data.errors import UserError, warn
from data.terminal import for_stream, show
from engine.runtime import may_handle
from finetune.instruct.chat import Chat

COMMANDS = {
    "/system": "TEXT stands before everything; alone: show it",
    "/retry": "another reply to the last message",
    "/save": "FILE: add the conversation, as a line of JSON",
    "/reset": "start over",
    "/help": "this",
    "/quit": "leave",
}


def converse(chat: Chat) -> int:
    """Read messages from standard input and print the replies until /quit or the end of the input."""
    if sys.stdin is None:
        return 0
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        _edit_lines()
        print(f"{Path(chat.run.folder).name}: /help shows commands, /quit leaves, Ctrl-C stops a reply")
    while True:
        try:
            message = _message("> " if at_terminal else "")
            if message == "/quit":
                return 0
            if message:
                _obey(chat, message)
        except EOFError:
            if at_terminal:
                print()
            return 0
        except KeyboardInterrupt:
            print("  [/quit leaves]")


def _edit_lines() -> None:
    """Give `input` a cursor and a history, and take a text of several lines that is pasted as one message."""
    with contextlib.suppress(ImportError):
        import readline

        if os.environ.get("TERM", "dumb") != "dumb":  # Python turns it off; macOS's editor has none
            readline.parse_and_bind("set enable-bracketed-paste on")


def _message(prompt: str) -> str:
    """What is typed next: a line, and those after it where it ends with a backslash."""
    lines = [input(prompt)]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        try:
            lines.append(input("  " if prompt else ""))
        except EOFError:
            break
    return "\n".join(lines).strip()


def _obey(chat: Chat, message: str) -> None:
    """Answer a message, or do what a command says."""
    command, _, rest = message.partition(" ")
    try:
        if not re.fullmatch(r"/\w*", command):
            _reply(chat, chat.ask(message))
        elif command == "/retry":
            _reply(chat, chat.retry())
        else:
            show(_done(chat, command, rest.strip()))
    except UserError as error:
        print(for_stream(f"error: {error}", sys.stderr), file=sys.stderr)


def _done(chat: Chat, command: str, rest: str) -> str:
    """Do what the command says, and tell what was done."""
    if command == "/reset":
        chat.reset()
        return "[starting over]"
    if command == "/system":
        if rest:
            chat.be(rest)
        return f"[system: {chat.system}]" if chat.system else "[no system message]"
    if command == "/save":
        return _save(chat, rest)
    if command == "/help":
        told = [f"{name:8} {what}" for name, what in COMMANDS.items()]
        return "\n".join([*told, "A line that ends with a backslash goes on in the next."])
    return f"[there is no {command}; there are: {', '.join(COMMANDS)}]"


def _save(chat: Chat, name: str) -> str:
    if not name:
        raise UserError("/save needs a file: /save talks.jsonl")
    if not chat.turns:
        raise UserError("nothing was said yet")
    try:
        with open(name, "a", encoding="utf-8") as file:
            file.write(json.dumps(chat.saved(), ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {name}: {error.strerror}") from error
    return f"[added to {name}]"


def _reply(chat: Chat, pieces: Generator[str, None, None]) -> None:
    with _noticing_ctrl_c() as pressed, contextlib.closing(pieces):
        for n, piece in enumerate(pieces):
            if n == 0 and chat.forgotten:
                warn(f"the context is full: {chat.forgotten} of the oldest questions and their answers are forgotten")
            show(piece, end="", flush=True)
            if pressed:
                break
    print("  [stopped]" if pressed else "")


@contextlib.contextmanager
def _noticing_ctrl_c() -> Iterator[list[int]]:
    """A list that is empty until Ctrl-C is pressed: an exception in the midst of a model's step could get lost."""
    pressed: list[int] = []
    if not may_handle(signal.SIGINT):
        yield pressed
        return
    before = signal.signal(signal.SIGINT, lambda signum, frame: pressed.append(signum))
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
