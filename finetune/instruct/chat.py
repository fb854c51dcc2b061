"""A conversation with a run of finetune.instruct: its history, one reply at a time, and the terminal around it."""

import contextlib
import dataclasses
import io
import re
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

from data.conversations import Turn
from data.errors import UserError
from data.program import command
from data.terminal import for_stream, show
from engine.config.sections import MAX_SEED
from engine.run.arguments import check_text
from engine.run.healing import Healing, heal
from engine.run.load import Run
from engine.run.samples import Request, Sample
from engine.run.sampling import Sampling
from engine.run.token_scores import TokenScore
from engine.runtime import may_handle
from finetune.instruct.templates import Template, without_oldest

COMMANDS = ("/reset", "/quit")
REPLY_ROOM = 4  # at least this fraction of the context is free for a reply


class Chat:
    """Asks `run` and keeps what was said; what no longer fits into the context is forgotten, oldest first.

    `end` says why the last reply ended: 'eos', 'stop' or 'length'; None where it did not end by itself. `tokens` are
    its scores, with `logprobs` as in `Run.samples`.

    Raises UserError for a run that was not trained on conversations."""

    def __init__(
        self,
        run: Run,
        sampling: Sampling | None = None,
        max_new_tokens: int | None = None,
        seed: int | None = None,
        stop: str | tuple[str, ...] | None = None,
        unknown: str = "error",
        logprobs: int | None = None,
    ):
        if run.template is None:
            raise UserError(f"{run.folder} never learned to answer; {command('instruct')} with --init teaches it")
        self.run, self.template = run, Template(run.template, run.tokenizer)
        longest = run.config.net.context + 1 if max_new_tokens is None else max_new_tokens
        self.request, self.unknown = Request(longest, sampling or Sampling(temperature=0), seed, stop), unknown
        self.logprobs = logprobs
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.turns: tuple[Turn, ...] = ()
        self.asked = 0
        self.end: str | None = None
        self.tokens: tuple[TokenScore, ...] = ()

    def ask(self, message: str) -> Generator[str, None, None]:
        """The reply, piece by piece. What has been said when the caller stops listening is remembered as the reply.

        Raises UserError, and forgets the message, where it is empty, too long, or has characters the model does not
        know."""
        check_text("message", message, self.unknown)
        known = self.run.tokenizer.decode(self.run.tokenizer.encode(message, self.unknown).tolist())
        if not known.strip():
            raise UserError("the message is empty, or the model knows none of its characters")
        turns = (*self.turns, Turn("user", known))
        ids, turns = self.within_context(turns)
        room = self.run.config.net.context + 1 - len(ids)
        length, seed = min(self.request.max_new_tokens, room), self.request.seed
        seed = None if seed is None else (seed + self.asked) % (MAX_SEED + 1)
        request = dataclasses.replace(self.request, max_new_tokens=length, seed=seed)
        self.asked += 1
        said, self.end, self.tokens = "", None, ()
        try:
            for piece in self._noting_end(self.run.answer(ids, request, self.healing(ids), self.logprobs)):
                said += piece
                yield piece
        finally:
            if said:
                self.turns = (*turns, Turn("assistant", said))

    def _noting_end(self, pieces: Generator[str, None, Sample]) -> Iterator[str]:
        sample = yield from pieces
        self.end, self.tokens = sample.end, sample.tokens

    def healing(self, ids: list[int]) -> Healing | None:
        """Only white space is healed: answers were learned to begin where their question's last token ends. Where a
        template ends the question with a token of its own, there is nothing to heal."""
        ends_blank = self.run.tokenizer.decode(ids[-1:]).isspace()
        return heal(self.run.tokenizer, ids, ids[:1]) if ends_blank else None

    def within_context(self, turns: tuple[Turn, ...]) -> tuple[list[int], tuple[Turn, ...]]:
        context = self.run.config.net.context
        while len(ids := self.template.prompt(turns)) > context - context // REPLY_ROOM:
            fewer = without_oldest(turns)
            if fewer is None:
                break
            turns = fewer
        if len(ids) > context:
            raise UserError(f"the message has {len(ids)} tokens; the model's context holds {context}: shorten it")
        return ids, turns


def converse(chat: Chat) -> int:
    """Read messages from standard input and print the replies until /quit or the end of the input."""
    if sys.stdin is None:
        return 0
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  input() then has a history and a cursor
        print(f"{Path(chat.run.folder).name}: /reset starts over, /quit leaves, Ctrl-C stops a reply")
    while True:
        try:
            message = input("> " if at_terminal else "").strip()
            if message == "/quit":
                return 0
            if message:
                _answer(chat, message)
        except EOFError:
            if at_terminal:
                print()
            return 0
        except KeyboardInterrupt:
            print("  [/quit leaves]")


def _answer(chat: Chat, message: str) -> None:
    if message == "/reset":
        chat.reset()
        print("[starting over]")
    elif re.fullmatch(r"/\w*", message):
        print(f"[there is no {message}; there are: {', '.join(COMMANDS)}]")
    else:
        try:
            with _noticing_ctrl_c() as pressed, contextlib.closing(chat.ask(message)) as pieces:
                for piece in pieces:
                    show(piece, end="", flush=True)
                    if pressed:
                        break
            print("  [stopped]" if pressed else "")
        except UserError as error:
            print(for_stream(f"error: {error}", sys.stderr), file=sys.stderr)


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
