"""Damaged files of a run: named, and never taken for good."""

import json
import shutil
from pathlib import Path

import pytest

from tests.helpers import (
    LINES,
    ok,
    quick,
    refused,
    trained,
    tree,
)

pytestmark = pytest.mark.usefixtures("names", "text")  # names.txt and text.txt stand where the commands run


def rewrite(path: Path, change) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def drop_identity(checkpoint: Path) -> None:
    (checkpoint / "belongs_to.json").unlink()
    rewrite(checkpoint / "manifest.json", lambda files: {n: f for n, f in files.items() if n != "belongs_to.json"})


@pytest.mark.parametrize("name", ["model.safetensors", "facts.json", "manifest.json"])
@pytest.mark.parametrize(
    "damage", [flip, truncate, Path.unlink, lambda path: path.write_bytes(b""), lambda path: path.write_text("[]")],
    ids=["flipped", "truncated", "missing", "empty", "foreign"],
)  # fmt: skip
def test_a_damaged_checkpoint_is_named_and_the_other_one_only_taken_when_asked(cli, tmp_path, name, damage):
    run = trained(cli, **LINES)
    damage(run / "best" / name)
    refused(cli("sample.py", "run"), f"run/best/{name}", "--checkpoint last takes the other one")
    ok(cli("sample.py", "run", "--num", 1, "--checkpoint", "last"))
    if damage is flip:
        refused(cli("train.py", "--eval-only", "--out", "run"), f"run/best/{name}")
        refused(cli("train.py", "--init", "run", **{}), f"run/best/{name}")


@pytest.mark.parametrize(
    "manifest", [{"model.safetensors": {}, "facts.json": {}}, {"facts.json": {"size": "x"}}, {"facts.json": 3}, {}, 3],
    ids=str,
)  # fmt: skip
def test_a_manifest_of_anything_else_is_refused(cli, manifest):
    run = trained(cli, **LINES)
    (run / "best/manifest.json").write_text(json.dumps(manifest))
    refused(cli("sample.py", "run"), "run/best/")


FOREIGN = [("mlp", "mlp", {"n_embd": 9}), ("mlp", "lstm", {}), ("ngram", "mlp", {}), ("mlp", "ngram", {})]


@pytest.mark.parametrize("model, foreign, sizes", FOREIGN, ids=str)
def test_the_checkpoint_of_another_model_is_refused(cli, tmp_path, model, foreign, sizes):
    for out, family, flags in (("run", model, {}), ("other", foreign, sizes)):
        words = ["--model", "ngram", "--out", out] if family == "ngram" else quick(family, out=out, **flags)
        ok(cli("train.py", *words, "--data", "names.txt", "--kind", "lines"))
    shutil.rmtree(tmp_path / "run/best")
    shutil.copytree(tmp_path / "other/best", tmp_path / "run/best")
    refused(cli("sample.py", "run"), "run/best is the checkpoint of another run than run/config.json")
    drop_identity(tmp_path / "run/best")  # as checkpoints of format 1 are
    refused(cli("sample.py", "run"), "run/best is not a checkpoint of this run's model")


@pytest.mark.parametrize(
    "name, damage, words",
    [
        ("config.json", Path.unlink, ["config.json"]),
        ("config.json", truncate, ["run/config.json"]),
        ("config.json", lambda path: path.write_text("[]"), ["run/config.json"]),
        ("config.json", lambda path: path.write_text("{}"), ["run/config.json"]),
        ("config.json", lambda path: path.write_bytes(b"\xff"), ["run/config.json"]),
        ("config.json", lambda path: rewrite(path, lambda c: c | {"format": 99}), ["run/config.json", "99"]),
        ("config.json", lambda path: rewrite(path, lambda c: c | {"data": {}}), ["run/config.json"]),
        ("config.json", lambda path: rewrite(path, lambda c: c | {"vocab_size": "x"}), ["run/config.json"]),
        ("config.json", lambda path: rewrite(path, lambda c: c | {"config": 3}), ["run/config.json"]),
        ("config.json", lambda path: rewrite(path, lambda c: c | {"config": {}}), ["run/config.json"]),
        ("config.json", lambda path: set_(path, n_layer="1"), ["run/config.json", "n_layer"]),
        ("config.json", lambda path: set_(path, n_layer=0), []),
        ("config.json", lambda path: set_(path, model="lst"), ["run/config.json", "model", "lst"]),
        ("config.json", lambda path: set_(path, n_layers=2), ["run/config.json", "n_layers"]),
        ("config.json", lambda path: set_(path, n_embd=9), []),
        ("config.json", lambda path: set_(path, context=None), ["run/config.json", "context"]),
        ("config.json", lambda path: set_(path, kind=None), ["run/config.json", "kind"]),
        ("tokenizer.json", Path.unlink, ["run/tokenizer.json"]),
        ("tokenizer.json", truncate, ["run/tokenizer.json"]),
        ("tokenizer.json", lambda path: path.write_text("[]"), ["run/tokenizer.json"]),
        ("tokenizer.json", lambda path: path.write_text('{"type": "char"}'), ["run/tokenizer.json"]),
        ("tokenizer.json", lambda path: path.write_text('{"type": "byte"}'), ["run/tokenizer.json"]),
        ("tokenizer.json", lambda path: path.write_text('{"type": "char", "characters": 3}'), ["run/tokenizer.json"]),
    ],
)
def test_a_run_whose_description_is_damaged_is_refused(cli, tmp_path, name, damage, words):
    run = trained(cli, "transformer", **LINES)
    damage(run / name)
    before = tree(run)
    refused(cli("sample.py", "run"), *words)
    refused(cli("train.py", "--resume", "--out", "run"), *words)
    refused(cli("train.py", "--eval-only", "--out", "run"), *words)
    assert tree(run) == before


def set_(path: Path, **settings) -> None:
    rewrite(path, lambda c: c | {"config": c["config"] | settings})
