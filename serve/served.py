"""A run that is served: its worker, and requests as jobs for it."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.bad_examples import BadExample, Notes
from data.conversations import Turn
from data.errors import UserError
from data.messages import in_turns, read_message
from engine.config.sections import MAX_SEED
from engine.run.healing import heal
from engine.run.run import Run
from engine.run.samples import Request
from engine.run.sampling import Sampling
from finetune.instruct.chat import Chat
from nanogpt.model import Transformer
from serve.bodies import Completion, Conversation, Message
from serve.errors import Refused
from serve.worker import Job, Worker

KNOBS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class Served:
    """One run under its name."""

    def __init__(self, name: str, run: Run, worker: Worker, most_tokens: int):
        self.name, self.run, self.worker, self.most_tokens = name, run, worker, most_tokens
        self.created = int(time.time())

    @property
    def can_chat(self) -> bool:
        return self.run.template is not None

    @property
    def transformer(self) -> Transformer | None:
        """The run's Transformer, also that inside a mixture; None where it is of another family."""
        model: Any = getattr(self.run.model, "neural", self.run.model)
        return model if isinstance(model, Transformer) else None

    def card(self) -> dict[str, Any]:
        """What /v1/models says of it."""
        config = self.run.config
        return {
            "id": self.name, "object": "model", "created": self.created, "owned_by": "charlm", "family": config.model,
            "chat": self.can_chat, "attention": self.transformer is not None, "kind": config.text.kind,
            "context": config.net.context, "val_loss": self.run.facts.get("val_loss"),
        }  # fmt: skip

    def completion_jobs(self, body: Completion, sink: Callable[[int], Callable]) -> list[Job]:
        """A job for each choice of each prompt; `sink` gives what takes the text of the choice of this number."""
        prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        if not 0 < len(prompts) * body.n <= self.worker.most:
            message = f"{len(prompts)} prompts times n {body.n} are {len(prompts) * body.n} texts"
            raise Refused(400, f"{message}; a request may ask for 1 to {self.worker.most}", "prompt")
        request = self._request(body, body.max_tokens, Sampling())
        jobs: list[Job] = []
        for prompt in prompts:
            ids, empty = self.run.prompt_ids(prompt), self.run.prompt_ids()
            healing = heal(self.run.tokenizer, ids, empty) if prompt else None
            jobs += [
                Job(ids, _with_seed(request, n), sink(len(jobs) + n), healing, body.logprobs, body.stream)
                for n in range(body.n)
            ]
        return jobs

    def chat_jobs(self, body: Conversation, sink: Callable[[int], Callable]) -> list[Job]:
        """A job for each answer to the last message of the user."""
        if not self.can_chat:
            raise Refused(
                400, f"{self.name} was not trained on conversations; /v1/completions continues texts", "model"
            )
        turns = _turns(body.messages)
        if body.n > self.worker.most:
            raise Refused(400, f"n is {body.n}; it may be up to {self.worker.most}", "n")
        chat = Chat(self.run, unknown="error")
        ids, _ = chat.within_context(turns)
        asked = body.max_completion_tokens or body.max_tokens
        room = self.run.config.net.context + 1 - len(ids)
        request = self._request(body, asked, Sampling(temperature=0))
        request = dataclasses.replace(request, max_new_tokens=min(request.max_new_tokens, room))
        told = (body.top_logprobs or 0) if body.logprobs else None
        return [Job(ids, _with_seed(request, n), sink(n), chat.healing(ids), told, body.stream) for n in range(body.n)]

    def _request(self, body: Completion | Conversation, max_tokens: int | None, sampling: Sampling) -> Request:
        knobs = {name: value for name in KNOBS if (value := getattr(body, name)) is not None}
        most = min(self.run.longest, self.most_tokens) if max_tokens is None else max_tokens
        if most > self.most_tokens:
            raise Refused(400, f"max_tokens is {most}; at most {self.most_tokens} are drawn here", "max_tokens")
        stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
        return self.run.request(
            max_new_tokens=most, stop=tuple(stops) or None, seed=body.seed, sampling=sampling, **knobs
        )


def _with_seed(request: Request, n: int) -> Request:
    """The request of the choice `n`: with a seed of its own, the first with the given one."""
    seed = request.seed
    return request if seed is None or n == 0 else dataclasses.replace(request, seed=(seed + n) % (MAX_SEED + 1))


def _turns(messages: list[Message]) -> tuple[Turn, ...]:
    """The turns of a request, read as chat data is. Refused unless, after a system message, user and assistant take
    turns and the user is last, and for what a model of texts cannot read."""
    notes = Notes()
    try:
        read = [
            read_message(message.model_dump(exclude_none=True), f"message {n}", notes)
            for n, message in enumerate(messages, 1)
        ]
        turns = in_turns(read)
    except BadExample as error:
        raise Refused(400, str(error), "messages") from None
    if notes.unread:
        raise Refused(400, f"{', '.join(sorted(notes.unread))}: a model of texts reads text alone", "messages")
    if turns[-1].role != "user":
        raise Refused(400, "the last message has to be the user's", "messages")
    return turns


def names_of(folders: list[str]) -> list[str]:
    """A name for each run: its folder's, or where two are equal its path."""
    short = [Path(folder).name for folder in folders]
    if twice := {folder for folder in folders if folders.count(folder) > 1}:
        raise UserError(f"{min(twice)} is named twice")
    return [name if short.count(name) == 1 else folder for name, folder in zip(short, folders, strict=True)]
