"""Signals and terminals as they are: ignored signals, a terminal that is gone, streams that are closed, threads."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine import library
from tests.conftest import ROOT
from tests.helpers import LINES, STREAM, facts, left, metrics, ok, quick, trained
from tests.matrices import matrix

pytestmark = pytest.mark.usefixtures("names", "text")  # names.txt and text.txt stand where the commands run
LONG = {"steps": 10**6, "eval_interval": 10}


def start(tmp_path: Path, *words, **options) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "train.py"), *map(str, words)]
    return subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, **options)


def wait_for(condition, process: subprocess.Popen) -> None:
    started = time.monotonic()
    while not condition():
        assert process.poll() is None and time.monotonic() - started < 120
        time.sleep(0.02)


def steps(run: Path) -> int:
    return len(metrics(run)) if (run / "metrics.jsonl").exists() else 0


@pytest.mark.parametrize("ignored", matrix([signal.SIGHUP, signal.SIGINT], [signal.SIGINT]), ids=lambda each: each.name)
def test_a_signal_that_was_inherited_ignored_stays_ignored(tmp_path, ignored):
    """As under nohup, and in the background of a script."""

    def ignore() -> None:
        for signum in (signal.SIGHUP, signal.SIGINT):
            signal.signal(signum, signal.SIG_IGN if signum == ignored else signal.SIG_DFL)

    out = subprocess.DEVNULL
    training = start(tmp_path, *quick(**LINES | LONG), preexec_fn=ignore, stdout=out, stderr=out)
    run = tmp_path / "run"
    wait_for(lambda: steps(run) > 1, training)
    training.send_signal(ignored)
    before = steps(run)
    wait_for(lambda: steps(run) > before + 2, training)
    training.send_signal(signal.SIGTERM)
    assert training.wait(60) == 128 + signal.SIGTERM
    assert facts(run)["step"] > 0


@pytest.mark.parametrize("hangs_up", matrix([True, False], [False]))
def test_a_terminal_that_is_gone(cli, tmp_path, hangs_up):
    """Its closing sends SIGHUP, which saves and ends the training; a process that outlives it trains to its end."""
    leader, terminal = pty.openpty()
    streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal, "start_new_session": True}
    flags = LINES | ({"steps": 10**6, "eval_interval": 10} if hangs_up else {"steps": 300, "eval_interval": 10})

    def prepare() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL if hangs_up else signal.SIG_IGN)

    training = start(tmp_path, *quick(**flags), preexec_fn=prepare, **streams)
    os.close(terminal)
    wait_for(lambda: steps(tmp_path / "run") > 1, training)
    os.close(leader)
    if hangs_up:
        training.send_signal(signal.SIGHUP)  # what the kernel sends where it is the controlling terminal
    assert training.wait(120) == (128 + signal.SIGHUP if hangs_up else 0)
    last = facts(tmp_path / "run")["step"]
    assert last == 300 if not hangs_up else last > 0
    ok(cli("sample.py", "run", "--num", 1))


@pytest.mark.parametrize("closed", matrix(["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"], ["<&- >&- 2>&-"]))
def test_standard_streams_that_are_closed_at_the_start(cli, tmp_path, closed):
    straight = left(trained(cli, **STREAM))
    words = " ".join(map(str, quick(**STREAM, overwrite=True)))
    command = f"'{sys.executable}' '{ROOT / 'train.py'}' {words} {closed}"
    ended = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0 and "Traceback" not in ended.stderr
    assert left(tmp_path / "run") == straight


def test_a_reader_that_leaves_does_not_end_the_training(cli, tmp_path):
    straight = left(trained(cli, **LINES))
    words = " ".join(map(str, quick(**LINES, overwrite=True)))
    command = f"set -o pipefail; '{sys.executable}' '{ROOT / 'train.py'}' {words} 2>&1 | head -n 1"
    ended = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0 and len(ended.stdout.splitlines()) == 1
    assert left(tmp_path / "run") == straight


THREAD = """
import signal, threading
from engine import Sampling, load_run, train

runs = []
def work():
    sizes = {"order": 2, "n_embd": 4, "n_hidden": 4}
    runs.append(train(data="names.txt", kind="lines", model="mlp", steps=4, eval_interval=2, **sizes))
before = signal.getsignal(signal.SIGTERM)
thread = threading.Thread(target=work)
thread.start()
thread.join()
assert signal.getsignal(signal.SIGTERM) is before
(run,) = runs
assert run.facts["step"] in (0, 2, 4), run.facts
assert load_run(run.folder).generate("a", seed=1) == run.generate("a", seed=1, sampling=Sampling())
again = train(resume=True, out=run.folder, steps=6)
assert again.folder == run.folder
for wrong in ({"stepz": 3}, {"steps": "x"}, {"eval_only": True, "out": run.folder}):
    try:
        train(**wrong)
    except Exception as caught:
        print(type(caught).__name__, caught)
    else:
        raise AssertionError(wrong)
"""


def test_training_from_python_in_a_thread_and_any_folder(cli, tmp_path):
    (tmp_path / "use.py").write_text(THREAD)
    said = ok(cli(str(tmp_path / "use.py"))).out.splitlines()[-3:]
    assert said[0] == "TypeError train() has no setting 'stepz'. Did you mean 'steps'?"
    assert said[1].startswith("UserError train() has steps 'x'") and said[2].startswith("UserError train() trains")


def test_every_setting_can_be_written_as_words():
    words = library._words({"n_layer": 2, "bias": False, "counts": True, "data": ["a.txt", "--b"], "lr": 1e-3})
    assert words == ["--n-layer=2", "--no-bias", "--counts", "--data", "a.txt", "--b", "--lr=0.001"]
