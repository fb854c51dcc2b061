"""The HTTP interface: which path does what."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import PlainTextResponse, Response

from data.program import version
from engine.watch import page
from engine.watch.curves import Follower
from serve import answers, curves, errors, maps, prometheus, reading
from serve.bodies import Attention, Classification, Completion, Conversation, Embeddings, Scoring
from serve.errors import Refused
from serve.guard import Guard
from serve.served import Served
from serve.settings import MOST_BODY, Settings


class Deliverer:
    """Has functions called in the event loop, from any thread. `ending`: set once the server ends."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.ending = asyncio.Event()

    def __call__(self, give: Callable[[], None]) -> None:
        if self.loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody listens
                self.loop.call_soon_threadsafe(give)


def make_app(
    served: list[Served], labels: list[reading.Labels], settings: Settings, keys: list[str], deliverer: Deliverer
) -> Any:
    """The application over these runs, as ASGI has it."""

    @contextlib.asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        deliverer.loop = asyncio.get_running_loop()
        yield
        for each in served:
            await asyncio.to_thread(each.worker.close)

    app = FastAPI(title="charlm", version=version(), lifespan=running, docs_url=None, redoc_url=None)
    errors.install(app)
    every: list[Any] = [*served, *labels]
    names = [each.name for each in every]
    followed = {each.name: Path(each.run.folder) for each in served} | {each.name: each.folder for each in labels}

    def find(name: str | None, among: list[Any]) -> Any:
        """Of these runs the one of this name; without one the first."""
        for each in among:
            if name in (None, each.name):
                return each
        if name in names or name is None:
            kind = "writes texts" if among is served else "labels texts"
            raise Refused(400, f"{name or 'no model here'} is none that {kind}", "model")
        raise Refused(404, f"there is no model {name!r}; there are: {', '.join(names)}", "model", "model_not_found")

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "models": len(names), "key": bool(keys)}

    @app.get("/")
    async def show() -> Response:
        return Response(page.html(), media_type="text/html", headers={"Cache-Control": "no-cache"})

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(prometheus.text(served), media_type=prometheus.MEDIA_TYPE)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [each.card() for each in every]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        return find(name, every).card()

    @app.post("/v1/completions")
    async def completions(asked: Completion, http: Request) -> Response:
        return await answers.complete(find(asked.model, served), asked, http)

    @app.post("/v1/chat/completions")
    async def chat(asked: Conversation, http: Request) -> Response:
        return await answers.converse(find(asked.model, served), asked, http)

    @app.post("/v1/score")
    async def score(asked: Scoring) -> dict[str, Any]:
        return await reading.score(find(asked.model, served), asked)

    @app.post("/v1/attention")
    async def attention(asked: Attention) -> dict[str, Any]:
        return await maps.attention(find(asked.model, served), asked)

    @app.get("/v1/curves")
    async def follow() -> Response:
        return curves.stream(Follower(followed, settings.curves), deliverer.ending)

    @app.post("/v1/classify")
    async def classify(asked: Classification) -> dict[str, Any]:
        return await reading.classify(find(asked.model, labels), asked)

    @app.post("/v1/embeddings")
    async def embeddings(asked: Embeddings) -> dict[str, Any]:
        return await reading.embed(find(asked.model, served), asked)

    guarded: Any = Guard(app, keys, MOST_BODY, settings.log_json)
    if settings.cors:
        guarded = CORSMiddleware(
            guarded, allow_origins=settings.cors, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    return guarded
