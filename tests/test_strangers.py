"""Run directories as strangers make them: every JSON, size, link and weight is checked, whoever wrote it."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data import disk
from data.errors import UserError
from data.json_files import Whole, parse_json
from engine.run import checkpoint, report
from engine.training.metrics import Metrics
from tests.conftest import ROOT
from tests.helpers import LINES, STREAM, at_call, left, metrics, ok, quick, refused, trained, tree, warnings_of
from tests.matrices import matrix

pytestmark = pytest.mark.usefixtures("names", "text")  # names.txt and text.txt stand where the commands run
TRANSFORMER = STREAM | {"model": "transformer"}


def rewrite(path: Path, change) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def reseal(folder: Path, name: str, content: bytes) -> None:
    """Put `content` into a checkpoint as somebody would who knows how: with its size and SHA-256."""
    (folder / name).write_bytes(content)
    about = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    rewrite(folder / "manifest.json", lambda files: files | {name: about})


def forget(folder: Path) -> None:
    """Make a checkpoint one of format 1, which does not say what it belongs to."""
    (folder / "belongs_to.json").unlink()
    rewrite(folder / "manifest.json", lambda files: {n: f for n, f in files.items() if n != "belongs_to.json"})


NESTED = "[" * 100_000 + "]" * 100_000
SETTINGS = [
    ("n_head", 0), ("n_head", -1), ("n_head", 3), ("window", 0), ("context", 10**12), ("context", 0),
    ("n_layer", 10**9), ("n_layer", 3), ("n_embd", 20_000), ("n_embd", -8), ("n_embd", 1e30), ("n_embd", True),
    ("dropout", 7), ("dropout", "x"), ("hash_ngrams", 99), ("mix_ngram", -3), ("n_kv_head", 5), ("lr", None),
    ("seed", -1), ("eval_tokens", 0), ("kind", "x"),
]  # fmt: skip


@pytest.mark.parametrize("setting", matrix(SETTINGS, SETTINGS[::2]), ids=str)
def test_a_setting_that_cannot_be_is_named(cli, setting):
    name, value = setting
    """At once, and before any memory is taken for it."""
    run = trained(cli, "transformer", **STREAM)
    for which in ("best", "last"):
        forget(run / which)
    rewrite(run / "config.json", lambda facts: facts | {"config": facts["config"] | {name: value}})
    before = tree(run)
    for command in (
        ["sample.py", "run"],
        ["train.py", "--resume", "--out", "run"],
        ["train.py", "--eval-only", "--out", "run"],
    ):
        refused(cli(*command), "run/")
    assert tree(run) == before


FACTS = [
    ("format", "1"), ("format", 0), ("format", True), ("vocab_size", 0), ("vocab_size", -1), ("vocab_size", 1e9),
    ("vocab_size", 10**30), ("data", 3), ("data", {"key": 1, "folder": "", "name": "", "start": ""}), ("config", []),
    ("data", {"key": "x", "folder": "../../x", "name": "x", "start": "x"}),
    ("data", {"key": "x", "folder": "x", "name": "x", "start": ""}), ("instruct", {}), ("classify", {"labels": [1]}),
]  # fmt: skip


@pytest.mark.parametrize("name, value", FACTS, ids=str)
def test_a_fact_that_cannot_be_is_named(cli, name, value):
    run = trained(cli, "transformer", **STREAM)
    rewrite(run / "config.json", lambda facts: facts | {name: value})
    for command in (["sample.py", "run"], ["train.py", "--resume", "--out", "run"]):
        refused(cli(*command), "run")


CONTENTS = [NESTED, "NaN", '{"format": NaN}', '{"format": 1e999}', "9" * 5000, "null", '"x"', "\ufeff{}", "{", ""]


@pytest.mark.parametrize("content", matrix(CONTENTS, CONTENTS[::2]), ids=lambda content: content[:16])
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "best/manifest.json", "last/manifest.json"])
def test_a_file_that_holds_anything_is_refused(cli, file, content):
    run = trained(cli, **LINES)
    (run / file).write_text(content, "utf-8")
    if not file.startswith("last"):
        refused(cli("sample.py", "run"), f"run/{file}")
    if not file.startswith("best"):
        refused(cli("train.py", "--resume", "--out", "run"), f"run/{file}")


PROGRESS = [
    ("progress", {"step": "4"}), ("progress", {"step": -1}), ("progress", {"best_val": "x"}), ("progress", 3),
    ("progress", {"seconds": None}), ("loader", {"epoch": 0, "position": 10**9}),
    ("loader", {"epoch": -1, "position": 0}), ("loader", []), ("optimizer", []),
    ("optimizer", {"optimizer.0.99.step": 1}), ("optimizer", {"state.nothing.step": 1}),
    ("optimizer", {"optimizer.0.0.step": [1]}), ("step", "x"), ("val_loss", []),
]  # fmt: skip


@pytest.mark.parametrize("name, value", PROGRESS, ids=str)
def test_a_state_that_cannot_be_is_refused(cli, name, value):
    run = trained(cli, **LINES, steps=4, eval_interval=2)
    about = json.loads((run / "last/facts.json").read_text())
    if isinstance(value, dict) and name == "progress":
        value = about["progress"] | value
    reseal(run / "last", "facts.json", json.dumps(about | {name: value}).encode())
    before = tree(run / "last")
    refused(cli("train.py", "--resume", "--out", "run", "--steps", 9), "")
    assert tree(run / "last") == before


def test_moments_of_another_shape_are_refused(cli):
    run = trained(cli, **LINES)
    tensors = safetensors.torch.load_file(run / "last/trainer.safetensors")
    name = next(name for name in tensors if name.startswith("state.") and tensors[name].dim())
    reseal(run / "last", "trainer.safetensors", safetensors.torch.save(tensors | {name: torch.zeros(3, 5)}))
    refused(cli("train.py", "--resume", "--out", "run", "--steps", 9), "run/last does not hold a state")


LINES_OF_METRICS = [
    '{"step": 3}',
    '{"step": 3, "train_loss": 1.0, "val_loss": null}',
    '{"step": 4, "val_lo',
    "3",
    "\x00",
]


@pytest.mark.parametrize("line", LINES_OF_METRICS, ids=str)
def test_a_torn_line_of_metrics_costs_that_line_alone(cli, line):
    run = trained(cli, **LINES)
    straight = left(run)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], line, *lines[1:]]) + "\n")
    (told,) = [w for w in warnings_of(ok(cli("train.py", "--resume", "--out", "run"))) if "torn" in w]
    assert "run/metrics.jsonl: 1 torn line dropped" in told
    assert left(run) == straight


HAND_EDITS = [
    ("dropout", 0.3),
    ("seed", 5),
    ("lr", 0.5),
    ("optimizer", "sgd"),
    ("batch_size", 7),
    ("activation", "relu"),
]


@pytest.mark.parametrize("name, value", HAND_EDITS, ids=str)
def test_a_setting_edited_by_hand_is_noticed_where_it_matters(cli, name, value):
    run = trained(cli, **LINES)
    rewrite(run / "config.json", lambda facts: facts | {"config": facts["config"] | {name: value}})
    before = tree(run)
    words = [f"says {name} {value}", "run/last was trained with", "put that back", "--init"]
    refused(cli("train.py", "--resume", "--out", "run", "--steps", 9), *words)
    assert tree(run) == before
    drawn = cli("sample.py", "run", "--num", 1)  # what a model computes does not depend on how it was trained
    refused(drawn, f"says {name} {value}") if name == "activation" else ok(drawn)


def test_another_tokenizer_of_the_same_size_is_noticed(cli):
    run = trained(cli, **LINES)
    rewrite(run / "tokenizer.json", lambda t: t | {"characters": t["characters"].replace("a", "A")})
    for command in (["sample.py", "run"], ["train.py", "--resume", "--out", "run"], ["train.py", "--init", "run"]):
        refused(cli(*command), "run/tokenizer.json is not the tokenizer")


@pytest.mark.parametrize("file", ["best", "last"])
def test_weights_that_are_not_finite_are_refused(cli, file):
    run = trained(cli, **LINES)
    weights = safetensors.torch.load_file(run / file / "model.safetensors")
    name = next(iter(weights))
    weights[name].view(-1)[0] = float("nan" if file == "best" else "inf")
    reseal(run / file, "model.safetensors", safetensors.torch.save(weights))
    for command in (
        ["sample.py", "run", "--checkpoint", file], ["sample.py", "run", "--checkpoint", file, "--score", "emma"],
        ["train.py", "--eval-only", "--out", "run", "--checkpoint", file],
        ["train.py", "--init", "run", "--checkpoint", file],
        ["-m export", "run", "--to", "onnx", "x", "--checkpoint", file],
    ):  # fmt: skip
        refused(cli(*command), f"run/{file} holds weights that are not finite", name)
    assert not Path("x").exists()


LINKS = ["samples.txt", "loss.png", "metrics.jsonl.new", "summary.json.new", "config.json.new", "samples.txt.new",
         "loss.png.new", "summary.json", "best.new", "last.new", "last.old", "best.old"]  # fmt: skip


@pytest.mark.parametrize("name", matrix(LINKS, LINKS[::2]))
@pytest.mark.parametrize("is_folder", [False, True])
def test_nothing_is_written_through_a_link(cli, tmp_path, name, is_folder):
    run = trained(cli, **LINES)
    precious = tmp_path / "precious"
    if is_folder:
        precious.mkdir()
        (precious / "thesis.txt").write_text("mine")
    else:
        precious.write_text("mine")
    path = run / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to(precious)
    ok(cli("train.py", "--resume", "--out", "run", "--steps", 9))
    assert (precious / "thesis.txt" if is_folder else precious).read_text() == "mine"
    if is_folder:
        assert [path.name for path in precious.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "lock"])
def test_a_file_that_is_kept_may_not_be_a_link(cli, tmp_path, name):
    run = trained(cli, **LINES)
    (tmp_path / "precious").write_text("")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / "precious")
    ended = cli("train.py", "--resume", "--out", "run", "--steps", 9)
    assert "Traceback" not in ended.err and (ended.code == 0) == (name == "metrics.jsonl")
    assert (tmp_path / "precious").read_text() == ""


@pytest.mark.parametrize("name", ["best", "last"])
def test_a_checkpoint_that_is_a_link_is_read_but_not_written(cli, tmp_path, name):
    run = trained(cli, **LINES)
    (run / name).rename(tmp_path / "elsewhere")
    (run / name).symlink_to(tmp_path / "elsewhere")
    before = tree(tmp_path / "elsewhere")
    ok(cli("sample.py", "run", "--num", 1, "--checkpoint", name))
    refused(cli("train.py", "--resume", "--out", "run", "--steps", 9), f"run/{name} is a symbolic link")
    assert tree(tmp_path / "elsewhere") == before


def test_a_run_directory_that_is_a_link_works(cli, tmp_path):
    (tmp_path / "big disk").mkdir()
    Path("run").symlink_to(tmp_path / "big disk")
    ok(cli("train.py", *quick(**LINES)))
    ok(cli("train.py", "--resume", "--out", "run", "--steps", 9))
    assert Path("run").is_symlink() and (tmp_path / "big disk/last").is_dir()


FAULTS = [errno.EIO, errno.EROFS, errno.EACCES, errno.ESTALE, errno.EDQUOT]
MOMENTS = [(checkpoint, "save", 2), (checkpoint, "save", 4), (Metrics, "write", 2), (report, "samples", 1)]


@pytest.mark.parametrize("code", matrix(FAULTS, [errno.EIO, errno.EROFS]), ids=errno.errorcode.get)
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: f"{moment[1]}-{moment[2]}")
def test_a_fault_of_the_disk_is_one_message_and_the_run_can_go_on(cli, code, moment):
    straight = left(trained(cli, **LINES))
    shutil.rmtree("run")

    def fail() -> None:
        """From here on nothing is flushed or renamed."""

        def broken(*args, **kwargs):
            raise OSError(code, os.strerror(code))

        os.fsync = os.replace = os.rename = broken

    with at_call(*moment, fail):
        ended = cli("train.py", *quick(**LINES))
    refused(ended, os.strerror(code), "run/")
    ok(cli("train.py", "--resume", "--out", "run"))
    assert left(Path("run")) == straight


def test_fewer_steps_than_are_done_are_refused(cli):
    run = trained(cli, **LINES)
    before = tree(run)
    refused(cli("train.py", "--resume", "--out", "run", "--steps", 5), "--steps 5 is less than the 6 that run has done")
    assert tree(run) == before


def test_a_folder_that_cannot_be_opened_is_not_flushed(cli, monkeypatch):
    """As on Windows."""
    original = os.open

    def without_folders(path, *args, **kwargs):
        if isinstance(path, str | Path) and os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", without_folders)
    monkeypatch.setattr(shutil, "_use_fd_functions", False)  # rmtree does not open folders there
    straight = left(trained(cli, **LINES))
    ok(cli("train.py", *quick(**LINES, overwrite=True)))
    assert left(Path("run")) == straight


def test_a_rename_is_tried_again_while_somebody_reads(tmp_path, monkeypatch):
    """On Windows a file that is open cannot be replaced."""
    original, refusals = os.replace, [PermissionError(errno.EACCES, "open elsewhere")] * 3

    def replace(*args):
        if refusals:
            raise refusals.pop()
        original(*args)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(disk, "PAUSE", 0)
    disk.replace_file(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new" and not refusals


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
)
SCHEMA = {"a": Whole(1, 9), "b?": [(str, None)], "c": {"a?": float}}


@given(VALUES)
@settings(max_examples=300, deadline=None)
def test_what_passes_a_schema_is_as_it_says(value):
    try:
        parse_json(json.dumps(value), "x.json", SCHEMA)
    except UserError as error:
        assert str(error).startswith("x.json is damaged: ")
        fits = False
    else:
        fits = True
    wanted = isinstance(value, dict) and type(value.get("a")) is int and 1 <= value["a"] <= 9
    wanted = wanted and isinstance(value.get("c"), dict)
    with contextlib.suppress(KeyError):
        wanted = wanted and isinstance(value["b"], list) and all(x is None or isinstance(x, str) for x in value["b"])
    with contextlib.suppress(KeyError):
        number = value["c"]["a"] if wanted else 0
        wanted = wanted and type(number) in (int, float) and abs(number) < 1e308
    assert fits == bool(wanted) or "NaN" in json.dumps(value) or "Infinity" in json.dumps(value)


def test_a_run_that_moved_with_its_text_goes_on(cli, tmp_path):
    straight = left(trained(cli, **LINES))
    shutil.rmtree(Path(os.environ["CHARLM_CACHE"], "prepared"))
    (tmp_path / "names.txt").rename(tmp_path / "people.txt")
    refused(cli("train.py", "--resume", "--out", "run"), "names.txt", "--data says where it is")
    ok(cli("train.py", "--resume", "--out", "run", "--data", "people.txt"))
    assert left(Path("run")) == straight
    assert json.loads(Path("run/config.json").read_text())["config"]["data"] == "people.txt"
    refused(cli("train.py", "--resume", "--out", "run", "--data", "text.txt"), "is not the one the run began with")
    ok(cli("train.py", "--resume", "--out", "run", "--steps", 9))


def test_an_edited_text_is_told_and_the_run_goes_on_with_the_old_one(cli, names):
    run = trained(cli, **LINES)
    ok(cli("-m data.prepare", "--data", "names.txt", "--kind", "lines"))
    names.write_text(names.read_text() + "zz\n")
    told = warnings_of(ok(cli("train.py", "--resume", "--out", "run", "--steps", 9)))
    assert [line for line in told if "names.txt has changed since the run began" in line]
    assert metrics(run)[-1]["step"] == 9
    shutil.rmtree(Path(os.environ["CHARLM_CACHE"], "prepared"))
    refused(cli("train.py", "--resume", "--out", "run", "--steps", 12), "names.txt has changed since the run began")


@pytest.mark.parametrize("which", ["best", "last"])
def test_a_checkpoint_of_another_run_of_the_same_sizes_is_noticed(cli, tmp_path, which):
    ok(cli("train.py", *quick(**LINES, out="other", seed=2)))
    run = trained(cli, **LINES)
    shutil.rmtree(run / which)
    shutil.copytree(tmp_path / "other" / which, run / which)
    told = f"run/{which} is the checkpoint of another run than run/config.json"
    refused(cli("train.py", "--resume", "--out", "run", "--steps", 9), told)
    refused(cli("sample.py", "run", "--checkpoint", which), told)


def test_the_frozen_weights_of_another_run_are_noticed(cli, tmp_path):
    lines = [json.dumps({"prompt": f"{n}", "completion": "b"}) for n in range(40)]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    tiny = ["--data", "x.jsonl", "--steps", 2, "--batch-size", 4]
    sizes = ["--tokenizer", "byte", "--n-layer", 1, "--n-head", 1, "--n-embd", 8]
    for seed in (1, 2):
        ok(cli("-m finetune.instruct", *tiny, *sizes, "--seed", seed, "--out", f"parent{seed}"))
        lora = ["--init", f"parent{seed}", "--train", "lora", "--out", f"run{seed}"]
        ok(cli("-m finetune.instruct", *tiny, *lora))
    shutil.rmtree("run1/base")
    refused(cli("sample.py", "run1", "--prompt", "1"), "run1/base is not there")
    shutil.copytree("run2/base", "run1/base")
    refused(cli("sample.py", "run1", "--prompt", "1"), "run1/base is the checkpoint of another run")


@pytest.mark.parametrize("is_done", [True, False])
def test_minutes_may_end_a_run_that_had_steps(cli, is_done):
    trained(cli, **LINES)
    if is_done:
        told = cli("train.py", "--resume", "--out", "run", "--minutes", 1e-9)
        refused(told, "--minutes 1e-09, but run has used", "give more")
    else:
        ok(cli("train.py", "--resume", "--out", "run", "--minutes", 0.01))
        assert metrics("run")[-1]["step"] > 6


@pytest.mark.parametrize("flags", [["--eval-only", "--out", "run"], ["--help"]], ids=str)
def test_what_a_command_is_asked_to_print_is_not_lost_in_silence(cli, monkeypatch, flags):
    trained(cli, **LINES)
    command = ["bash", "-c", f"'{sys.executable}' '{ROOT / 'train.py'}' {' '.join(flags)} > /dev/full"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode != 0 and "No space left on device" in ended.stderr


HUGE = [["--config", "deep.json"], ["--config", "huge.json"], ["--eval-tokens", "1" + "0" * 400]]


@pytest.mark.parametrize("flags", HUGE, ids=["deep", "huge", "many"])
def test_a_flag_that_no_number_can_hold_is_refused(cli, tmp_path, flags):
    (tmp_path / "deep.json").write_text(NESTED)
    (tmp_path / "huge.json").write_text('{"lr": 1' + "0" * 400 + "}")
    refused(cli("train.py", *quick(**LINES), *flags), flags[0] if "eval" in flags[0] else flags[1])
    assert not Path("run").exists()
