"""What stands in front of every request: its size, its key, and what a browser may do with the answer. Plain ASGI, so
that streams pass as they come."""

import asyncio
import contextlib
import hmac
import json
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from engine.watch import page
from serve.errors import Refused, answer

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

DRAINED_FOR, MOST_DRAINED = 1.0, 64 << 20  # seconds, bytes
OPEN = {"/", "/health"}  # what needs no key: the page holds nothing, and asks for one
HEADERS = [
    (b"content-security-policy", page.policy().encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class Guard:
    """`app` behind the checks: bodies of at most `most_body` bytes, and where there are `keys`, one of them. A line on
    standard error says what became of each request, with `log_json` in JSON."""

    def __init__(self, app: App, keys: list[str], most_body: int, log_json: bool):
        self.app, self.most_body, self.log_json = app, most_body, log_json
        self.keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        try:
            refused, body = self._refusal(scope), b""
            if refused is None:
                whole = await self._body(receive)
                refused, body = (self._too_large(), b"") if whole is None else (None, whole)
            if refused is None:
                await self.app(scope, _again(body, receive), send_guarded)
            else:
                if refused.status == 413:
                    await _drain(receive)
                await answer(refused)(scope, receive, send_guarded)
        except asyncio.CancelledError:  # the grace of a server that ends is over
            if not status:
                await answer(Refused(503, "the server is ending", code="ending"))(scope, receive, send_guarded)
        finally:
            self._log(scope, status, time.perf_counter() - started)

    async def _body(self, receive: Receive) -> bytes | None:
        """The body of a request; None where it is too large."""
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.most_body:
                return None
            more = message["type"] == "http.request" and message.get("more_body", False)
        return b"".join(parts)

    def _refusal(self, scope: Scope) -> Refused | None:
        given = dict(scope["headers"])
        length = given.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.most_body:
            return self._too_large()
        if self.keys and scope["path"] not in OPEN and not self._has_key(given):
            return Refused(401, "an API key is needed, as in: Authorization: Bearer KEY", code="invalid_api_key")
        return None

    def _has_key(self, given: dict[bytes, bytes]) -> bool:
        """Whether a key was given. It is compared with all, in a time that does not depend on where they differ."""
        scheme, _, key = given.get(b"authorization", b"").partition(b" ")
        return sum([hmac.compare_digest(key.strip(), known) for known in self.keys]) > 0 and scheme.lower() == b"bearer"

    def _too_large(self) -> Refused:
        return Refused(413, f"the request is larger than {self.most_body:,} bytes", code="request_too_large")

    def _log(self, scope: Scope, status: int, seconds: float) -> None:
        facts = {"method": scope["method"], "path": scope["path"], "status": status, "ms": round(1000 * seconds, 1)}
        if self.log_json:
            line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z")} | facts)
        else:
            line = f"{facts['method']} {facts['path']!a} {status or 'left'} {facts['ms']:.0f} ms"
        print(line, file=sys.stderr, flush=True)


async def _drain(receive: Receive) -> None:
    """Read what a client is still sending, for a while: one that is cut off in the middle never reads the answer."""
    size = 0
    with contextlib.suppress(asyncio.TimeoutError):
        async with asyncio.timeout(DRAINED_FOR):
            while size < MOST_DRAINED:
                message = await receive()
                size += len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return


def _again(body: bytes, receive: Receive) -> Receive:
    """What gives a body that was read already, and then what comes after it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again
