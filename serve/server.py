"""The server's process: loading the runs, listening, and ending well."""

import gc
import json
import logging
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import uvicorn

from data.errors import UserError
from engine.run import folder
from engine.run.load import load_writer
from finetune.classify.labeller import load_labeller
from serve.app import Deliverer, make_app
from serve.reading import Labels
from serve.served import Served, names_of
from serve.settings import Settings
from serve.worker import Worker


def serve(settings: Settings, keys: list[str]) -> int:
    """Serve until a signal. Raises UserError for a run that cannot be served or an address that is taken."""
    torch.set_num_threads(settings.threads)
    deliverer = Deliverer()
    served, labels = load(settings, deliverer)
    app = make_app(served, labels, settings, keys, deliverer)
    gc.freeze()  # what stays need not be walked through while serving, and not for a second at the end
    listening = _listen(settings.host, settings.port)
    host, port = listening.getsockname()[:2]
    config = uvicorn.Config(
        app, log_config=None, access_log=False, timeout_graceful_shutdown=max(1, round(settings.grace)), lifespan="on"
    )
    logging.getLogger("uvicorn.error").addHandler(_handler(settings.log_json))
    server = _Server(config, deliverer)
    for signum in (signal.SIGTERM, signal.SIGINT):  # until uvicorn takes them, and when it raises them again at its end
        signal.signal(signum, server.handle_exit)
    names = ", ".join([each.name for each in served] + [each.name for each in labels])
    print(f"serving {names} on http://{host}:{port} (Ctrl-C ends it)", flush=True)
    server.run([listening])
    return 0


class _Server(uvicorn.Server):
    """Tells streams that never end by themselves when the server is to end: it waits for them."""

    def __init__(self, config: uvicorn.Config, deliverer: Deliverer):
        super().__init__(config)
        self.deliverer = deliverer

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.deliverer(self.deliverer.ending.set)
        super().handle_exit(sig, frame)


def load(settings: Settings, deliverer: Deliverer) -> tuple[list[Served], list[Labels]]:
    """The runs, those that write texts and those that label them."""
    served, labels = [], []
    for name, path in zip(names_of([str(run) for run in settings.runs]), settings.runs, strict=True):
        if _labels_texts(path):
            labeller = load_labeller(path, settings.checkpoint, settings.device)
            labels.append(Labels(name, path, labeller, int(time.time())))
        else:
            run = load_writer(path, settings.checkpoint, settings.device)
            worker = Worker(run, settings.max_streams, settings.queue, deliverer)
            served.append(Served(name, run, worker, settings.max_tokens))
    return served, labels


def _labels_texts(path: Path) -> bool:
    facts = folder.read_facts(path)
    return "labels" in facts.get(folder.task_of(facts) or "", {})


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()  # whoever comes between the message and the first answer waits
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror}; another --port, or 0 for any") from error
    return listening


def _handler(as_json: bool) -> logging.Handler:
    """What prints uvicorn's warnings and errors."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.WARNING)
    if as_json:

        class Lines(logging.Formatter):
            def format(self, record: Any) -> str:
                return json.dumps({"level": record.levelname.lower(), "message": record.getMessage()})

        handler.setFormatter(Lines())
    return handler
