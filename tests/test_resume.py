"""Resuming: interrupted anywhere and resumed equals never interrupted, bit by bit; and what resuming refuses."""

import json
import os
import shutil
import signal
import time

import pytest

import engine.training.trainer
from data.loaders import Loader
from engine.run import checkpoint, report, results
from engine.training.metrics import Metrics
from tests.conftest import TINY
from tests.helpers import (
    INT,
    LINES,
    STREAM,
    TERM,
    at_call,
    facts,
    left,
    left_by,
    metrics,
    ok,
    quick,
    refused,
    send,
    trained,
    tree,
)
from tests.matrices import matrix

RESUME = ("train.py", "--resume", "--out", "run")


@pytest.fixture(autouse=True)
def texts(names, text):
    """names.txt and text.txt stand where the commands run."""


FAMILIES = [(model, LINES if model == "bigram" else LINES | {"dropout": 0.2}) for model in TINY]
OPTIMIZERS = ("sgd", "momentum", "adagrad", "rmsprop", "adam", "muon")
CASES = [
    *FAMILIES,
    *(("transformer", LINES | {"optimizer": optimizer, "schedule": "linear"}) for optimizer in OPTIMIZERS),
    ("mlp", LINES | {"norm": "batch", "label_smoothing": 0.1}),
    ("cnn", STREAM | {"norm": "batch", "dropout": 0.1, "schedule": "step"}),
    ("transformer", STREAM | {"tokenizer": "byte", "positions": "rope", "norm": "rms", "schedule": "wsd"}),
    ("lstm", STREAM | {"carry_state": True, "dropout": 0.2, "dtype": "bfloat16"}),
    ("gru", STREAM | {"carry_state": True, "n_layer": 2, "cells": "written", "optimizer": "muon"}),
    ("transformer", LINES | {"mix_ngram": 3, "hash_ngrams": 2, "optimizer": "muon"}),
    ("lstm", STREAM | {"mix_ngram": 4, "carry_state": True}),
    ("gru", STREAM | {"mix_ngram": 3, "count_inputs": True, "carry_state": True}),
    ("transformer", LINES | {"value_embeddings": True, "value_residual": True, "optimizer": "muon", "dropout": 0.1}),
]


def everyday(case: tuple[str, dict]) -> bool:
    """Not the families and optimizers that differ only in the names of what they keep."""
    model, flags = case
    others = case in FAMILIES and model not in ("bigram", "transformer")
    return not others and flags.get("optimizer") not in ("sgd", "momentum", "adagrad", "rmsprop", "adam")


@pytest.mark.parametrize(
    "case", matrix(CASES, everyday), ids=lambda case: "-".join(map(str, (case[0], *case[1].values())))
)
def test_interrupted_twice_equals_never_interrupted(cli, tmp_path, case):
    flags = dict(case[1], steps=8, grad_accum=2)
    ok(cli("train.py", *quick(case[0], **flags, out="straight")))
    with at_call(Loader, "deal", 7, TERM):  # in step 3, to be saved as 4, between two evaluations
        assert cli("train.py", *quick(case[0], **flags)).code == 128 + signal.SIGTERM
    assert facts(tmp_path / "run")["step"] == 4
    with at_call(Loader, "deal", 3, INT):  # in step 5, to be saved as 6, when an evaluation is due
        assert cli(*RESUME).code == 128 + signal.SIGINT
    assert facts(tmp_path / "run")["step"] == 6
    ok(cli(*RESUME))
    assert left(tmp_path / "run") == left(tmp_path / "straight")
    assert (tmp_path / "run/samples.txt").read_bytes() == (tmp_path / "straight/samples.txt").read_bytes()


