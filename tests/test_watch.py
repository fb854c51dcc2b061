"""Curves while training: what a follower of metrics.jsonl says of files that change in every way, and --watch."""

import json
import os
import shutil
import socket
import urllib.error
import urllib.request
from itertools import count
from pathlib import Path

import pytest

from data.locks import hold, is_held
from engine.training.trainer import Trainer
from engine.watch import curves
from engine.watch.curves import Follower
from tests.conftest import NAMES
from tests.helpers import LINES, at_call, ok, quick, refused, trained


@pytest.fixture
def folder(cli, names, monkeypatch) -> Path:
    """`runs` with one run in it, followed without waiting between two looks for new ones."""
    monkeypatch.setattr(curves, "SCAN_EVERY", 0)
    run = trained(cli, "mlp", **LINES)
    Path("runs").mkdir()
    shutil.move(run, "runs/a")
    return Path("runs").resolve()


def line(step: int) -> str:
    return json.dumps({"step": step, "train_loss": 2.0, "val_loss": 2.5, "secret": 1})


def told(follower: Follower) -> dict[str, tuple[int, list[int]]]:
    """Of each run that has news how many lines stay, and the steps of the new ones."""
    return {run["name"]: (run["kept"], [each["step"] for each in run["lines"]]) for run in follower.news()["runs"]}


def test_the_whole_is_told_first_and_then_what_is_new(folder):
    follower, metrics = Follower({}, [folder]), folder / "a/metrics.jsonl"
    news = follower.news()
    (run,) = news["runs"]
    assert (run["family"], run["data"], run["steps"], run["is_training"], news["gone"]) == (
        "mlp",
        "names",
        6,
        False,
        [],
    )
    assert [each["step"] for each in run["lines"]] == [0, 3, 6] and run["lines"][0].keys() == {
        "step", "train_loss", "val_loss", "tokens", "seconds",
    }  # fmt: skip
    assert told(follower) == {}
    with metrics.open("a") as file:
        file.write(line(9) + "\n" + line(12)[:7])
    assert told(follower) == {"a": (3, [9])}
    with metrics.open("a") as file:
        file.write(line(12)[7:] + "\n" + "[]\nnan\n" + line(-1) + "\n" + line(15) + "\n")
    assert told(follower) == {"a": (4, [12, 15])}  # what is no line of metrics is left out


def test_a_file_that_is_cut_back_replaced_or_removed_is_told_anew(folder):
    follower, metrics = Follower({}, [folder]), folder / "a/metrics.jsonl"
    follower.news()
    before = metrics.read_text().splitlines(keepends=True)
    os.truncate(metrics, len("".join(before[:2])))
    assert told(follower) == {"a": (0, [0, 3])}
    metrics.write_text("".join(line(n) + "\n" for n in range(50)))  # in its place, and longer
    assert told(follower) == {"a": (0, [*range(50)])}
    metrics.unlink()
    assert told(follower) == {"a": (0, [])}
    metrics.write_text(line(1) + "\n")
    assert told(follower) == {"a": (0, [1])}


def test_a_long_file_comes_in_parts(folder, monkeypatch):
    monkeypatch.setattr(curves, "MOST_BYTES", 200)
    metrics = folder / "a/metrics.jsonl"
    metrics.write_text("".join(line(n) + "\n" for n in range(20)) + "x" * 1000 + "\n" + line(20) + "\n")
    follower, steps = Follower({}, [folder]), []
    for _ in range(20):
        for kept, new in told(follower).values():
            assert kept == len(steps)
            steps += new
    assert steps == [*range(21)]


def test_runs_come_and_go(folder):
    follower = Follower({"served": folder / "a", "later": folder / "b"}, [folder, folder.parent / "nowhere"])
    assert [*told(follower)] == ["served"]  # once, by its name
    shutil.copytree(folder / "a", folder / "b")
    shutil.copytree(folder / "a", folder / "c")
    (folder / "c/metrics.jsonl").unlink()
    (folder / "d").mkdir()
    assert told(follower) == {"later": (0, [0, 3, 6]), "c": (0, [])}
    shutil.rmtree(folder / "a")
    (folder / "c/config.json").write_text("{")
    assert follower.news() == {"runs": [], "gone": ["served"]}
    assert [*told(Follower({}, [folder]))] == ["b"]  # one that cannot be read is none


