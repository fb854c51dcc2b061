"""Shared by all tests: a private cache, and the project's commands as real processes."""

import os

# One thread a process: tests run side by side, and a forked child must not inherit a thread pool.
os.environ["OMP_NUM_THREADS"] = "1"

import torch

# Before anything imports triton: without a GPU its kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import gc
import importlib
import json
import multiprocessing
import runpy
import signal
import subprocess
import sys
import traceback
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.backends.backend_agg
import matplotlib.figure
import pytest
import torch.distributed as dist

from data import string_tasks
from data.pairs import dates, reversal, transliteration
from engine.config.flags import parse
from engine.config.sections import Config
from engine.run import report
from finetune.classify.options import ClassifyConfig
from finetune.instruct.options import InstructConfig
from finetune.translate.options import TranslateConfig
from kernels import dispatch

if os.environ.get("TRITON_INTERPRET") == "1":
    from triton.runtime.interpreter import interpreter_builder

    # For every sum and product of integers the interpreter works out whether it overflows, a third of its time, and
    # forgets the answer: only when debugging would it be raised.
    assert not interpreter_builder.options.debug
    interpreter_builder.options = replace(interpreter_builder.options, sanitize_overflow=False)

ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(1)

# Done here once, so that forked commands need not: imports (torch._dynamo is torch.optim's), what the parser of the
# flags finds out about the configurations, finding and measuring the fonts of loss.png ...
for module in (
    "engine.pretraining", "engine.session", "finetune.classify.task", "finetune.instruct.preference_task",
    "finetune.translate.task",
    "makemore.recurrent", "nanogpt.model", "torch._dynamo",
):  # fmt: skip
    importlib.import_module(module)
for config in (Config, ClassifyConfig, InstructConfig, TranslateConfig):
    parse([], config)
figure = matplotlib.figure.Figure(layout="constrained")
figure.subplots().set_title("0123456789")
matplotlib.backends.backend_agg.FigureCanvasAgg(figure).draw()
gc.freeze()  # ... and the garbage collector's walk over all that is imported, which would copy it


@dataclass
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True, scope="session")
def private_cache(tmp_path_factory):
    """Prepared texts go into a folder of this test session, and no data folder is given."""
    os.environ["CHARLM_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ.pop("CHARLM_DATA", None)


# Drawing, sampling and waiting for the disk are most of a short run's time: the commands of `cli` write a blank
# picture, a short sample of a stream, and flush nothing. Those of `process` do all of it, and `drawn` has `cli` draw.
_savefig = matplotlib.figure.Figure.savefig
matplotlib.figure.Figure.savefig = lambda figure, file, **how: file.write(b"\x89PNG of a test")
report.N_CHARACTERS = 50
os.fsync = lambda handle: None


@pytest.fixture
def drawn(monkeypatch):
    """Commands draw their pictures."""
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", _savefig)


@pytest.fixture
def few_strings(monkeypatch):
    """The bundled instructions are a hundredth of what they are: 40,000 take seconds to read, 3,200 answers to test."""
    monkeypatch.setattr(string_tasks, "CONVERSATIONS", 400)
    monkeypatch.setattr(string_tasks, "HELD_OUT_SIZE", {"val": 2, "test": 2})


@pytest.fixture
def few_pairs(monkeypatch):
    """The generated pairs are a hundredth of what they are."""
    for module in (dates, reversal, transliteration):
        monkeypatch.setattr(module, "SIZES", {"train": 200, "val": 20, "test": 24})


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """`cli("train.py", "--steps", 3, stdin=b"", env={})` runs a script of the project in a process of its own, in
    `tmp_path`, and returns its exit code and output. The process is forked from this one, where torch is loaded."""
    monkeypatch.chdir(tmp_path)
    return lambda script, *args, **how: Forked(tmp_path, script, *args, **how).wait()


class Forked:
    """A command of the project at work, forked from this process."""

    count = 0

    def __init__(self, folder: Path, script: str, *args, stdin: bytes = b"", env: dict[str, str] | None = None):
        Forked.count += 1
        self.rank = int((env or {}).get("RANK", 0))
        begin = f"{folder.name}.{os.getpid()}.{Forked.count}"
        self.streams = [folder.parent / f"{begin}.{name}" for name in ("in", "out", "err")]
        self.streams[0].write_bytes(stdin)
        self.pid = os.fork()
        if not self.pid:
            _child(script, [str(a) for a in args], self.streams, env or {})

    def wait(self) -> Result:
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return Result(code, self.streams[1].read_text("utf-8"), self.streams[2].read_text("utf-8"))

    def kill(self, signum: int = signal.SIGKILL) -> None:
        os.kill(self.pid, signum)


@pytest.fixture
def ranks(tmp_path, monkeypatch):
    """`ranks(2, "train.py", ...)` starts a command in so many processes, as torchrun does, and returns them, each a
    `Forked`. They meet in a process of its own, as torchrun's is, which outlives them; it does not end the others where
    one ends."""
    monkeypatch.chdir(tmp_path)
    agents = []

    def start(world: int, script: str, *args) -> list[Forked]:
        receiver, sender = multiprocessing.Pipe(duplex=False)
        agents.append(multiprocessing.get_context("fork").Process(target=_meeting_place, args=(sender,), daemon=True))
        agents[-1].start()
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(receiver.recv()), "WORLD_SIZE": str(world)}
        common |= {"LOCAL_WORLD_SIZE": str(world), "GLOO_SOCKET_IFNAME": "lo", "TORCHELASTIC_RESTART_COUNT": "0"}
        common |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
        return [
            Forked(tmp_path, script, *args, env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(world)
        ]

    yield start
    for agent in agents:
        agent.kill()
        agent.join()


def _meeting_place(sender) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    sender.send(store.port)
    signal.pause()


def _child(script: str, args: list[str], streams: list[Path], env: dict[str, str]) -> None:
    """Become the command: its own streams, arguments and environment, and its exit code as the process's."""
    code = 70
    try:
        for fd, (path, mode) in enumerate(zip(streams, (os.O_RDONLY, *[os.O_WRONLY | os.O_CREAT] * 2), strict=True)):
            os.dup2(os.open(path, mode), fd)
        sys.stdin = os.fdopen(0, "r", closefd=False)
        sys.stdout, sys.stderr = (os.fdopen(fd, "w", closefd=False) for fd in (1, 2))
        os.environ.update(env)
        signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # as at a terminal, even where the tests run under nohup
        sys.argv = [script, *args]
        try:
            if script.startswith("-m "):
                runpy.run_module(script[3:], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(str(ROOT / script), run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


@pytest.fixture
def process(tmp_path):
    """`process("train.py", ...)` starts a script as a fresh interpreter in `tmp_path` (for signals and kills):
    a Popen."""
    started = []

    def start(script: str, *args, env: dict[str, str] | None = None) -> subprocess.Popen:
        program = script.split() if script.startswith("-m ") else [str(ROOT / script)]
        command = [sys.executable, *program, *map(str, args)]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        options["preexec_fn"] = lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        )  # as at a terminal, even under nohup
        started.append(
            subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)} | (env or {}), **options)
        )
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.wait()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout."""
    from tests.helpers import build

    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def env(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel, which sees this one's other packages."""
    folder = tmp_path_factory.mktemp("env")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    outer = [path for path in sys.path if path.endswith("-packages")]
    (site / "outer.pth").write_text("\n".join(outer), "utf-8")
    install = ["--python", str(folder / "bin/python"), "install", "-q", "--no-index", "--no-deps", "--ignore-installed"]
    subprocess.run([sys.executable, "-m", "pip", *install, str(wheel)], check=True)
    return folder