def test_a_carried_state_is_resumed_from_its_names_in_older_checkpoints(cli, tmp_path):
    flags = STREAM | {"carry_state": True, "mix_ngram": 3, "hash_ngrams": 2}
    ok(cli("train.py", *quick("lstm", **flags, out="straight")))
    with at_call(Loader, "deal", 4, TERM):
        assert cli("train.py", *quick("lstm", **flags)).code == 128 + signal.SIGTERM
    last = tmp_path / "run/last"
    tensors, about = checkpoint.load(last, ("model", "trainer"))
    older = {"carried.neural.history": "carried.neural.last", "carried.position": "carried.place"}
    assert older.keys() <= tensors["trainer"].keys()
    tensors["trainer"] = {older.get(name, name): tensor for name, tensor in tensors["trainer"].items()}
    checkpoint.save(last, tensors, about, checkpoint.belongs_to(last))
    ok(cli(*RESUME))
    assert left(tmp_path / "run") == left(tmp_path / "straight")


HARD = STREAM | {"model": "lstm", "carry_state": True, "dropout": 0.2}


@pytest.fixture
def straight(cli):
    """What a run leaves that nothing interrupted: an LSTM with dropout that carries its state."""
    return left_by(cli, **HARD)


@pytest.mark.parametrize("nth", [1, 3, 4, 6])
def test_a_signal_in_any_step(cli, tmp_path, straight, nth):
    with at_call(Loader, "deal", nth, TERM):
        assert cli("train.py", *quick(**HARD)).code == 143
    assert facts(tmp_path / "run")["step"] == nth
    ok(cli(*RESUME))
    assert left(tmp_path / "run") == straight


@pytest.mark.parametrize(
    "moment",
    [
        (engine.training.trainer, "evaluate_unless", 1),
        (engine.training.trainer, "evaluate_unless", 2),
        (Metrics, "write", 2),
        (Metrics, "write", 3),
    ]
    + [(checkpoint, "save", n) for n in range(1, 5)]
    + [(report, "samples", 1), (results, "write_summary", 1), (results, "draw_loss", 1)],
    ids=lambda moment: f"{moment[1]}-{moment[2]}",
)
def test_a_signal_around_an_evaluation_or_at_the_end(cli, tmp_path, straight, moment):
    with at_call(*moment, INT):
        assert cli("train.py", *quick(**HARD)).code == 130
    ok(cli(*RESUME))
    assert left(tmp_path / "run") == straight


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_leaves_at_once(cli, tmp_path, straight, signum):
    with at_call(Loader, "deal", 5, send(signum, times=2)):
        stopped = cli("train.py", *quick(**HARD))
    assert stopped.code == 128 + signum
    assert "once more to leave at once" in stopped.err and "saved at step" not in stopped.out
    assert facts(tmp_path / "run")["step"] == 3  # the last evaluation's
    ok(cli(*RESUME))
    assert left(tmp_path / "run") == straight


def test_a_signal_to_a_fresh_process(cli, process, tmp_path):
    training = process("train.py", *quick(**LINES, steps=10**6, eval_interval=10**6))
    while not (tmp_path / "run/last/facts.json").exists():
        assert training.poll() is None, training.stderr.read()
        time.sleep(0.01)
    training.send_signal(signal.SIGTERM)
    out, err = training.communicate(timeout=60)
    assert training.returncode == 143
    assert "go on with: python train.py --resume --out run" in out and "once more to leave at once" in err
    done = facts(tmp_path / "run")["step"]
    ok(cli(*RESUME, "--steps", done + 1))
    assert metrics(tmp_path / "run")[-1]["step"] == done + 1


@pytest.mark.parametrize("streams", [[1], [2], [1, 2]], ids=["stdout", "stderr", "both"])
def test_a_signal_after_the_reader_of_the_output_has_left(cli, tmp_path, straight, streams):
    """As in `train.py 2>&1 | tee log`, where Ctrl-C ends tee as well."""

    def leave() -> None:
        reader, writer = os.pipe()
        os.close(reader)
        for stream in streams:
            os.dup2(writer, stream)
        INT()

    with at_call(Loader, "deal", 5, leave):
        assert cli("train.py", *quick(**HARD)).code == 130
    assert facts(tmp_path / "run")["step"] == 5
    ok(cli(*RESUME))
    assert left(tmp_path / "run") == straight


