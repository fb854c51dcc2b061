"""Answers to requests for texts, whole and streamed, as OpenAI's API has them."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse

from data.errors import UserError
from engine.run.company import Drawn
from serve.bodies import Completion, Conversation
from serve.errors import Refused, body, of_user_error
from serve.served import Served
from serve.worker import Full, Job

REASONS = {"eos": "stop", "stop": "stop", "length": "length"}
RETRY_AFTER = 1  # seconds
Sink = Callable[[list[Drawn], str | Exception | None], None]


@dataclass
class Choice:
    """One text as it comes."""

    drawn: list[Drawn] = field(default_factory=list)
    end: str | None = None


class Answer:
    """The texts of one request, which come from a worker's thread."""

    def __init__(self, served: Served, http: HttpRequest):
        self.served, self.http = served, http
        self.id, self.created = secrets.token_hex(12), int(time.time())
        self.jobs: list[Job] = []
        self.choices: list[Choice] = []
        self._parcels: asyncio.Queue[tuple[int, list[Drawn], str | Exception | None]] = asyncio.Queue()

    def sink(self, number: int) -> Sink:
        """What takes the text of choice `number`, called in the event loop."""
        return lambda drawn, end: self._parcels.put_nowait((number, drawn, end))

    def begin(self, jobs: list[Job]) -> None:
        """Hand the jobs to the worker. Raises Refused where its queue is full."""
        self.jobs, self.choices = jobs, [Choice() for _ in jobs]
        try:
            self.served.worker.submit(jobs)
        except Full as full:
            raise Refused(
                429, "the queue is full; try again later", code="queue_full", retry_after=RETRY_AFTER
            ) from full

    async def parcels(self) -> AsyncIterator[tuple[int, list[Drawn], str | None]]:
        """What comes, until all texts have ended. Raises Refused where the worker failed."""
        while any(choice.end is None for choice in self.choices):
            number, drawn, end = await self._parcels.get()
            if isinstance(end, UserError):
                raise of_user_error(end)
            if isinstance(end, Exception):
                message = "the model's worker failed and was started again; try again"
                raise Refused(500, message, code="worker_failed") from end
            self.choices[number].drawn += drawn
            self.choices[number].end = end
            yield number, drawn, end

    async def whole(self) -> None:
        """Wait for all texts; where the client leaves, give up."""

        async def collect() -> None:
            async for _ in self.parcels():
                pass

        tasks = asyncio.ensure_future(collect()), asyncio.ensure_future(_left(self.http))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not tasks[0].done():
                raise Refused(499, "the client has left")
            tasks[0].result()
        finally:
            self.give_up()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def give_up(self) -> None:
        """Stop the work on texts that have not ended."""
        if any(choice.end is None for choice in self.choices):
            self.served.worker.cancel(self.jobs)

    def usage(self) -> dict[str, int]:
        read = sum({id(job.ids): len(job.ids) for job in self.jobs}.values())
        new = sum(len(choice.drawn) for choice in self.choices)
        return {"prompt_tokens": read, "completion_tokens": new, "total_tokens": read + new}


async def complete(served: Served, asked: Completion, http: HttpRequest) -> Response:
    """The answer of /v1/completions."""
    answer = Answer(served, http)
    answer.begin(served.completion_jobs(asked, answer.sink))
    prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    prefixes = [prompt if asked.echo else "" for prompt in prompts for _ in range(asked.n)]
    offsets = [len(prefix) for prefix in prefixes]  # of the next token of each text

    def piece(number: int, drawn: list[Drawn], end: str | None, prefix: str) -> dict[str, Any]:
        told = None
        if asked.logprobs is not None:
            told, offsets[number] = _completion_logprobs(served, drawn, offsets[number])
        text = prefix + "".join(each.text for each in drawn)
        return {"text": text, "index": number, "logprobs": told, "finish_reason": REASONS.get(end or "")}

    head = {"id": f"cmpl-{answer.id}", "object": "text_completion", "created": answer.created, "model": served.name}
    if not asked.stream:
        await answer.whole()
        texts = [piece(n, choice.drawn, choice.end, prefixes[n]) for n, choice in enumerate(answer.choices)]
        return JSONResponse(head | {"choices": texts, "usage": answer.usage()})

    async def events() -> AsyncIterator[dict[str, Any]]:
        first = set(range(len(prefixes)))
        async for number, drawn, end in answer.parcels():
            prefix = prefixes[number] if number in first else ""
            first.discard(number)
            yield head | {"choices": [piece(number, drawn, end, prefix)]}
        if asked.stream_options and asked.stream_options.include_usage:
            yield head | {"choices": [], "usage": answer.usage()}

    return Stream(answer, events())


