"""What the tests through the command line share: small runs, what they leave behind, refusals, and exact moments."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest

from engine.config.sections import Config
from engine.config.settings import make
from tests.conftest import ROOT, TINY, Result


def configure(**settings) -> Config:
    """The configuration of these settings, by their flat names; what its family has not is left out."""
    return make(Config, settings)


# A folder node_modules, which `.ci/run` fills:
# npm install --ignore-scripts --omit=optional node-llama-cpp@3.21.1 @node-llama-cpp/linux-x64@3.21.1 \
#   @huggingface/tokenizers@0.2.0 @huggingface/jinja@0.5.11 onnxruntime-web@1.30.0
MODULES = os.environ.get("CHARLM_NODE_MODULES", str(ROOT / "node_modules"))


def needs_modules(*names: str):
    """A mark: the test is skipped where node, or one of these packages of npm, is not there."""
    there = shutil.which("node") and all(Path(MODULES, name).is_dir() for name in names)
    return pytest.mark.skipif(not there, reason=f"no node, or no {' and '.join(names)} in CHARLM_NODE_MODULES")


LINES = {"data": "names.txt", "kind": "lines"}
STREAM = {"data": "text.txt", "context": 12}
FAMILIES = [*TINY, "ngram"]
QUICK = ["--steps", 6, "--eval-interval", 3, "--batch-size", 4, "--eval-tokens", 200, "--warmup", 2]


def quick(model: str = "mlp", **flags) -> list:
    """The flags of a run that takes a fraction of a second; `flags` on top, as in `grad_accum=2` or `counts=True`."""
    words = ["--model", model, *QUICK, *TINY[model]]
    for name, value in ({"out": "run"} | flags).items():
        words += ["--" + name.replace("_", "-")] + ([] if value is True else [value])
    return words


def trained(cli, model: str = "mlp", **flags) -> Path:
    """The folder `run` that `quick(model, **flags)` leaves: trained once a session, then copied. Its texts have to be
    those of the fixtures."""
    return once(cli, "train.py", *quick(model, **flags))


def once(cli, *words) -> Path:
    """The folder `run` that a command leaves: run once a session, then copied."""
    kept = Path(os.environ["CHARLM_CACHE"], "trained", hashlib.sha256(repr(words).encode()).hexdigest())
    if not kept.exists():
        ok(cli(*words))
        shutil.copytree("run", kept)
        return Path("run").resolve()
    return Path(shutil.copytree(kept, "run")).resolve()


def trained_any(cli, model: str = "mlp", **flags) -> Path:
    """The same of any family: of the n-gram model, too, which has no sizes and is counted each time."""
    if model in TINY:
        return trained(cli, model, **flags)
    words = [f"--{name}={value}" for name, value in flags.items() if name != "context"]
    ok(cli("train.py", "--model", model, *words, "--out", "run"))
    return Path("run").resolve()


def ok(result: Result) -> Result:
    """The result of a command that succeeded."""
    assert result.code == 0, result.out + result.err
    return result


def refused(result: Result, *words: str) -> None:
    """The command ended with exit code 2 and one readable message, with these words in it."""
    assert result.code == 2, f"exit code {result.code}\n{result.out}{result.err}"
    assert "Traceback" not in result.err
    message = " ".join(result.err.split())  # tyro breaks its lines to the terminal's width
    assert not [word for word in words if word not in message], result.err


def warnings_of(result: Result) -> list[str]:
    """The warnings that a command printed."""
    return [line for line in result.err.splitlines() if line.startswith("warning: ")]


def words_of(case) -> str:
    """What a case with these flags or words is called."""
    return " ".join(map(str, case))[:60] if isinstance(case, list) else ""


def summary(run: str | Path = "run") -> dict:
    """What summary.json says."""
    return json.loads(Path(run, "summary.json").read_text())


def evaluated(cli, *flags) -> dict:
    """The one JSON line of --eval-only."""
    (line,) = ok(cli("train.py", "--eval-only", "--out", "run", *flags)).out.splitlines()
    return json.loads(line)


def facts(run: Path, which: str = "last") -> dict:
    """What a checkpoint says about itself."""
    return json.loads((run / which / "facts.json").read_text())


def metrics(run: str | Path = "run") -> list[dict]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def left(run: Path) -> dict:
    """What two runs that are to be equal have to leave behind alike, bit by bit: all but the seconds."""
    files = ("last/model.safetensors", "last/trainer.safetensors", "best/model.safetensors")
    kept = {name: (run / name).read_bytes() for name in files}
    return kept | {"metrics": [{k: v for k, v in line.items() if k != "seconds"} for line in metrics(run)]}


def left_by(cli, **flags) -> dict:
    """What a run of these flags leaves that nothing interrupted; the run itself is gone."""
    run = trained(cli, **flags)
    kept = left(run)
    shutil.rmtree(run)
    return kept


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def at_call(owner: object, name: str, nth: int, do: Callable[[], None]):
    """Inside, commands do `do()` right before their nth call of `owner.name`."""
    original, calls = getattr(owner, name), 0

    def wrapper(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == nth:
            do()
        return original(*args, **kwargs)

    with mock.patch.object(owner, name, wrapper):
        yield


def send(signum: int, times: int = 1) -> Callable[[], None]:
    """Send the process that calls it a signal."""

    def do() -> None:
        for _ in range(times):
            os.kill(os.getpid(), signum)

    return do


TERM, INT, KILL = send(signal.SIGTERM), send(signal.SIGINT), send(signal.SIGKILL)


def build(kind: str, checkout: Path, folder: Path) -> Path:
    """What hatchling makes of a checkout: a 'wheel' or an 'sdist', without pip or network."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(folder)]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built
