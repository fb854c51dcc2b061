"""--go-on: the same command line again and again, through kills, ends with the bits of a run that nobody stopped."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.loaders import Loader
from engine import going_on
from engine import train as train_from_python
from engine.config import presets
from engine.config.flags import parse
from engine.distributed.ranks import Ranks
from engine.pretraining import Pretraining
from engine.run import checkpoint, report, results
from engine.run.folder import read_facts
from engine.training.trainer import Trainer
from finetune.classify import baselines
from tests.conftest import NAMES, ROOT
from tests.helpers import INT, KILL, LINES, STREAM, TERM, at_call, facts, left, metrics, ok, quick, refused, tree
from tests.matrices import matrix

KILLED = -signal.SIGKILL
DROPS = LINES | {"dropout": 0.2}
CHANGES = ("rename", "replace", "fsync", "mkdir", "unlink")  # of the disk, as functions of os
TUNED = ["--steps", 6, "--eval-interval", 3, "--batch-size", 4, "--warmup", 2, "--out", "run", "--go-on"]
GRU = ["--model", "gru", "--n-embd", 8, "--n-hidden", 12]
TRANSFORMER = ["--model", "transformer", "--n-layer", 1, "--n-head", 2, "--n-embd", 16]


@pytest.fixture(autouse=True)
def texts(cli, names, text, tmp_path):
    """What the runs are trained on."""
    (tmp_path / "labels.tsv").write_text("".join(f"{'long' if len(name) > 5 else 'short'}\t{name}\n" for name in NAMES))
    for file, answers in (("chat.jsonl", ("completion",)), ("pairs.jsonl", ("chosen", "rejected"))):
        lines = [{"prompt": f"Greet.\n{name}"} | {key: f"{key[0]} {name}" for key in answers} for name in NAMES]
        (tmp_path / file).write_text("\n".join(map(json.dumps, lines)))


def line(model: str = "mlp", **flags) -> list:
    return ["train.py", *quick(model, **flags), "--go-on"]


def parent(cli, model: str = "gru") -> None:
    """A run `parent` to start from."""
    ok(cli("train.py", *quick(model, **LINES | {"out": "parent", "context": 64})))


def chat_parent(cli) -> None:
    ok(cli("-m finetune.instruct", "--data", "chat.jsonl", *TRANSFORMER, *TUNED[:-3], "--out", "parent"))


RUNS = {
    "lines": (None, line(**DROPS)),
    "carried": (None, line("lstm", **STREAM, carry_state=True, mix_ngram=3)),
    "counts": (None, ["train.py", "--model", "ngram", "--data", "names.txt", "--out", "run", "--go-on"]),
    "init": (parent, line("gru", **DROPS, init="parent", extend_vocabulary=True)),
    "classify": (None, ["-m finetune.classify", "--data", "labels.tsv", *GRU, *TUNED]),
    "head": (parent, ["-m finetune.classify", "--data", "labels.tsv", "--init", "parent", "--train", "head", *TUNED]),
    "instruct": (None, ["-m finetune.instruct", "--data", "chat.jsonl", *TRANSFORMER, *TUNED]),
    "lora": (
        chat_parent,
        ["-m finetune.instruct", "--data", "chat.jsonl", "--init", "parent", "--train", "lora", *TUNED],
    ),
    "dpo": (chat_parent, ["-m finetune.instruct", "--data", "pairs.jsonl", "--init", "parent", "--dpo", *TUNED]),
}


def left_by(run: Path) -> dict:
    """What has to be the same bits, the counts of a model that counts included."""
    return (
        left(run)
        if (run / "last/trainer.safetensors").exists()
        else {"w": (run / "last/model.safetensors").read_bytes()}
    )


@pytest.mark.parametrize("case", matrix(RUNS, ["lines", "dpo"]))
def test_killed_at_random_moments_and_begun_by_the_same_line(cli, case):
    begin, words = RUNS[case]
    if begin:
        begin(cli)
    ok(cli(*words))
    straight, ended = left_by(Path("run")), sorted(tree(Path("run")))
    shutil.rmtree("run")
    rng, kills = random.Random(case), 0
    while kills < 6:
        with at_call(os, rng.choice(CHANGES), rng.choice((1, 2, 3, 5, 8)), KILL):
            result = cli(*words)
        if result.code == KILLED:
            kills += 1
            continue
        ok(result)
        assert left_by(Path("run")) == straight and sorted(tree(Path("run"))) == ended
        shutil.rmtree("run")
    ok(cli(*words))
    assert left_by(Path("run")) == straight and sorted(tree(Path("run"))) == ended


@pytest.mark.parametrize("case", matrix(RUNS, ["lines", "counts", "classify"]))
def test_a_complete_run_is_said_to_be_and_left_alone(cli, monkeypatch, case):
    begin, words = RUNS[case]
    if begin:
        begin(cli)
    ok(cli(*words))
    before, times = tree(Path("run")), {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}
    for owner, name in ((Trainer, "__init__"), (report, "finish"), (results, "write_summary")):
        monkeypatch.setattr(owner, name, lambda *args, **how: pytest.fail("nothing is to be done"))
    again = ok(cli(*words))
    assert again.out.count("\n") == 1 and again.out.startswith("run is complete: ") and not again.err
    assert tree(Path("run")) == before
    assert {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")} == times
    if case == "classify":
        refused(cli(*words, "--predict", "emma"), "--predict and --go-on exclude each other")


@pytest.mark.parametrize("stop, code", [(TERM, 143), (INT, 130)])
def test_a_signal_saves_and_the_same_line_goes_on(cli, stop, code):
    ok(cli(*line(**DROPS)))
    straight = left(Path("run"))
    shutil.rmtree("run")
    with at_call(Loader, "deal", 2, stop):
        assert cli(*line(**DROPS)).code == code
    assert facts(Path("run"))["step"] == 2
    ok(cli(*line(**DROPS)))
    assert left(Path("run")) == straight


REPORTS = {
    "lines": [(report, "samples"), (results, "draw_loss"), (results, "write_summary")],
    "classify": [(results, "draw_loss"), (baselines, "measure_baselines")],
    "instruct": [(results, "draw_loss"), (results, "write_summary")],
}


@pytest.mark.parametrize("case", matrix(REPORTS, ["lines", "classify"]))
def test_killed_in_the_report(cli, case):
    """What is missing is made."""
    _, words = RUNS[case]
    ok(cli(*words))
    straight, ended = left(Path("run")), sorted(tree(Path("run")))
    for owner, name in REPORTS[case]:
        shutil.rmtree("run")
        with at_call(owner, name, 1, KILL):
            assert cli(*words).code == KILLED
        assert "complete" not in ok(cli(*words)).out
        assert left(Path("run")) == straight and sorted(tree(Path("run"))) == ended
        assert (case != "classify") or json.loads(Path("run/summary.json").read_text())["baselines"]


@pytest.mark.parametrize("case", matrix(["init", "head", "lora", "dpo"], ["init"]))
@pytest.mark.parametrize("nth", [1, 2])
def test_a_run_with_init_that_was_stopped_before_its_first_save_is_begun_again(cli, case, nth):
    """nth 2: where `best/` of step 0 was saved, or what is frozen."""
    begin, words = RUNS[case]
    begin(cli)
    ok(cli(*words))
    straight = left(Path("run"))
    shutil.rmtree("run")
    with at_call(checkpoint, "save", nth, KILL):
        assert cli(*words).code == KILLED
    first = read_facts(Path("run"))["id"]
    refused(cli(*words[:-1], "--overwrite", "--resume"), "exclude each other")
    refused(cli(*words, "--batch-size", 3), "--go-on cannot change --batch-size 3 (the run has 4)")
    ok(cli(*words))
    assert left(Path("run")) == straight and read_facts(Path("run"))["id"] != first


def test_whose_checkpoints_were_taken_away_is_not_begun_again(cli):
    parent(cli)
    words = line("gru", **LINES, init="parent")
    ok(cli(*words))
    for which in ("best", "last"):
        shutil.rmtree(Path("run") / which)
    before = tree(Path("run"))
    assert cli(*words).code == 2
    assert tree(Path("run")) == before


def test_the_parent_is_needed_no_more(cli):
    parent(cli)
    words = line("gru", **DROPS, init="parent", steps=20)
    with at_call(Loader, "deal", 5, TERM):
        assert cli(*words).code == 143
    shutil.rmtree("parent")
    ok(cli(*words))
    assert "is complete" in ok(cli(*words)).out
    shutil.rmtree("run")
    refused(cli(*words), "no run directory parent")


def test_more_steps_and_other_intervals_go_on(cli):
    ok(cli(*line(**DROPS, schedule="constant")))
    more = line(**DROPS | {"steps": 9, "eval_interval": 4}, schedule="constant")
    ok(cli(*more))
    assert metrics()[-1]["step"] == 9
    assert "run is complete: 9 steps" in ok(cli(*more)).out
    refused(cli(*line(**DROPS, schedule="constant")), "--steps 6 is less than the 9 that run has done already")
    assert "run is complete: 9 steps" in ok(cli("train.py", "--go-on", "--out", "run")).out


def test_minutes_count_over_all(cli):
    endless = DROPS | {"steps": 10**6, "eval_interval": 10**6}
    words = line(**endless, minutes=0.002)
    with at_call(results, "write_summary", 1, KILL):
        assert cli(*words).code == KILLED
    used, step = facts(Path("run"))["progress"]["elapsed"], facts(Path("run"))["step"]
    assert used >= 0.12
    ok(cli(*words))
    assert facts(Path("run"))["progress"]["elapsed"] == used and facts(Path("run"))["step"] == step
    assert "is complete" in ok(cli(*words)).out
    refused(cli(*line(**endless, minutes=0.001)), "--minutes 0.001, but run has used")
    ok(cli(*line(**endless, minutes=used / 60 + 0.002)))
    assert facts(Path("run"))["step"] > step


def test_patience_that_is_used_up_is_complete(cli):
    words = line(**LINES | {"steps": 50, "eval_interval": 1, "lr": 50}, patience=2, grad_clip=0)
    ok(cli(*words))
    assert facts(Path("run"))["progress"]["worse"] == 2 and facts(Path("run"))["step"] < 50
    assert "is complete" in ok(cli(*words)).out


CONTRADICTIONS = {
    "a size": (["--n-embd", 9], "--go-on cannot change --n-embd 9 (the run has 8)"),
    "the seed": (["--seed", 2], "--go-on cannot change --seed 2 (the run has 1337)"),
    "the family": (["--model", "cnn", "--order=4"], "--order means nothing to --model cnn"),
    "the start": (["--init", "parent"], "--go-on cannot change --init parent (the run has None)"),
    "the text": (["--data", "text.txt"], "is not the one the run began with"),
    "a preset": (["--preset", "makemore"], "--lr 0.0005 of --preset makemore (the run has 0.002)"),
    "resume": (["--resume"], "--resume and --go-on exclude each other"),
    "evaluate": (["--eval-only"], "--eval-only and --go-on exclude each other"),
    "overwrite": (["--overwrite"], "--go-on and --overwrite exclude each other"),
    "checkpoint": (["--checkpoint", "best"], "--checkpoint goes with --resume, --eval-only or --init"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_another_line_is_refused(cli, case):
    words, *says = CONTRADICTIONS[case]
    if case == "the start":
        parent(cli, "mlp")
    ok(cli(*line(**LINES)))
    before = tree(Path("run"))
    refused(cli(*line(**LINES), *words), *says)
    assert tree(Path("run")) == before


def test_it_needs_a_folder(cli):
    refused(cli("train.py", "--go-on"), "--go-on needs --out")


def test_runs_of_other_commands_are_told_apart(cli):
    ok(cli(*line(**LINES)))
    other = cli("-m finetune.classify", "--data", "labels.tsv", *TUNED)
    refused(other, "run is not a run of python -m finetune.classify")
    shutil.rmtree("run")
    chat_parent(cli)
    ok(cli("-m finetune.instruct", "--data", "pairs.jsonl", "--init", "parent", "--dpo", *TUNED))
    refused(cli("-m finetune.instruct", *TUNED), "--go-on cannot change --dpo False (the run has True)")


def test_a_folder_that_is_no_run_is_left_alone(cli):
    Path("run").mkdir()
    Path("run/samples.txt").write_text("mine")
    refused(cli(*line(**LINES)), "run already exists")
    assert tree(Path("run")) == {"samples.txt": b"mine"}


def test_a_text_that_has_moved_is_the_same(cli):
    ok(cli(*line(**LINES)))
    Path("names.txt").rename("moved.txt")
    moved = line(**LINES | {"data": "moved.txt"})
    assert "is complete" in ok(cli(*moved)).out
    ok(cli(*moved, "--steps", 8))
    assert read_facts(Path("run"))["config"]["data"] == "moved.txt"


def test_a_preset_is_part_of_the_line(cli, monkeypatch):
    """Until it says something else: by a later version, say."""
    words = [*line("transformer", **LINES), "--preset", "gpt2"]
    with at_call(checkpoint, "save", 3, TERM):
        assert cli(*words).code == 143
    ok(cli(*words))
    assert "is complete" in ok(cli(*words)).out
    monkeypatch.setitem(presets.TRANSFORMERS["gpt2"], "bias", False)
    refused(cli(*words), "--go-on cannot change --bias False of --preset gpt2 (the run has True)")
    ok(cli(*words, "--bias"))


def test_a_config_file_is_part_of_the_line(cli):
    file = Path("config.json")
    said = {"model": "gru", "n_embd": 8, "n_hidden": 12, "dropout": 0.1, "steps": 4, "patience": None, "threads": None}
    file.write_text(json.dumps(said | {"context": None, "kind": "lines", "data": "names.txt", "order": 3}))
    words = ["train.py", "--config", file, "--out", "run", "--eval-interval", 2, "--schedule", "constant", "--go-on"]
    with at_call(Loader, "deal", 3, TERM):
        assert cli(*words).code == 143
    ok(cli(*words))
    assert "run is complete: 4 steps" in ok(cli(*words)).out
    file.write_text(json.dumps(said | {"kind": "lines", "data": "names.txt", "steps": 6, "patience": 9}))
    ok(cli(*words))
    assert metrics()[-1]["step"] == 6 and read_facts(Path("run"))["config"]["patience"] == 9
    file.write_text(json.dumps(said | {"kind": "lines", "data": "names.txt", "steps": 6, "n_embd": 9}))
    refused(cli(*words), "--go-on cannot change --n-embd 9 of --config config.json (the run has 8)")
    ok(cli(*words, "--n-embd", 8))  # a flag comes before the file
    file.unlink()
    refused(cli(*words), "--config config.json")


def test_the_run_of_init_is_part_of_the_line(cli):
    parent(cli)
    words = ["train.py", "--init", "parent", *TUNED, "--data", "names.txt", "--kind", "lines"]
    ok(cli(*words))
    assert "is complete" in ok(cli(*words)).out
    shutil.rmtree("parent")
    ok(cli("train.py", *quick("gru", **LINES, context=64, out="parent"), "--n-hidden", 16))
    refused(cli(*words), "--go-on cannot change --n-hidden 16 of --init parent (the run has 12)")


def test_what_is_settled_with_the_data_is_no_contradiction(cli):
    """Of a tuned run: its context, its template, whether the vocabulary is extended, how long its n-grams are."""
    parent(cli)
    for module, data in (("classify", "labels.tsv"), ("instruct", "chat.jsonl")):
        words = [f"-m finetune.{module}", "--data", data, "--init", "parent", *TUNED]
        known = {"extend_vocabulary": True} | ({"ngrams": None} if module == "classify" else {"template": None})
        Path("some.json").write_text(json.dumps(known))
        ok(cli(*words, "--config", "some.json"))
        assert "is complete" in ok(cli(*words, "--config", "some.json")).out
        shutil.rmtree("run")


def test_damage_is_said_with_the_way_out(cli):
    ok(cli(*line(**LINES)))
    (Path("run/last/facts.json")).write_text("{}")
    refused(cli(*line(**LINES)), "facts.json is damaged", "--resume --checkpoint best goes on")


def test_from_python():
    settings = {"data": "names.txt", "kind": "lines", "model": "bigram", "steps": 2, "out": "run", "go_on": True}
    first, again = (train_from_python(**settings) for _ in range(2))
    assert first.folder == again.folder == Path("run")
    assert [entry["step"] for entry in metrics()] == [0, 2]


class Told(Ranks):
    """A process that hears `message` from the first one."""

    def __init__(self, message):
        super().__init__(rank=1, world=2)
        self.message = message

    def tell(self, value=None):
        assert value is None
        return json.loads(json.dumps(self.message))


def test_the_others_do_as_the_first_process_says_whatever_they_would_see(cli, tmp_path):
    """A run that appears, or ends, between two looks."""
    words = [str(word) for word in line(**LINES)[1:]]
    config, explicit = parse(words)
    task = Pretraining()
    said = going_on._look(task, config, explicit)
    assert said.what == "start"
    ok(cli(*line(**LINES)))
    task.ranks = Told(said)
    what, heard, changed = going_on.decide(task, config, explicit)
    assert (what, heard, changed) == ("start", config, explicit)
    task.ranks = Told(going_on._look(task, parse([*words, "--steps=9"])[0], explicit))
    shutil.rmtree("run")
    what, heard, changed = going_on.decide(task, config, explicit)
    assert (what, changed, heard.optim.steps, heard.run.resume) == ("resume", {"steps"}, 9, True)


@pytest.mark.exhaustive  # three starts of torchrun take half a minute
def test_two_processes_of_torchrun_are_killed_and_go_on(cli, tmp_path):
    """kill -9 of everything, and the same line: the bits of one process that nobody stopped."""
    flags = DROPS | {"steps": 1000, "eval_interval": 50, "grad_accum": 2}
    ok(cli("train.py", *quick(**flags, out="straight")))
    words = [str(ROOT / "train.py"), *map(str, line(**flags)[1:])]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}", *words]
    how = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}}
    how |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = subprocess.Popen(command, **how)
    while not (tmp_path / "run/last/facts.json").exists() or facts(tmp_path / "run")["step"] < 100:
        assert started.poll() is None, started.communicate()[0]
        time.sleep(0.01)
    workers = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    for pid in (started.pid, *map(int, workers)):
        os.kill(pid, signal.SIGKILL)
    started.communicate()
    assert len(workers) >= 2 and facts(tmp_path / "run")["step"] < 1000
    for says in ("val loss", "run is complete: 1,000 steps"):
        again = subprocess.run(command, **how, timeout=120)
        assert again.returncode == 0 and again.stdout.count(says) == 1, again.stdout
    assert left(tmp_path / "run") == left(tmp_path / "straight")
