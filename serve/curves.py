"""The curves of runs as a stream of events, which ends when the server does."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator

from fastapi.responses import StreamingResponse

from engine.watch.curves import EVERY, Follower

BEAT = 15.0  # seconds of silence after which the stream says that it is there: proxies close silent ones


def stream(follower: Follower, ending: asyncio.Event) -> StreamingResponse:
    """What is new to the reader of this stream, as it comes."""
    return StreamingResponse(
        _events(follower, ending), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


async def _events(follower: Follower, ending: asyncio.Event) -> AsyncIterator[str]:
    told = 0.0
    while not ending.is_set():
        news, now = await asyncio.to_thread(follower.news), time.monotonic()
        if not told or news["runs"] or news["gone"]:
            told = now
            yield f"data: {json.dumps(news)}\n\n"
        elif now - told > BEAT:
            told = now
            yield ": \n\n"
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(ending.wait(), EVERY)