def test_nothing_outside_is_read(folder, tmp_path):
    (tmp_path / "secret").write_text(line(7) + "\n")
    metrics = folder / "a/metrics.jsonl"
    for change in (lambda: metrics.symlink_to(tmp_path / "secret"), lambda: os.mkfifo(metrics), metrics.mkdir):
        metrics.rmdir() if metrics.is_dir() else metrics.unlink()
        change()
        assert told(Follower({}, [folder])) == {"a": (0, [])}
    (folder / "b").symlink_to(folder / "a")
    assert [*told(Follower({}, [folder]))] == ["a"]


def test_who_trains_is_seen_by_the_lock(folder):
    follower, lock = Follower({}, [folder]), folder / "a/lock"
    training = lambda: [run["is_training"] for run in follower.news()["runs"]]  # noqa: E731
    assert training() == [False]
    with hold(lock, "it"):
        assert training() == [True] and training() == []
    assert training() == [False]
    for pid in count(4_000_000):  # of a process that was killed
        lock.write_text(json.dumps({"pid": pid, "host": os.uname().nodename, "since": ""}))
        if not is_held(lock):
            break
    assert training() == []
    lock.write_text(json.dumps({"pid": 1, "host": "another", "since": ""}))
    assert training() == [True]


def get(url: str) -> tuple[int, str, str]:
    """Status, policy and text of an answer."""
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, answer.headers["Content-Security-Policy"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Security-Policy"], error.read().decode()


def test_watch_shows_a_training_and_changes_nothing_in_it(cli, names):
    """Looked at in the middle: the page, and the losses so far. What is trained is what is trained without it."""
    plain = trained(cli, "mlp", **LINES)
    kept = {name: (plain / name).read_bytes() for name in ("last/model.safetensors", "best/model.safetensors")}
    shutil.move(plain, "plain")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"

    def look() -> None:
        with urllib.request.urlopen(f"{url}/v1/curves", timeout=30) as stream:
            news = json.loads(stream.readline()[6:])
        runs = {run["name"]: (run["is_training"], len(run["lines"])) for run in news["runs"]}
        others = [get(url + path) for path in ("/", "/health", "/../../etc/passwd")]
        Path("seen.json").write_text(json.dumps([runs, *others]))

    with at_call(Trainer, "save_last", 3, look):
        result = ok(cli("train.py", *quick("mlp", **LINES, watch=port)))
    runs, page, health, other = json.loads(Path("seen.json").read_text())
    assert result.out.startswith(f"curves at {url}\n") and runs == {"plain": [False, 3], "run": [True, 3]}
    assert page[0] == 200 and page[2].startswith("<!doctype html>") and "script-src 'sha256-" in page[1]
    assert json.loads(health[2]) == {"status": "ok", "models": 0, "key": False} and other[0] == 404
    assert {name: Path("run", name).read_bytes() for name in kept} == kept
    assert "watch" not in Path("run/config.json").read_text()
    with pytest.raises(OSError):
        get(url)
    ok(cli("train.py", "--resume", "--out", "run", "--steps", 8, "--watch", 0))


def test_a_port_that_cannot_be_had_is_said_before_anything_begins(cli, names):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = cli("train.py", *quick("mlp", **LINES, watch=port))
    refused(result, f"--watch {port}: cannot listen there", "another port, or 0 for any")
    assert not Path("run").exists()


def test_watch_goes_with_a_training(cli, names):
    run = trained(cli, "mlp", **LINES)
    refused(
        cli("train.py", "--eval-only", "--out", run, "--watch", 0), "--watch shows a training, and --eval-only is none"
    )
    refused(cli("train.py", "--model", "ngram", "--watch", 0), "counts once and trains nothing")
    refused(cli("train.py", "--watch", 70000), "it has to be from 0 to 65535")


def test_of_several_processes_one_shows_it_and_fine_tuning_has_it_too(ranks, cli, names):
    said = [process.wait() for process in ranks(2, "train.py", *quick("mlp", **LINES, watch=0))]
    assert [each.code for each in said] == [0, 0], said
    assert "".join(each.out for each in said).count("curves at http://") == 1
    Path("labels.tsv").write_text("".join(f"{len(name) % 2}\t{name}\n" for name in NAMES))
    words = ["--data", "labels.tsv", "--model", "bigram", "--steps", 2, "--ngrams", 0]
    assert ok(cli("-m finetune.classify", *words, "--watch", 0)).out.startswith("curves at http://")
    run = "runs/classify-bigram-labels-1"
    refused(cli("-m finetune.classify", "--out", run, "--predict", "a", "--watch", 0), "--predict is none")
