"""Run directories that are none, that exist, and that do not fit: nothing is lost."""

from pathlib import Path

import pytest

from tests.helpers import LINES, STREAM, metrics, ok, quick, refused, trained, tree, words_of

pytestmark = pytest.mark.usefixtures("names", "text")  # names.txt and text.txt stand where the commands run


def files(path: Path) -> dict:
    return tree(path) if path.is_dir() else {"": path.read_bytes()} if path.exists() else {}


NOT_A_RUN = ["nowhere", "empty", "other", "names.txt", "run/best", "x" * 300]


@pytest.mark.parametrize("path", NOT_A_RUN, ids=lambda path: path[:12])
@pytest.mark.parametrize(
    "command",
    [["train.py", "--resume", "--out"], ["train.py", "--eval-only", "--out"], ["train.py", "--init"], ["sample.py"]],
    ids=" ".join,
)
def test_what_is_not_a_run_is_refused_and_left_alone(cli, tmp_path, command, path):
    trained(cli, **LINES)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.txt").write_text("mine")
    before = tree(tmp_path)
    refused(cli(*command, path), path)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("out", ["other", "names.txt"])
def test_overwriting_what_is_not_a_run_leaves_it_alone(cli, tmp_path, out):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").write_text("mine")
    before = files(tmp_path / out)
    refused(cli("train.py", *quick(**LINES, out=out, overwrite=True)), out, "not a run directory")
    refused(cli("train.py", *quick(**LINES, out=out)), out, "already exists")
    assert files(tmp_path / out) == before


def test_a_run_is_replaced_only_when_asked_and_nothing_else_in_its_folder(cli, tmp_path):
    run = trained(cli, **LINES)
    (run / "thesis.txt").write_text("mine")
    before = tree(run)
    refused(cli("train.py", *quick(**LINES)), "run already exists", "--resume", "--overwrite")
    assert tree(run) == before
    ok(cli("train.py", *quick(**STREAM, overwrite=True, steps=2)))
    assert (run / "thesis.txt").read_text() == "mine" and [line["step"] for line in metrics(run)] == [0, 2]


@pytest.mark.parametrize(
    "flags, words",
    [
        ({"log": "wandb"}, ["pip install wandb"]),
        ({"context": 10**9}, ["context"]),
        ({"data": "nowhere"}, ["nowhere"]),
        ({"activation": "swiglu"}, ["swiglu"]),
        ({"init": "run/best"}, ["run/best"]),
        ({"device": "gpu"}, ["gpu"]),
    ],
    ids=str,
)
def test_a_mistake_beside_overwrite_loses_no_run(cli, tmp_path, flags, words):
    run = trained(cli, **STREAM)
    before = tree(run)
    refused(cli("train.py", *quick(**STREAM | flags, overwrite=True)), *words)
    assert tree(run) == before


@pytest.mark.parametrize("out", ["/proc/run", "names.txt/run", "x" * 300], ids=lambda out: out[:14])
def test_an_impossible_run_directory_is_refused(cli, out):
    refused(cli("train.py", *quick(**LINES, out=out)), f"cannot make the run directory {out}", "--out")


@pytest.mark.parametrize("cache", ["/proc/cache", "names.txt"])
def test_an_impossible_cache_is_refused(cli, tmp_path, cache):
    (tmp_path / "new.txt").write_text("never prepared before " * 20)
    refused(cli("train.py", *quick(data="new.txt", context=8), env={"CHARLM_CACHE": cache}), cache, "$CHARLM_CACHE")
    assert not Path("run").exists()


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--model", "gru"], ["--model gru (the run has mlp)"]),
        (["--n-embd", 99], ["--n-embd 99 (the run has 8)"]),
        (["--tokenizer", "byte"], ["--tokenizer byte"]),
    ],
    ids=words_of,
)
def test_a_run_that_starts_from_another_is_of_its_kind(cli, tmp_path, flags, words):
    trained(cli, **LINES)
    refused(cli("train.py", "--init", "run", "--data", "text.txt", "--steps", 2, "--out", "new", *flags), *words)
    assert not Path("new").exists()


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--steps", 9], ["--steps 9"]),
        (["--preset", "makemore"], ["--preset"]),
        (["--config", "run/config.json"], ["--config"]),
        (["--kind", "stream"], ["--kind"]),
        (["--encoding", "latin-1"], ["--encoding"]),
        (["--compile", "on"], ["--compile"]),
        (["--data", "text.txt", "--val-data", "text.txt"], ["--data", "--val-data"]),
        (["--data", "-"], ["standard input is empty"]),
    ],
    ids=words_of,
)
def test_evaluating_refuses_what_it_has_no_use_for(cli, tmp_path, flags, words):
    run = trained(cli, **LINES)
    before = tree(run)
    refused(cli("train.py", "--eval-only", "--out", "run", *flags), *words)
    assert tree(run) == before