async def converse(served: Served, asked: Conversation, http: HttpRequest) -> Response:
    """The answer of /v1/chat/completions."""
    answer = Answer(served, http)
    answer.begin(served.chat_jobs(asked, answer.sink))
    head = {"id": f"chatcmpl-{answer.id}", "created": answer.created, "model": served.name}

    def told(drawn: list[Drawn]) -> dict[str, Any] | None:
        return {"content": _chat_logprobs(served, drawn)} if asked.logprobs else None

    if not asked.stream:
        await answer.whole()
        choices = [
            {
                "index": n, "message": {"role": "assistant", "content": "".join(each.text for each in choice.drawn)},
                "logprobs": told(choice.drawn), "finish_reason": REASONS.get(choice.end or ""),
            }
            for n, choice in enumerate(answer.choices)
        ]  # fmt: skip
        return JSONResponse(head | {"object": "chat.completion", "choices": choices, "usage": answer.usage()})
    head["object"] = "chat.completion.chunk"

    async def events() -> AsyncIterator[dict[str, Any]]:
        for n in range(len(answer.jobs)):
            delta = {"role": "assistant", "content": ""}
            yield head | {"choices": [{"index": n, "delta": delta, "logprobs": None, "finish_reason": None}]}
        async for number, drawn, end in answer.parcels():
            delta = {"content": "".join(each.text for each in drawn)}
            choice = {"index": number, "delta": delta, "logprobs": told(drawn), "finish_reason": REASONS.get(end or "")}
            yield head | {"choices": [choice]}
        if asked.stream_options and asked.stream_options.include_usage:
            yield head | {"choices": [], "usage": answer.usage()}

    return Stream(answer, events())


class Stream(StreamingResponse):
    """Server-sent events, of which the last says that it is the last. An error in the middle is an event too. When the
    client leaves, the work stops."""

    def __init__(self, answer: Answer, events: AsyncIterator[dict[str, Any]]):
        self.answer = answer
        super().__init__(_lines(events), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.answer.give_up()


async def _lines(events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    try:
        async for event in events:
            yield f"data: {json.dumps(event)}\n\n"
    except Refused as error:
        yield f"data: {json.dumps(body(error.status, error.message, error.param, error.code))}\n\n"
    yield "data: [DONE]\n\n"


async def _left(http: HttpRequest) -> None:
    """Wait until the client has closed the connection."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _completion_logprobs(served: Served, drawn: list[Drawn], offset: int) -> tuple[dict[str, Any], int]:
    """The probabilities of tokens as /v1/completions tells them, and where the next token's text begins."""
    offsets = []
    for each in drawn:
        offsets.append(offset)
        offset += len(each.text)
    return {
        "tokens": [served.run.token_text(each.id) for each in drawn],
        "token_logprobs": [each.logprob for each in drawn],
        "top_logprobs": [{served.run.token_text(id_): value for id_, value in each.likeliest} for each in drawn],
        "text_offset": offsets,
    }, offset


def _chat_logprobs(served: Served, drawn: list[Drawn]) -> list[dict[str, Any]]:
    """The same as /v1/chat/completions tells them."""

    def one(id_: int, value: float | None) -> dict[str, Any]:
        text = served.run.token_text(id_)
        return {"token": text, "logprob": value, "bytes": list(text.encode())}

    return [
        one(each.id, each.logprob) | {"top_logprobs": [one(id_, value) for id_, value in each.likeliest]}
        for each in drawn
    ]
