"""kill -9 at any moment: what was saved stays usable, and resuming gives the same bits as never having been killed."""

import itertools
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from bench.chaos import faults
from bench.chaos.faults import Trap
from bench.chaos.processes import Command
from engine import load_run
from engine.run import checkpoint
from engine.training.metrics import Metrics
from tests.conftest import _child
from tests.helpers import INT, KILL, TERM, at_call, left, ok, quick, refused, trained
from tests.matrices import matrix

FLAGS = {"data": "names.txt", "kind": "lines", "dropout": 0.2, "steps": 2, "eval_interval": 1}
RESUME = ("train.py", "--resume", "--out", "run")
CHANGES = ("rename", "replace", "fsync", "mkdir", "rmdir", "unlink")  # of the disk, as functions of os
KILLED = -signal.SIGKILL


@pytest.fixture
def straight(cli, names):
    """What the run leaves that nobody killed."""
    run = trained(cli, **FLAGS)
    kept = left(run)
    shutil.rmtree(run)
    return kept


def go_on(cli, straight) -> None:
    """Whatever was saved can be sampled from; resuming (or training over what is not yet a run) ends as ever."""
    run = Path("run")
    for name in ("best", "last"):
        if any(run.glob(f"{name}*/manifest.json")):
            assert load_run(run, name).generate("a", seed=1)[0].startswith("a")
    again = RESUME if (run / "config.json").exists() else ("train.py", *quick(**FLAGS), "--overwrite")
    ok(cli(*again))
    assert left(run) == straight
    assert not [*run.glob("*.new"), *run.glob("*.old")]
    shutil.rmtree(run)


@pytest.mark.parametrize("every", matrix([1, 5], [5]))
@pytest.mark.parametrize("name", matrix(CHANGES, CHANGES[::2]))
def test_killed_before_changes_of_the_disk(cli, straight, name, every):
    for nth in itertools.count(1, 4 * every if name == "fsync" else every):
        with at_call(os, name, nth, KILL):
            code = cli("train.py", *quick(**FLAGS)).code
        if code != KILLED:
            break
        go_on(cli, straight)
    assert code == 0 and nth > every


STARTS = [("fsync", 1), ("replace", 1), ("fsync", 2), ("replace", 2)]


@pytest.mark.parametrize(
    "stop, code", [(KILL, KILLED), (TERM, -signal.SIGTERM), (INT, 130)], ids=["kill", "term", "int"]
)
@pytest.mark.parametrize("moment", matrix(STARTS, [("fsync", 1), ("replace", 2)]), ids=str)
def test_a_start_that_ends_before_there_is_a_run_is_no_obstacle(cli, straight, moment, stop, code):
    """While tokenizer.json or config.json is written: the same command starts once more."""
    with at_call(os, *moment, stop):
        assert cli("train.py", *quick(**FLAGS)).code == code
    assert not Path("run/config.json").exists()
    ok(cli("train.py", *quick(**FLAGS)))
    assert left(Path("run")) == straight


def test_a_folder_of_somebody_elses_tokenizer_is_not_taken(cli, straight):
    Path("run").mkdir()
    Path("run/tokenizer.json").write_text("mine")
    refused(cli("train.py", *quick(**FLAGS)), "run already exists")
    assert Path("run/tokenizer.json").read_text() == "mine"


@pytest.mark.parametrize("name", matrix(CHANGES, CHANGES[::2]))
def test_killed_while_resuming(cli, straight, name):
    with at_call(os, "rename", 4, KILL):  # between the two renames of the second save of best/
        assert cli("train.py", *quick(**FLAGS)).code == KILLED
    for nth in (1, 2, 5):
        with at_call(os, name, nth, KILL):
            cli(*RESUME)
    go_on(cli, straight)


@pytest.mark.parametrize("folder, nth", [("best.new", 4), ("last.new", 5)])
def test_killed_before_the_manifest_of_a_first_save_is_written(cli, tmp_path, straight, folder, nth):
    """What it is to be written into has been made by then."""
    trap = Trap(tmp_path / "run" / folder, ("write",), nth, faults.send(signal.SIGKILL))
    ended = Command(tmp_path, "train.py", *quick(**FLAGS), prepare=trap.set).end()
    assert ended.code == KILLED and any(tmp_path.glob(f"run/{folder}/manifest.json*"))
    go_on(cli, straight)


def test_of_a_half_replaced_checkpoint_the_whole_one_is_read(cli, straight):
    """First the new one, where it is complete, else the old one."""
    run = trained(cli, **FLAGS)
    whole = load_run(run).generate(num=5, seed=1)
    (run / "best").rename(run / "best.new")
    (run / "best.old").mkdir()
    assert load_run(run).generate(num=5, seed=1) == whole
    (run / "best.old").rmdir()
    (run / "best.new").rename(run / "best.old")
    (run / "best.new").mkdir()
    assert load_run(run).generate(num=5, seed=1) == whole
    go_on(cli, straight)


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_reading_while_it_is_written(cli, straight, nth):
    """A reader in the midst of a checkpoint that a training replaces gets the old one or the new one, whole."""
    run = trained(cli, **FLAGS)
    tensors, facts = checkpoint.load(run / "best", ("model",))
    changed = {name: value + 1 for name, value in tensors["model"].items()}
    replaced = []

    def replace() -> None:
        replaced.append(True)
        checkpoint.save(run / "best", {"model": changed}, facts | {"step": 99})

    with at_call(Path, "read_bytes", nth, replace):
        found, about = checkpoint.load(run / "best", ("model",))
    expected = changed if about["step"] == 99 else tensors["model"]
    assert replaced and all(found["model"][name].equal(value) for name, value in expected.items())


def test_a_line_of_metrics_is_on_the_disk_before_the_checkpoint_that_counts_on_it(tmp_path, monkeypatch):
    synced, plain = [], os.fsync

    def fsync(number: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{number}"), os.fstat(number).st_size))
        plain(number)

    monkeypatch.setattr(os, "fsync", fsync)
    Metrics(tmp_path).write({"step": 1})
    assert synced == [(str(tmp_path / "metrics.jsonl"), len('{"step": 1}\n'))]


@pytest.mark.parametrize("times", matrix([4, 20], [4]))
def test_killed_at_random_moments(cli, tmp_path, straight, times):
    started = time.monotonic()
    ok(cli("train.py", *quick(**FLAGS)))
    whole = time.monotonic() - started
    go_on(cli, straight)
    streams = [tmp_path / name for name in ("in", "out", "err")]
    streams[0].touch()
    moments = random.Random(1)
    for _ in range(times):
        pid = os.fork()
        if not pid:
            _child("train.py", [str(word) for word in quick(**FLAGS)], streams, {})
        time.sleep(moments.uniform(0, whole))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        go_on(cli, straight)
