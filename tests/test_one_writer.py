"""A run has one writer: whoever comes second is told who holds it, and changes nothing."""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from data import locks, prepare
from data.build import Builder
from data.errors import UserError
from data.locks import hold
from engine.run import folder
from engine.training.trainer import Trainer
from tests.conftest import _child
from tests.helpers import LINES, STREAM, at_call, left, ok, quick, refused, trained, tree, warnings_of

pytestmark = pytest.mark.usefixtures("names", "text")  # names.txt and text.txt stand where the commands run


@contextlib.contextmanager
def another_process(tmp_path: Path, *command):
    """Inside, the command runs in a process of its own, which stands still in its first evaluation."""
    going, streams = tmp_path / "go on", [tmp_path / name for name in ("in", "out", "err")]
    streams[0].touch()

    def wait() -> None:
        (tmp_path / "stands").touch()
        while not going.exists():
            time.sleep(0.01)

    with at_call(Trainer, "_evaluation_is_due", 1, wait):
        pid = os.fork()
        if not pid:
            _child(command[0], [str(word) for word in command[1:]], streams, {})
    while not (tmp_path / "stands").exists():
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), streams[2].read_text()
        time.sleep(0.01)
    yield pid
    going.touch()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, streams[2].read_text()


SECOND = [
    ("train.py", "--resume", "--out", "run"),
    ("train.py", *quick(**LINES, overwrite=True)),
    ("train.py", *quick("lstm", **STREAM, overwrite=True)),
]


@pytest.mark.parametrize("second", SECOND, ids=["resume", "overwrite", "overwrite by another"])
@pytest.mark.parametrize("is_new", [True, False], ids=["start", "resume"])
def test_the_second_writer_is_told_who_holds_the_run(cli, tmp_path, second, is_new):
    first = ("train.py", *quick(**LINES), *(["--overwrite"] if is_new else ["--resume"]))
    trained(cli, **LINES)
    if not is_new:
        first = ("train.py", "--resume", "--out", "run", "--steps", 9)
    with another_process(tmp_path, *first) as pid:
        before = tree(tmp_path / "run")
        refused(cli(*second), f"the run run is being written by process {pid} on {socket.gethostname()} since 20")
        assert tree(tmp_path / "run") == before
    assert not (tmp_path / "run/lock").exists()


def test_readers_are_free_while_a_training_runs(cli, tmp_path):
    trained(cli, **LINES)
    with another_process(tmp_path, "train.py", "--resume", "--out", "run", "--steps", 9):
        ok(cli("sample.py", "run", "--num", 1))
        ok(cli("sample.py", "run", "--score", "emma"))
        ok(cli("train.py", "--eval-only", "--out", "run"))


def test_a_start_into_a_run_that_another_process_is_starting(cli, tmp_path):
    with another_process(tmp_path, "train.py", *quick(**LINES)):
        refused(cli("train.py", *quick(**LINES)), "run already exists")


def test_two_starts_at_one_instant(cli, tmp_path):
    """The second one takes the folder between the first one's look at it and its lock."""

    def other() -> None:
        assert os.waitstatus_to_exitcode(os.waitpid(pid_of(cli, "train.py", *quick(**LINES)), 0)[1]) == 0

    with at_call(folder, "writing", 1, other):
        refused(cli("train.py", *quick(**LINES)), "run already exists")
    assert json.loads((tmp_path / "run/summary.json").read_text())["steps"] == 6


def pid_of(cli, *command) -> int:
    pid = os.fork()
    if not pid:
        folder.writing = writing
        _child(command[0], [str(word) for word in command[1:]], [Path(os.devnull)] * 3, {})
    return pid


writing = folder.writing


def test_starts_without_out_get_folders_of_their_own(tmp_path, cli):
    words = [str(word) for word in quick(**LINES)]
    at = words.index("--out")
    pids = [pid_of(cli, "train.py", *words[:at], *words[at + 2 :]) for _ in range(3)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0, 0]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [f"mlp-names-{n}" for n in (1, 2, 3)]


