"""A conversation with a run of finetune.instruct: its history, and one reply at a time."""

import dataclasses
from collections.abc import Generator, Iterator

from data.conversations import Turn
from data.errors import UserError
from data.program import command
from engine.config.sections import MAX_SEED
from engine.run.arguments import check_text
from engine.run.healing import Healing, heal
from engine.run.load import Run
from engine.run.samples import Request, Sample
from engine.run.sampling import Sampling
from engine.run.token_scores import TokenScore
from finetune.instruct.templates import Template, without_oldest

REPLY_ROOM = 4  # at least this fraction of the context is free for a reply


class Chat:
    """Asks `run` and keeps what was said; what no longer fits into the context is forgotten, oldest first.

    `end` says why the last reply ended: 'eos', 'stop' or 'length'; None where it did not end by itself. `tokens` are
    its scores, with `logprobs` as in `Run.samples`. `forgotten` counts the questions that had to be
    forgotten for the last reply. `system` stands before everything, and stays.

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
        system: str | None = None,
    ):
        if run.template is None:
            raise UserError(f"{run.folder} never learned to answer; {command('instruct')} with --init teaches it")
        self.run, self.template = run, Template(run.template, run.tokenizer)
        longest = run.config.net.context + 1 if max_new_tokens is None else max_new_tokens
        self.request, self.unknown = Request(longest, sampling or Sampling(temperature=0), seed, stop), unknown
        self.logprobs = logprobs
        self.system = ""
        self.reset()
        if system is not None:
            self.be(system)

    def be(self, system: str) -> None:
        """Begin with this system message, also before what was said already; "": with none.

        Raises UserError where it has characters the model does not know."""
        check_text("system", system, self.unknown)
        self.system = self._known(system)

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.turns: tuple[Turn, ...] = ()
        self.asked = self.forgotten = 0
        self.end: str | None = None
        self.tokens: tuple[TokenScore, ...] = ()

    def ask(self, message: str) -> Generator[str, None, None]:
        """The reply, piece by piece. What has been said when the caller stops listening is remembered as the reply.

        Raises UserError, and forgets the message, where it is empty, too long, or has characters the model does not
        know."""
        check_text("message", message, self.unknown)
        known = self._known(message)
        if not known.strip():
            raise UserError("the message is empty, or the model knows none of its characters")
        turns = (*self.turns, Turn("user", known))
        system = (Turn("system", self.system),) if self.system else ()
        ids, kept = self.within_context((*system, *turns))
        self.forgotten, turns = (len(system) + len(turns) - len(kept)) // 2, kept[len(system) :]
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

    def retry(self) -> Generator[str, None, None]:
        """Another reply to the last message, in place of the one that was given. Raises UserError without a message."""
        if not self.turns:
            raise UserError("nothing was asked yet")
        before, rest = self.turns, self.turns[:-2]
        self.turns = rest
        try:
            yield from self.ask(before[-2].text)
        finally:
            if self.turns is rest:  # there was no other
                self.turns = before

    def saved(self) -> dict[str, list[dict[str, str]]]:
        """The conversation as an example that `python -m finetune.instruct --data` reads."""
        turns = [Turn("system", self.system)] * bool(self.system) + [*self.turns]
        return {"messages": [{"role": turn.role, "content": turn.whole} for turn in turns]}

    def _known(self, text: str) -> str:
        """The text without what the model does not know."""
        return self.run.tokenizer.decode(self.run.tokenizer.encode(text, self.unknown).tolist())

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