@pytest.mark.parametrize("case", [HARD, LINES | {"model": "cnn", "norm": "batch"}], ids=["lstm", "cnn"])
def test_fewer_steps_and_then_more_under_a_constant_schedule(cli, tmp_path, case):
    flags = case | {"schedule": "constant"}
    ok(cli("train.py", *quick(**flags | {"steps": 9}, out="straight")))
    ok(cli("train.py", *quick(**flags | {"steps": 3})))
    ok(cli(*RESUME, "--steps", 6))
    ok(cli(*RESUME, "--steps", 9))
    assert left(tmp_path / "run") == left(tmp_path / "straight")
    assert json.loads((tmp_path / "run/config.json").read_text())["config"]["steps"] == 9


def test_resuming_a_finished_run_changes_nothing(cli, tmp_path, straight):
    trained(cli, **HARD)
    ok(cli(*RESUME))
    assert left(tmp_path / "run") == straight


def test_resuming_a_run_that_counts_counts_again(cli, tmp_path):
    ok(cli("train.py", "--model", "ngram", "--data", "text.txt", "--out", "run"))
    before = (tmp_path / "run/best/model.safetensors").read_bytes()
    ok(cli(*RESUME))
    assert (tmp_path / "run/best/model.safetensors").read_bytes() == before
    assert len(metrics(tmp_path / "run")) == 1


def test_evaluating_differently_changes_nothing_in_the_training(cli, tmp_path, straight):
    ok(cli("train.py", *quick(**HARD, eval_interval=1, eval_tokens=37, patience=50)))
    often = left(tmp_path / "run")
    assert len(often["metrics"]) == 7
    for name in ("last/model.safetensors", "last/trainer.safetensors"):
        assert often[name] == straight[name]


