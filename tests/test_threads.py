"""`--threads`: what torch computes on, what a run keeps of it, and what a busy machine is told."""

import json
import os
from pathlib import Path

import pytest
import torch

from engine.training.trainer import Trainer
from tests.conftest import NAMES
from tests.helpers import LINES, at_call, ok, quick, warnings_of

pytestmark = pytest.mark.usefixtures("names")


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch):
    """Whatever else runs beside these tests."""
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0), raising=False)


@pytest.fixture(autouse=True)
def no_real_threads(monkeypatch):
    """torch's number of threads as a number alone: commands are forked from a process that may have a thread pool, and
    real threads of such a child wait for ever."""
    number = [1]
    monkeypatch.setattr(torch, "get_num_threads", lambda: number[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda wanted: number.__setitem__(0, wanted))


def test_a_fresh_process_computes_on_them(process, tmp_path):
    words = quick("gru", data="names.txt", kind="lines", threads=2)
    training = process("train.py", *words, env={"OMP_NUM_THREADS": "1"})
    _, err = training.communicate(timeout=300)
    assert training.returncode == 0, err
    assert json.loads((tmp_path / "run/config.json").read_text())["config"]["threads"] == 2


OTHER = "this run computed on {} threads and goes on with {}: its last bits may differ"


def used(cli, script: str, *words) -> tuple[int, list[str]]:
    """How many threads a training computes on, and its warnings."""
    with at_call(Trainer, "train", 1, lambda: Path("threads").write_text(str(torch.get_num_threads()))):
        done = ok(cli(script, *words))
    return int(Path("threads").read_text()), warnings_of(done)


def stored() -> int:
    return json.load(open("run/config.json"))["config"]["threads"]


def test_a_run_keeps_its_threads_and_another_number_is_a_warning(cli):
    assert used(cli, "train.py", *quick(**LINES)) == (torch.get_num_threads(), []) and stored() == 1
    assert used(cli, "train.py", *quick(**LINES), "--threads", 2, "--overwrite") == (2, []) and stored() == 2
    resume = ("train.py", "--resume", "--out", "run")
    assert used(cli, *resume) == (2, [])  # though this process would take one
    assert used(cli, *resume, "--threads", 3) == (3, ["warning: " + OTHER.format(2, 3)]) and stored() == 3
    assert used(cli, *resume, "--threads", 3) == (3, [])


def test_a_run_of_before_goes_on_without_a_word(cli):
    ok(cli("train.py", *quick(**LINES)))
    facts = json.load(open("run/config.json"))
    del facts["config"]["threads"]
    Path("run/config.json").write_text(json.dumps(facts))
    assert used(cli, "train.py", "--resume", "--out", "run", "--threads", 2) == (2, []) and stored() == 2


def test_the_other_commands_have_them_too(cli):
    rows = "".join(f"{label}\t{word} {name}\n" for name in NAMES for label, word in (("a", "see"), ("b", "win")))
    Path("rows.tsv").write_text(rows)
    said = [json.dumps({"prompt": f"Greet {name}", "completion": f"hi {name}"}) for name in NAMES]
    Path("said.jsonl").write_text("\n".join(said))
    for command, data in (("classify", "rows.tsv"), ("instruct", "said.jsonl")):
        sizes = ("--n-embd", 8, "--steps", 2, "--batch-size", 4, "--out", "run")
        new = used(cli, f"-m finetune.{command}", "--data", data, *sizes, "--overwrite", "--threads", 2)
        assert new[0] == stored() == 2
        again = used(cli, f"-m finetune.{command}", "--resume", "--out", "run", "--threads", 3)
        assert again[0] == stored() == 3 and "warning: " + OTHER.format(2, 3) in again[1]
        ok(cli(f"-m finetune.{command}", "--eval-only", "--out", "run", "--threads", 2))
    ok(cli("train.py", *quick(**LINES), "--overwrite"))
    ok(cli("train.py", "--eval-only", "--out", "run", "--threads", 2))


def test_a_busy_machine_is_told_about_once_where_threads_would_wait(cli, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (12.0, 0, 0))
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    (told,) = warnings_of(ok(cli("train.py", *quick(**LINES))))
    assert "busy (load average 12.0, 16 processors)" in told and "--threads 1" in told
    assert "--threads 1" in ok(cli("-m engine.doctor")).out
    assert not warnings_of(ok(cli("train.py", *quick(**LINES), "--overwrite", "--threads", 2)))  # chosen already
    monkeypatch.setattr(os, "getloadavg", lambda: (11.9, 0, 0))
    assert not warnings_of(ok(cli("train.py", *quick(**LINES), "--overwrite")))
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 0, 0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert not warnings_of(ok(cli("train.py", *quick(**LINES), "--overwrite")))  # nothing waits for one thread
