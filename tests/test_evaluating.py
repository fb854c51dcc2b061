"""Where the text of a run comes from, and evaluating a run on its own text or another."""

import json
from pathlib import Path

import pytest

from tests.conftest import NAMES
from tests.helpers import LINES, STREAM, evaluated, left, metrics, ok, quick, summary, trained, warnings_of

pytestmark = pytest.mark.usefixtures("names", "text")  # names.txt and text.txt stand where the commands run


def test_a_validation_text_of_its_own(cli, tmp_path):
    (tmp_path / "val.txt").write_text("zoe\nzoe\nmila\n")
    ok(cli("train.py", *quick(**LINES, val_data="val.txt")))
    assert summary()["val_tokens"] == len("zoe.zoe.mila.")
    assert evaluated(cli)["val_loss"] == summary()["val_loss"]


@pytest.mark.parametrize("kind", [LINES, STREAM], ids=["lines", "stream"])
def test_evaluating_on_other_text(cli, tmp_path, kind):
    trained(cli, **kind)
    (tmp_path / "other.txt").write_text("\n".join(NAMES[::-1]) + "\n")
    whole = evaluated(cli, "--val-data", "other.txt")
    part = evaluated(cli, "--data", "other.txt")
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
    assert json.loads(piped.out)["val_loss"] == evaluated(cli, flag, "same.txt")["val_loss"]


def test_evaluating_spelled_with_an_underscore(cli):
    trained(cli, **STREAM, eval_tokens=24)
    assert json.loads(ok(cli("train.py", "--eval_only", "--out", "run")).out)["val_loss"] == summary()["val_loss"]


@pytest.mark.parametrize("content", ["", "[]", "3", "{"])
def test_evaluating_a_run_whose_summary_is_lost(cli, tmp_path, content):
    run = trained(cli, **STREAM)
    expected = summary()["val_loss"]
    (run / "summary.json").write_text(content)
    assert evaluated(cli)["val_loss"] == expected


def test_a_run_in_half_precision_evaluates_to_its_summary(cli):
    trained(cli, "lstm", **STREAM, dtype="bfloat16")
    assert evaluated(cli)["val_loss"] == summary()["val_loss"]
    assert evaluated(cli, "--dtype", "float32")["val_loss"] != summary()["val_loss"]


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