def test_what_may_change_on_resuming_changes_nothing_in_the_training(cli, tmp_path, straight):
    with at_call(Loader, "deal", 2, TERM):
        cli("train.py", *quick(**HARD))
    changed = ["--eval-interval", 1, "--eval-tokens", 99, "--patience", 40, "--device", "cpu", "--compile", "off"]
    ok(cli(*RESUME, *changed, "--steps", 6, "--log", "none"))
    after = left(tmp_path / "run")
    assert [line["step"] for line in after["metrics"]] == [0, 2, 3, 4, 5, 6]
    for name in ("last/model.safetensors", "last/trainer.safetensors"):
        assert after[name] == straight[name]


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--lr", 0.5], ["--lr 0.5 (the run has 0.002)"]),
        (["--model", "gru"], ["--model gru (the run has mlp)"]),
        (["--seed", 3, "--n-embd", 16], ["--n-embd 16 (the run has 8)", "--seed 3 (the run has 1337)"]),
        (["--batch-size=5"], ["--batch-size 5 (the run has 4)"]),
        (["--kind", "stream"], ["--kind stream (the run has lines)"]),
        (["--tokenizer", "byte"], ["--tokenizer byte (the run has char)"]),
        (["--optimizer", "sgd"], ["--optimizer sgd (the run has adamw)"]),
        (["--schedule", "linear"], ["--schedule linear (the run has cosine)"]),
        (["--counts"], ["--counts"]),
        (["--no-bias"], ["--bias"]),
        (["--init", "run"], ["--init run (the run has None)"]),
        (["--preset", "makemore"], ["--preset"]),
        (["--config", "run/config.json"], ["--config"]),
        (["--overwrite"], ["--resume", "--overwrite"]),
        (["--eval-only"], ["--resume", "--eval-only"]),
        (["--steps", 0], ["--steps is 0"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if str(value[0]).startswith("--") else "",
)
def test_resuming_refuses_what_contradicts_the_run_and_touches_nothing(cli, tmp_path, flags, words):
    trained(cli, **LINES)
    before = tree(tmp_path / "run")
    refused(cli(*RESUME, *flags), *words)
    assert tree(tmp_path / "run") == before


def test_a_flag_that_repeats_what_the_run_has_is_no_contradiction(cli):
    trained(cli, **LINES)
    ok(cli(*RESUME, "--model", "mlp", "--batch-size", 4, "--data", "names.txt"))


def test_metrics_are_cut_back_to_the_saved_step(cli, tmp_path, straight):
    with at_call(Loader, "deal", 5, TERM):
        cli("train.py", *quick(**HARD))
    with open(tmp_path / "run/metrics.jsonl", "a") as file:  # written, but never saved; then torn
        file.write('{"step": 6, "train_loss": 1.0, "val_loss": 1.0}\n{"step": 9, "tra')
    ok(cli(*RESUME))
    assert left(tmp_path / "run") == straight


@pytest.mark.parametrize("lines", ["", "3\n", "[]\n", "nonsense\n"])
def test_lost_or_damaged_metrics_do_not_stop_a_run(cli, tmp_path, lines):
    trained(cli, **LINES)
    (tmp_path / "run/metrics.jsonl").write_text(lines)
    ok(cli(*RESUME))
    ok(cli(*RESUME, "--steps", 7))


@pytest.mark.parametrize("kind", [LINES, STREAM], ids=["lines", "stream"])
def test_without_its_cache_a_run_prepares_its_text_again(cli, tmp_path, kind):
    ok(cli("train.py", *quick(**kind, out="straight")))
    with at_call(Loader, "deal", 2, TERM):
        cli("train.py", *quick(**kind))
    ok(cli(*RESUME, env={"CHARLM_CACHE": str(tmp_path / "another cache")}))
    assert left(tmp_path / "run") == left(tmp_path / "straight")


def test_a_changed_text_is_refused(cli, tmp_path, names):
    with at_call(Loader, "deal", 2, TERM):
        cli("train.py", *quick(**LINES))
    names.write_text("anna\nbob\nzoe\n")
    moved = {"CHARLM_CACHE": str(tmp_path / "another cache")}
    refused(cli(*RESUME, env=moved), "names.txt has changed", "--init run")
    names.unlink()
    refused(cli(*RESUME, env=moved), "names.txt")


def test_a_run_that_started_from_another_resumes(cli, tmp_path):
    ok(cli("train.py", *quick(**LINES, out="parent")))
    tune = ["train.py", "--init", "parent", "--data", "names.txt", "--kind", "lines", "--steps", 4, "--batch-size", 4]
    ok(cli(*tune, "--out", "straight"))
    with at_call(Loader, "deal", 2, TERM):
        cli(*tune, "--out", "run")
    shutil.rmtree(tmp_path / "parent")
    ok(cli(*RESUME))
    assert left(tmp_path / "run") == left(tmp_path / "straight")


def damage(tmp_path, name: str = "trainer.safetensors") -> None:
    path = tmp_path / "run/last" / name
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", ["trainer.safetensors", "model.safetensors"])
def test_a_damaged_last_checkpoint_is_named_and_the_best_one_offered(cli, tmp_path, name):
    trained(cli, **LINES)
    damage(tmp_path, name)
    before = tree(tmp_path / "run")
    refused(cli(*RESUME, "--steps", 9), f"run/last/{name} is damaged", "--checkpoint best")
    assert tree(tmp_path / "run") == before
    gone_on = ok(cli(*RESUME, "--steps", 9, "--checkpoint", "best"))
    assert "optimizer and data order start anew" in gone_on.err
    assert [line["step"] for line in metrics(tmp_path / "run")] == [0, 3, 6, 9]


def test_going_on_from_the_best_never_replaces_it_by_a_worse_one(cli, tmp_path):
    ok(cli("train.py", *quick(**LINES, steps=20, eval_interval=15, lr=0.01)))  # the best is step 20, no multiple of 15
    best = facts(tmp_path / "run", "best")
    assert best["step"] == 20
    damage(tmp_path)
    ok(cli(*RESUME, "--checkpoint", "best", "--steps", 30))
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [0, 15, 20, 30]
    assert facts(tmp_path / "run", "best")["val_loss"] == min(line["val_loss"] for line in lines)