@pytest.mark.parametrize("program", ["classify", "instruct"])
def test_fine_tuning_holds_its_run_too(cli, tmp_path, program):
    if program == "classify":
        (tmp_path / "x.tsv").write_text("".join(f"{'ab'[n % 2]}\tword {n % 2} {n}\n" for n in range(40)))
        words = ["--data", "x.tsv", "--model", "gru", "--n-embd", 8, "--n-hidden", 8]
    else:
        (tmp_path / "x.jsonl").write_text(
            "".join(json.dumps({"prompt": f"{n}", "completion": "b"}) + "\n" for n in range(40))
        )
        words = ["--data", "x.jsonl", "--tokenizer", "byte", "--n-layer", 1, "--n-head", 1, "--n-embd", 8]
    command = (f"-m finetune.{program}", *words, "--steps", 2, "--out", "run")
    with another_process(tmp_path, *command) as pid:
        for second in ("--overwrite", "--resume"):
            again = [*command, second] if second == "--overwrite" else [command[0], "--out", "run", second]
            refused(cli(*again), f"process {pid}")


def test_a_lock_ends_with_its_holder(cli, tmp_path):
    """Whatever a killed process wrote into the file."""
    straight = left(trained(cli, **LINES))
    (tmp_path / "run/lock").write_text('{"pid": 1, "host": "here", "since": "now"}')
    ok(cli("train.py", "--resume", "--out", "run"))
    assert left(tmp_path / "run") == straight and not (tmp_path / "run/lock").exists()


def test_a_file_system_without_locks_costs_one_warning(cli, monkeypatch):
    def no_locks(handle, how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (told,) = [line for line in warnings_of(ok(cli("train.py", *quick(**LINES)))) if "without locks" in line]
    assert "run lies on a file system without locks" in told


def test_the_lock_of_windows(tmp_path, monkeypatch):
    """`msvcrt.locking`, whose error is EACCES; an open file cannot be removed there."""
    held = set()

    class Msvcrt:
        LK_NBLCK = 2

        @staticmethod
        def locking(handle: int, how: int, size: int) -> None:
            assert os.lseek(handle, 0, os.SEEK_CUR) > 1000  # what the file says must stay readable
            inode = os.fstat(handle).st_ino
            if inode in held:
                raise PermissionError(13, "Permission denied")
            held.add(inode)

    monkeypatch.setitem(__import__("sys").modules, "fcntl", None)
    monkeypatch.setitem(__import__("sys").modules, "msvcrt", Msvcrt)
    with hold(tmp_path / "lock", "the run x"):
        with pytest.raises(UserError, match=f"written by process {os.getpid()}"), hold(tmp_path / "lock", "the run x"):
            pass
        assert (tmp_path / "lock").exists()


def test_many_threads_hold_it_one_at_a_time(tmp_path, monkeypatch):
    """Also where one opens the file just before its holder removes it."""
    monkeypatch.setattr(locks, "PAUSE", 0.001)
    inside, most, entered = 0, 0, 0

    def work() -> None:
        nonlocal inside, most, entered
        for _ in range(20):
            with hold(tmp_path / "lock", "it", wait=True):
                inside, entered = inside + 1, entered + 1
                most = max(most, inside)
                time.sleep(0.0005)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, entered) == (1, 120) and not (tmp_path / "lock").exists()


def test_a_text_that_another_process_prepares_is_waited_for(cli, tmp_path, monkeypatch):
    (tmp_path / "new.txt").write_text("never prepared before, and by two\n" * 50)
    how = {"kind": "stream", "separator": None, "text_column": None, "tokenizer": "char", "encoding": "utf-8"}
    key = prepare.key_of("new.txt", val_data=None, vocabulary=None, **how)
    lock = Path(os.environ["CHARLM_CACHE"], "prepared", f"new-{key}.lock")
    lock.parent.mkdir(exist_ok=True)

    def other() -> None:
        with hold(lock, "it"):
            (tmp_path / "holds").touch()
            time.sleep(0.5)
            (tmp_path / "releases").touch()

    def note() -> None:
        assert (tmp_path / "releases").exists()

    thread = threading.Thread(target=other)
    thread.start()
    while not (tmp_path / "holds").exists():
        time.sleep(0.01)
    with at_call(Builder, "write", 1, note):
        waited = ok(cli("-m data.prepare", "--data", "new.txt"))
    thread.join()
    assert f"is being written by process {os.getpid()}" in waited.err and "waiting" in waited.err
