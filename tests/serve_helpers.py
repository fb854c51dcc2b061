"""What the tests of the server share: a server process over small runs, trained once a session."""

import json
import os
import shutil
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

import openai

from tests.conftest import NAMES, Forked
from tests.helpers import LINES, STREAM, TINY, ok, quick


class Server:
    """A server process over runs, and a client of it."""

    def __init__(self, folder: Path, *words, key: str = "any"):
        self.process = Forked(folder, "-m serve", *words, "--port", 0)
        out = self.process.streams[1]
        end = time.monotonic() + 60
        while not (out.exists() and out.read_text().endswith("(Ctrl-C ends it)\n")):
            assert time.monotonic() < end, out.read_text() + self.process.streams[2].read_text()
            time.sleep(0.02)
        self.url = next(word for word in out.read_text().split() if word.startswith("http://"))
        self.port = int(self.url.rpartition(":")[2])
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def get(self, path: str, body: dict | None = None, **headers: str) -> tuple[int, dict, str]:
        """The status, headers and text that a path answers with; with a body it is posted."""
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"} | headers)
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return answer.status, dict(answer.headers), answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read().decode()

    def count(self, name: str, model: str) -> int:
        """A number of /metrics."""
        lines = dict(line.rsplit(" ", 1) for line in self.get("/metrics")[2].splitlines())
        return int(lines[f'charlm_{name}{{model="{model}"}}'])

    def wait_for(self, name: str, model: str, is_there) -> None:
        end = time.monotonic() + 30
        while not is_there(self.count(name, model)):
            assert time.monotonic() < end, self.get("/metrics")[2]
            time.sleep(0.01)

    def end(self, signum: int = signal.SIGTERM):
        self.process.kill(signum)
        return self.process.wait()


def write_texts(folder: Path) -> None:
    (folder / "names.txt").write_text("\n".join(NAMES))
    (folder / "text.txt").write_text("the cat sat on the mat; a dog and a rat\n" * 40)
    lines = [{"prompt": f"Greet.\n{name}", "completion": f"hi {name}"} for name in NAMES]
    (folder / "chat.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "labels.tsv").write_text("".join(f"{'long' if len(name) > 5 else 'short'}\t{name}\n" for name in NAMES))


def train_runs(folder: Path) -> None:
    """Four runs: names, a stream, conversations, labels."""
    kept = Path(os.environ["CHARLM_CACHE"], "served")
    if kept.exists():
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        return
    write_texts(folder)
    tuned = ["--steps", 4, "--eval-interval", 2, "--batch-size", 4, "--warmup", 2, "--model", "gru", *TINY["gru"]]
    for script, words in (
        ("train.py", quick("gru", **LINES, out="names")),
        ("train.py", quick("transformer", **STREAM, out="stream")),
        ("-m finetune.instruct", [*tuned, "--data", "chat.jsonl", "--out", "chat"]),
        ("-m finetune.classify", [*tuned, "--data", "labels.tsv", "--ngrams", 0, "--out", "labels"]),
    ):
        ok(Forked(folder, script, *words).wait())
    shutil.copytree(folder, kept)
