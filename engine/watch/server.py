"""--watch: the page over the curves of a training and of the runs beside it, from a thread of its process."""

import contextlib
import http.server
import json
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.errors import UserError
from engine.run.folder import RUNS
from engine.watch import curves, page
from engine.watch.curves import Follower

HOST = "127.0.0.1"
BEAT = 5.0  # seconds of silence after which a stream says that it is there: whoever has left is found out so


@contextlib.contextmanager
def watching(port: int | None, out: str | None) -> Iterator[None]:
    """A context in which the curves of the runs in the folder of `out` are shown at `port` (0: any free one). None:
    nothing is. Raises UserError where the port is taken."""
    if port is None:
        yield
        return
    folder = RUNS if out is None else Path(out).absolute().parent
    try:
        server = _Server((HOST, port), folder)
    except OSError as error:
        message = f"--watch {port}: cannot listen there: {error.strerror}; take another port, or 0 for any"
        raise UserError(message) from error
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="watch", daemon=True)
    thread.start()
    print(f"curves at http://{HOST}:{server.server_address[1]}", flush=True)
    try:
        yield
    finally:
        server.ending.set()
        server.shutdown()
        server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    """The page, and the curves of the runs in `folder`. What goes wrong with a client never reaches the training."""

    allow_reuse_address, daemon_threads, block_on_close = True, True, False

    def __init__(self, address: tuple[str, int], folder: Path):
        super().__init__(address, _Handler)
        self.folder, self.ending = folder, threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class _Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    server: _Server
    timeout = 60  # seconds that a client may take

    def do_GET(self) -> None:
        if self.path == "/":
            self._answer(200, "text/html; charset=utf-8", page.html())
        elif self.path == "/health":
            self._answer(200, "application/json", b'{"status": "ok", "models": 0, "key": false}')
        elif self.path == "/v1/curves":
            self._head(200, "text/event-stream")
            self._stream(Follower({}, [self.server.folder]))
        else:
            self._answer(404, "text/plain", b"there is nothing here\n")

    def _stream(self, follower: Follower) -> None:
        told = 0.0
        while not self.server.ending.is_set():
            news, now = follower.news(), time.monotonic()
            if not told or news["runs"] or news["gone"]:
                self.wfile.write(f"data: {json.dumps(news)}\n\n".encode())
                told = now
            elif now - told > BEAT:
                self.wfile.write(b": \n\n")
                told = now
            self.server.ending.wait(curves.EVERY)

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self._head(status, kind, length=len(body))
        self.wfile.write(body)

    def _head(self, status: int, kind: str, length: int | None = None) -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Cache-Control": "no-store", "Content-Security-Policy": page.policy()}
        headers |= {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
        if length is not None:
            headers["Content-Length"] = str(length)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *words: Any) -> None:
        pass
