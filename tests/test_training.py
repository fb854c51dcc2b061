"""Training from the command line: what stops it, what it writes, where its text comes from, and what it shows."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from engine.flags import parse
from tests.conftest import NAMES, ROOT, TINY
from tests.helpers import facts, left, metrics, ok, quick, refused, trained, warnings_of

LINES = {"data": "names.txt", "kind": "lines"}
STREAM = {"data": "text.txt", "context": 12}
SUMMARY = {
    "model", "params", "steps", "tokens", "seconds", "train_loss", "val_loss", "val_bits_per_char", "best_step",
    "tokens_per_second", "peak_memory_mb",
}  # fmt: skip


@pytest.fixture(autouse=True)
def texts(names, text):
    """names.txt and text.txt stand where the commands run."""


def summary(run: str = "run") -> dict:
    return json.loads(Path(run, "summary.json").read_text())


def evaluate(cli, *flags) -> dict:
    """The one JSON line of --eval-only."""
    (line,) = ok(cli("train.py", "--eval-only", "--out", "run", *flags)).out.splitlines()
    return json.loads(line)


# ---- what stops a training


def test_no_flag_at_all_is_a_transformer_on_the_bundled_names():
    config, given = parse([])
    assert (config.model, config.data, given) == ("transformer", "names", set())


@pytest.mark.parametrize(
    "flags",
    [{"optimizer": "sgd", "lr": 1e38}, {"optimizer": "muon", "muon_lr": 1e38}, {"lr": 1e30, "weight_decay": 1e20}],
    ids=str,
)
def test_a_loss_that_is_not_finite_stops_with_advice_and_keeps_the_last_good_weights(cli, tmp_path, flags):
    stopped = cli("train.py", *quick("mlp", **LINES | {"grad_clip": 0} | flags, steps=40, eval_interval=4))
    refused(stopped, "the training loss is not finite at step", "learning rate", "--lr", "--grad-clip 1", "run/last")
    assert not Path("run/summary.json").exists()
    ok(cli("sample.py", "run", "--num", 2, "--checkpoint", "last"))
    assert evaluate(cli, "--checkpoint", "last")["val_loss"] == metrics(tmp_path / "run")[-1]["val_loss"]


def test_patience_counts_evaluations_without_a_better_one(cli, tmp_path):
    flags = {"optimizer": "sgd", "lr": 30, "grad_clip": 0, "steps": 500, "eval_interval": 1, "warmup": 0}
    ok(cli("train.py", *quick("bigram", **LINES | flags, patience=3)))
    losses = [line["val_loss"] for line in metrics(tmp_path / "run")]
    best = losses.index(min(losses))
    assert len(losses) == best + 4 < 500
    assert summary()["best_step"] == best and summary()["steps"] == best + 3


@pytest.mark.parametrize("model", ["lstm", "cnn"])
def test_best_and_last_are_what_they_say(cli, tmp_path, model):
    (tmp_path / "train.txt").write_text("abc" * 99)
    (tmp_path / "val.txt").write_text("cba" * 99)  # the model learns the letters, then an order that is wrong here
    flags = {"data": "train.txt", "val_data": "val.txt", "context": 8, "lr": 0.05, "steps": 8, "eval_interval": 1}
    ok(cli("train.py", *quick(model, **flags, schedule="constant", warmup=0)))
    lines = metrics(tmp_path / "run")
    best = min(lines, key=lambda line: line["val_loss"])
    assert best["step"] not in (0, 8)
    assert facts(tmp_path / "run", "best")["step"] == best["step"] and facts(tmp_path / "run")["step"] == 8
    assert evaluate(cli)["val_loss"] == best["val_loss"] == summary()["val_loss"]
    assert evaluate(cli, "--checkpoint", "last")["val_loss"] == lines[-1]["val_loss"]


# ---- what it writes


@pytest.mark.parametrize("model", [*TINY, "ngram", "bigram --counts"])
@pytest.mark.parametrize("kind", [LINES, STREAM], ids=["lines", "stream"])
def test_a_run_ends_with_its_summary_and_evaluates_to_the_same(cli, tmp_path, model, kind):
    if model in TINY:
        run = trained(cli, model, **kind)
    else:
        flags = [f"--{name}={value}" for name, value in kind.items() if name != "context"]
        ok(cli("train.py", "--model", *model.split(), *flags, "--out", "run"))
        run = tmp_path / "run"
    found = summary()
    assert found.keys() >= SUMMARY and found["model"] == model.split()[0]
    assert min(found[name] for name in ("params", "steps", "tokens", "val_loss", "peak_memory_mb")) > 0
    assert found["val_loss"] == min(line["val_loss"] for line in metrics(run))
    again = evaluate(cli)
    assert again.keys() == found.keys()
    assert {k: v for k, v in again.items() if k != "peak_memory_mb"} == {
        k: v for k, v in found.items() if k != "peak_memory_mb"
    }
    names = {path.name for path in run.iterdir()}
    assert names == {
        "config.json", "tokenizer.json", "metrics.jsonl", "summary.json", "samples.txt", "loss.png", "best", "last"
    }  # fmt: skip
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_summary_counts_what_was_trained_on(cli, tmp_path):
    run = trained(cli, **STREAM, grad_accum=2)
    assert summary()["tokens"] == 6 * 2 * 4 * 12 == metrics(run)[-1]["tokens"]
    assert summary()["steps"] == 6


def test_the_training_loss_is_the_mean_over_the_steps_since_the_evaluation_before(cli, tmp_path):
    flags = STREAM | {"model": "lstm", "lr": 0.05}  # all steps have as many targets
    ok(cli("train.py", *quick(**flags, eval_interval=1, out="each")))
    ok(cli("train.py", *quick(**flags, eval_interval=3)))
    start, *each = [line["train_loss"] for line in metrics(tmp_path / "each")]
    assert start is None and each[0] > each[5] + 0.01
    expected = [sum(each[:3]) / 3, sum(each[3:]) / 3]
    assert [line["train_loss"] for line in metrics(tmp_path / "run")][1:] == pytest.approx(expected, rel=1e-6)
    assert summary()["train_loss"] == pytest.approx(expected[1], rel=1e-6)


def test_the_same_seed_gives_the_same_bits_and_another_one_others(cli, tmp_path):
    ok(cli("train.py", *quick("lstm", **LINES, dropout=0.2, out="a", seed=7)))
    ok(cli("train.py", *quick("lstm", **LINES, dropout=0.2, out="b", seed=7)))
    ok(cli("train.py", *quick("lstm", **LINES, dropout=0.2, out="c", seed=8)))
    assert left(tmp_path / "a") == left(tmp_path / "b")
    assert left(tmp_path / "a")["last/model.safetensors"] != left(tmp_path / "c")["last/model.safetensors"]
    assert Path("a/samples.txt").read_text() == Path("b/samples.txt").read_text()


def test_the_saved_configuration_trains_the_same_run_again(cli, tmp_path):
    flags = {"optimizer": "muon", "dropout": 0.1, "norm": "rms", "seed": 3, "schedule": "wsd", "positions": "rope"}
    ok(cli("train.py", *quick("transformer", **STREAM, **flags), "--no-bias", "--no-tie-head"))
    ok(cli("train.py", "--config", "run/config.json", "--out", "again"))
    assert left(tmp_path / "again") == left(tmp_path / "run")
    ok(cli("train.py", "--config=run/config.json", "--out", "longer", "--steps", 7))
    assert metrics(tmp_path / "longer")[-1]["step"] == 7


def test_runs_without_a_name_are_numbered(cli, tmp_path):
    for _ in range(2):
        flags = quick("bigram", data="my text.txt", context=8, steps=1)
        (tmp_path / "my text.txt").write_text("the cat sat " * 20)
        ok(cli("train.py", *flags[: flags.index("--out")], *flags[flags.index("--out") + 2 :]))
    assert sorted(path.name for path in Path("runs").iterdir()) == ["bigram-my-text-1", "bigram-my-text-2"]


# ---- where the text comes from


def test_a_validation_text_of_its_own(cli, tmp_path):
    (tmp_path / "val.txt").write_text("zoe\nzoe\nmila\n")
    ok(cli("train.py", *quick(**LINES, val_data="val.txt")))
    assert summary()["val_tokens"] == len("zoe.zoe.mila.")
    assert evaluate(cli)["val_loss"] == summary()["val_loss"]


@pytest.mark.parametrize("kind", [LINES, STREAM], ids=["lines", "stream"])
def test_evaluating_on_other_text(cli, tmp_path, kind):
    trained(cli, **kind)
    (tmp_path / "other.txt").write_text("\n".join(NAMES[::-1]) + "\n")
    whole = evaluate(cli, "--val-data", "other.txt")
    part = evaluate(cli, "--data", "other.txt")
    assert whole["val_tokens"] > 2 * part["val_tokens"] > 0
    assert len({whole["val_loss"], part["val_loss"], summary()["val_loss"]}) == 3
    assert whole.keys() == summary().keys()


def test_evaluating_on_other_text_warns_of_that_text_alone(cli, tmp_path):
    trained(cli, **LINES)
    (tmp_path / "other.txt").write_text("anna\nbella\nlea\nanna\n")
    result = ok(cli("train.py", "--eval-only", "--out", "run", "--val-data", "other.txt"))
    (told,) = warnings_of(result)
    assert "1 of 4 lines are duplicates" in told


@pytest.mark.parametrize("flag", ["--data", "--val-data"])
def test_evaluating_what_comes_through_a_pipe(cli, tmp_path, flag):
    trained(cli, **STREAM)
    content = "emma met bella and mila met nora;\n" * 9
    (tmp_path / "same.txt").write_text(content)
    piped = ok(cli("train.py", "--eval-only", "--out", "run", flag, "-", stdin=content.encode()))
    assert json.loads(piped.out)["val_loss"] == evaluate(cli, flag, "same.txt")["val_loss"]


def test_evaluating_spelled_with_an_underscore(cli):
    trained(cli, **STREAM, eval_tokens=24)
    assert json.loads(ok(cli("train.py", "--eval_only", "--out", "run")).out)["val_loss"] == summary()["val_loss"]


@pytest.mark.parametrize("content", ["", "[]", "3", "{"])
def test_evaluating_a_run_whose_summary_is_lost(cli, tmp_path, content):
    run = trained(cli, **STREAM)
    expected = summary()["val_loss"]
    (run / "summary.json").write_text(content)
    assert evaluate(cli)["val_loss"] == expected


def test_a_run_in_half_precision_evaluates_to_its_summary(cli):
    trained(cli, "lstm", **STREAM, dtype="bfloat16")
    assert evaluate(cli)["val_loss"] == summary()["val_loss"]
    assert evaluate(cli, "--dtype", "float32")["val_loss"] != summary()["val_loss"]


def test_a_text_through_a_pipe_is_as_good_as_a_file_and_leaves_nothing_behind(cli, tmp_path, text):
    trained(cli, **STREAM)
    (tmp_path / "tmp").mkdir()
    flags = quick(**STREAM | {"data": "-", "out": "piped"})
    ok(cli("train.py", *flags, stdin=text.read_bytes(), env={"TMPDIR": str(tmp_path / "tmp")}))
    assert left(tmp_path / "piped") == left(tmp_path / "run")
    assert not [path for path in (tmp_path / "tmp").iterdir() if "stdin" in path.name]


def test_bytes_instead_of_characters(cli, tmp_path):
    (tmp_path / "emoji.txt").write_text("ah 🙂 oh\n" * 40, "utf-8")
    assert ok(cli("train.py", *quick(data="emoji.txt", context=8, tokenizer="byte"))).err == ""
    found = summary()
    assert json.loads(Path("run/tokenizer.json").read_text()) == {"type": "byte"}
    per_character = found["val_bits_per_char"] * 0.6931471805599453 / found["val_loss"]
    assert per_character == pytest.approx(len("ah 🙂 oh\n".encode()) / len("ah 🙂 oh\n"), rel=0.05)


def test_a_run_starts_from_the_weights_and_vocabulary_of_another(cli, tmp_path):
    parent = trained(cli, **LINES).rename(tmp_path / "parent")
    (tmp_path / "few.txt").write_text("ann\nbob\nann\nbob\nlea\n")
    ok(cli("train.py", "--init", "parent", "--data", "few.txt", "--kind", "lines", "--steps", 1, "--lr", 1e-30,
           "--weight-decay", 0, "--out", "run"))  # fmt: skip
    assert (tmp_path / "run/best/model.safetensors").read_bytes() == (parent / "best/model.safetensors").read_bytes()
    assert Path("run/tokenizer.json").read_bytes() == (parent / "tokenizer.json").read_bytes()
    assert json.loads(Path("run/config.json").read_text())["config"]["n_hidden"] == 16
    at_parent = ok(cli("train.py", "--eval-only", "--out", "parent", "--data", "few.txt"))
    assert metrics(tmp_path / "run")[0]["val_loss"] == json.loads(at_parent.out)["val_loss"]


# ---- what it shows


@pytest.mark.parametrize(
    "words", [["--help"], ["--model", "lstm", "--data", "shakespeare", "--help"], ["--steps", "x"]]
)
def test_help_and_wrong_flags_answer_without_torch(words):
    command = [sys.executable, "-X", "importtime", str(ROOT / "train.py"), *words]
    shown = subprocess.run(command, capture_output=True, text=True)
    assert shown.returncode == (0 if "--help" in words else 2)
    modules = {line.split("|")[-1].strip() for line in shown.stderr.splitlines() if line.startswith("import time:")}
    assert "tyro" in modules and not modules & {"torch", "matplotlib"}
    assert "--eval-interval" in shown.stdout or "--steps" in shown.stderr


def test_help_shows_the_defaults_of_the_chosen_pair(cli):
    shown = " ".join(ok(cli("train.py", "--model", "lstm", "--data", "shakespeare", "--help")).out.split())
    assert "--n-hidden INT" in shown and "(default: 256)" in shown.split("--n-hidden INT")[1][:160]


def test_a_machine_without_a_compiler_trains_on_without_it(process, tmp_path):
    training = process("train.py", *quick("mlp", **LINES, compile="on"), env={"CXX": "/nonexistent"})
    out, err = training.communicate(timeout=300)
    assert training.returncode == 0, err
    (told,) = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert "torch.compile does not work here" in told
    assert summary(tmp_path / "run")["steps"] == 6


def test_the_bar_of_a_terminal_shows_step_loss_speed_and_time_left(tmp_path):
    """Through a real pseudo-terminal, as a user sees it."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = [sys.executable, str(ROOT / "train.py"), *map(str, quick("mlp", **LINES, steps=400, eval_interval=200))]
    training = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path)
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux says so when the other side is closed
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    assert training.wait() == 0, shown.decode()
    drawn = [line for line in re.split(r"[\r\n]+", shown.decode()) if line.startswith("step") and "tokens/s" in line]
    assert drawn, shown.decode()
    for line in drawn:
        assert re.search(r"^step \d+/400 ", line) and re.search(r"\d\d:\d\d, \d\d:\d\d left", line)
        assert re.search(r" loss \d\.\d+, [\d,]+ tokens/s", line) and "| ," not in line and len(line) <= 100


def test_without_a_terminal_there_is_no_bar(cli):
    result = ok(cli("train.py", *quick(**LINES)))
    assert result.err == "" or "tokens/s" not in result.err
    assert [line.split()[1] for line in result.out.splitlines() if line.startswith("step ")] == ["0", "3", "6"]