@pytest.fixture
def asked_anew():
    """What the kernels know of this machine is forgotten, before and after the test and when it says so."""

    def forget() -> None:
        for answer in (dispatch.interpreting, dispatch.why_not, dispatch.target_of, dispatch.processors):
            answer.cache_clear()

    forget()
    yield forget
    forget()


NAMES = """emma olivia ava isabella sophia charlotte mia amelia harper evelyn abigail emily ella elizabeth camila luna
sofia avery mila aria scarlett penelope layla chloe victoria madison eleanor grace nora riley zoey hannah hazel lily
ellie violet lillian zoe stella aurora natalie emilia everly leah aubrey willow addison lucy audrey bella""".split()


@pytest.fixture
def names(tmp_path) -> Path:
    """A small file of lines."""
    path = tmp_path / "names.txt"
    path.write_text("\n".join(NAMES) + "\n", "utf-8")
    return path


@pytest.fixture
def text(tmp_path) -> Path:
    """A small stream, a few thousand characters long."""
    path = tmp_path / "text.txt"
    path.write_text(
        "".join(f"{a} met {b};\nthey spoke of {c}.\n" for a, b, c in zip(NAMES, NAMES[7:], NAMES[19:], strict=False)),
        "utf-8",
    )
    return path


# Small sizes for each family, as flags: a run takes a fraction of a second.
TINY = {
    "bigram": [],
    "mlp": ["--order", 3, "--n-embd", 8, "--n-hidden", 16],
    "cnn": ["--n-layer", 3, "--n-embd", 8],
    "rnn": ["--n-embd", 8, "--n-hidden", 12],
    "lstm": ["--n-embd", 8, "--n-hidden", 12],
    "gru": ["--n-embd", 8, "--n-hidden", 12],
    "transformer": ["--n-layer", 2, "--n-head", 2, "--n-embd", 16],
}


@pytest.fixture
def greetings(tmp_path):
    """A task that is soon learned: greet by name."""
    path = tmp_path / "greetings.json"
    items = [{"instruction": "Greet.", "input": name, "output": f"hi {name[0]}", "task": "greet"} for name in NAMES]
    items += [{"instruction": "Leave.", "input": name, "output": "bye", "task": "leave"} for name in NAMES]
    path.write_text(json.dumps(items))
    return path


@pytest.fixture
def taught(cli, greetings):
    """A run that answers."""
    from tests.helpers import once  # helpers import this module

    flags = ("--steps", 250, "--eval-interval", 125, "--batch-size", 32, "--dropout", 0, "--lr", 1e-2)
    sizes = ("--n-layer", 1, "--n-head", 2, "--n-embd", 16)
    once(cli, "-m finetune.instruct", "--data", greetings.name, *sizes, *flags, "--out", "run")
