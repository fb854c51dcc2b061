"""Mistakes on the command line and in files: one readable message, exit code 2, nothing lost and nothing half made."""

import json
import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from data.build import Builder
from engine import checkpoint, folder, report
from engine.metrics import Metrics
from tests.conftest import NAMES
from tests.helpers import at_call, left, metrics, ok, quick, refused, trained, tree, warnings_of

LINES = {"data": "names.txt", "kind": "lines"}
STREAM = {"data": "text.txt", "context": 12}


@pytest.fixture(autouse=True)
def texts(names, text):
    """names.txt and text.txt stand where the commands run."""


def words_of(case) -> str:
    return " ".join(map(str, case))[:60] if isinstance(case, list) else ""


# ---- flags


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--model", "lstmm"], ["unknown model 'lstmm'", "Did you mean 'lstm'?"]),
        (["--optimizer", "adm"], ["unknown optimizer 'adm'", "Did you mean 'adam'?"]),
        (["--schedule", "cosin"], ["unknown schedule 'cosin'", "Did you mean 'cosine'?"]),
        (["--preset", "makemor"], ["unknown preset 'makemor'", "Did you mean 'makemore'?"]),
        (["--tokenizer", "chars"], ["unknown tokenizer 'chars'", "Did you mean 'char'?"]),
        (["--data", "shakespear"], ["'shakespear'", "Did you mean 'shakespeare'?"]),
        (["--device", "gpu"], ["unknown device 'gpu'", "Did you mean 'cpu'?"]),
        (["--device", "cpu:x"], ["--device cpu:x"]),
        (["--encoding", "utf9"], ["unknown encoding 'utf9'", "Did you mean 'utf-8'?"]),
        (["--encoding", "hex"], ["unknown encoding 'hex'"]),
        (["--encoding", "undefined"], ["unknown encoding 'undefined'"]),
        (["--kind", "line"], ["--kind", "'line'", "lines"]),
        (["--norm", "batchnorm"], ["--norm", "'batchnorm'", "batch"]),
        (["--optimzer", "adam"], ["--optimzer", "--optimizer"]),
        (["--leraning-rate", 0.1], ["--leraning-rate"]),
        (["-model", "lstm"], ["-model"]),
        (["names.txt"], ["names.txt"]),
        (["--steps"], ["--steps"]),
        (["--steps", "1e3"], ["--steps", "'1e3'"]),
        (["--steps", "many"], ["--steps", "'many'"]),
        (["--batch-size", 4.5], ["--batch-size", "'4.5'"]),
        (["--lr", "0,001"], ["--lr", "'0,001'"]),
        (["--steps", 0], ["--steps is 0", "at least 1"]),
        (["--steps", -5], ["--steps is -5"]),
        (["--batch-size", 0], ["--batch-size is 0"]),
        (["--context", 0], ["--context is 0"]),
        (["--context=-1"], ["--context is -1"]),
        (["--n-layer", 0], ["--n-layer is 0"]),
        (["--grad-accum", 0], ["--grad-accum is 0"]),
        (["--eval-interval", 0], ["--eval-interval is 0"]),
        (["--patience", 0], ["--patience is 0"]),
        (["--warmup", -1], ["--warmup is -1"]),
        (["--seed", -1], ["--seed is -1"]),
        (["--seed", 10**20], ["--seed is 100000000000000000000"]),
        (["--lr", 0], ["--lr is 0"]),
        (["--lr", -0.1], ["--lr is -0.1"]),
        *(
            ([f"--{name}", value], [f"--{name} is {value}"])
            for name in ("lr", "weight-decay", "grad-clip", "lr-floor", "dropout", "label-smoothing", "beta1", "beta2")
            for value in ("nan", "inf")
        ),
        (["--dropout", 1.5], ["--dropout is 1.5", "below 1"]),
        (["--dropout", -0.1], ["--dropout is -0.1"]),
        (["--label-smoothing", 1], ["--label-smoothing is 1.0"]),
        (["--lr-floor", 5], ["--lr-floor is 5.0"]),
        (["--n-embd", 10, "--n-head", 3], ["n_embd 10", "not divisible", "n_head 3"]),
        (["--n-kv-head", 3], ["n_kv_head 3", "not divisible"]),
        (["--positions", "rope", "--n-embd", 12, "--n-head", 4], ["RoPE", "3", "even"]),
        (["--optimizer", "adamw", "--momentum", 0.5], ["--momentum", "--optimizer adamw"]),
        (["--model", "gru", "--muon-lr", 0.1], ["--muon-lr", "--optimizer adamw"]),
        (["--optimizer", "sgd", "--beta1", 0.5], ["--beta1", "--optimizer sgd"]),
        (["--schedule", "constant", "--lr-floor", 0.5], ["--lr-floor", "--schedule constant"]),
        (["--order", 3], ["--order", "--model transformer"]),
        (["--counts"], ["--counts", "--model transformer"]),
        (["--model", "lstm", "--n-head", 2], ["--n-head", "--model lstm", "--n-hidden"]),
        (["--model", "lstm", "--counts"], ["--counts means nothing to --model lstm;"]),
        (["--model", "lstm", "--activation", "relu"], ["--activation", "--model lstm"]),
        (["--model", "rnn", "--activation", "silu"], ["silu", "--cells written"]),
        (["--model", "mlp", "--activation", "swiglu"], ["swiglu", "--model mlp"]),
        (["--model", "bigram", "--dropout", 0.1], ["--dropout", "--model bigram"]),
        (["--model", "ngram", "--lr", 0.1], ["--lr", "--model ngram"]),
        (["--model", "ngram", "--steps", 9, "--optimizer", "sgd"], ["--optimizer", "--steps", "--model ngram"]),
        (["--model", "bigram", "--counts", "--batch-size", 8], ["--batch-size", "--counts"]),
        (["--model", "mlp", "--carry-state"], ["--carry-state", "--model mlp"]),
        (["--model", "lstm", "--carry-state", "--kind", "lines"], ["--carry-state", "--kind stream"]),
        (["--checkpoint", "best"], ["--checkpoint", "--resume"]),
        (["--resume"], ["--resume"]),
        (["--eval-only"], ["--eval-only"]),
        (["--data", "no such file.txt"], ["'no such file.txt'"]),
        (["--data", "https://example.org/a.txt"], ["'https://example.org/a.txt'"]),
        (["--data", "once upon a time " * 300], ["no such file", "'once upon a time"]),
        (["--data", "~$names.txt"], ["'~$names.txt'"]),
        (["--data", ""], ["''"]),
        (["--data", "/dev/null"], ["/dev/null", "--data -"]),
        (["--val-data", "no such file.txt"], ["'no such file.txt'"]),
        (["--data", "-", "--val-data", "-"], ["standard input"]),
        (["--data", "-"], ["standard input is empty"]),
        (["--config", "nowhere.json"], ["nowhere.json", "No such file"]),
        (["--config", "text.txt"], ["text.txt is not JSON"]),
        (["--config", "."], ["--config .", "directory"]),
        (["--init", "nowhere"], ["nowhere"]),
        (["--log", "wandb"], ["pip install wandb"]),
        (["--n-embd", 8 * 10**10], ["memory"]),
    ],
    ids=words_of,
)
def test_a_wrong_flag_is_refused_before_anything_is_made(cli, flags, words):
    data = [] if "--data" in flags else ["--data", "text.txt"]
    out = [] if flags[0] in ("--resume", "--eval-only") else ["--out", "run"]
    refused(cli("train.py", *data, *out, *flags), *words)
    assert not Path("run").exists() and not Path("runs").exists()


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"n_layers": 2}, ["n_layers", "Did you mean 'n_layer'?"]),
        ({"optimizer": "adm"}, ["optimizer", "'adm'"]),
        ({"schedule": "cosin"}, ["schedule", "'cosin'"]),
        ({"norm": "x"}, ["norm", "'x'"]),
        ({"compile": "maybe"}, ["compile", "'maybe'"]),
        ({"steps": "many"}, ["steps", "'many'"]),
        ({"n_layer": 2.5}, ["n_layer", "2.5"]),
        ({"lr": None}, ["lr", "None"]),
        ({"lr": -1.0}, ["lr", "-1.0"]),
        ({"model": 3}, ["model", "3"]),
        ({"data": 3}, ["data", "3"]),
        ([1, 2], ["configuration"]),
    ],
    ids=str,
)
def test_a_config_file_with_wrong_settings_is_refused(cli, tmp_path, settings, words):
    (tmp_path / "my.json").write_text(json.dumps(settings))
    refused(cli("train.py", "--out", "run", "--config", "my.json"), *words)
    assert not Path("run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there_is_refused(cli):
    refused(cli("train.py", "--data", "text.txt", "--out", "run", "--device", "cuda"), "--device cuda", "--device auto")
    assert not Path("run").exists()


# ---- texts


@pytest.mark.parametrize("kind", ["stream", "lines"])
@pytest.mark.parametrize(
    "content, words",
    [
        (b"", ["empty"]),
        (b" \n\t\n  ", ["odd.txt"]),
        (b"\xef\xbb\xbf", ["odd.txt"]),
        (b"caf\xe9\n" * 99, ["not utf-8", "offset 3", "--encoding latin-1"]),
        (b"a\n" * 2_100_000 + b"\xff", ["not utf-8", "offset 4200000"]),
        ("grüße\n".encode("utf-16") * 9, ["--encoding utf-16"]),
        (b"a\0b\n" * 9, ["NUL bytes"]),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", ["odd.txt"]),
        (b"a\n", ["odd.txt"]),
    ],
    ids=["empty", "blank", "bom", "latin-1", "late", "utf-16", "nul", "png", "short"],
)
def test_a_text_that_is_none_is_refused(cli, tmp_path, content, words, kind):
    (tmp_path / "odd.txt").write_bytes(content)
    refused(cli("train.py", "--data", "odd.txt", "--kind", kind, "--out", "run"), "odd.txt", *words)
    assert not Path("run").exists()


@pytest.mark.parametrize("flags", [{"val_data": "cjk.txt"}, {"data": "cjk.txt", "init": "run"}], ids=str)
def test_a_text_of_which_nothing_is_in_the_vocabulary_is_refused(cli, tmp_path, flags):
    """There is no loss over nothing, and surely none of 0."""
    (tmp_path / "cjk.txt").write_text("猫猫猫犬犬犬" * 99, "utf-8")
    trained(cli, **STREAM)
    flags = {"data": "text.txt"} | flags | {"out": "new", "steps": 2}
    refused(cli("train.py", *(f"--{n.replace('_', '-')}={v}" for n, v in flags.items())), "cjk.txt", "vocabulary")
    refused(cli("train.py", "--eval-only", "--out", "run", "--val-data", "cjk.txt"), "cjk.txt", "vocabulary")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_named_encoding_helps(cli, tmp_path, encoding):
    (tmp_path / "odd.txt").write_bytes("grüße aus köln\n".encode(encoding) * 20)
    ok(cli("train.py", *quick(data="odd.txt", context=4, encoding=encoding)))
    assert "ü" in json.loads((tmp_path / "run/tokenizer.json").read_text())["characters"]


def test_a_single_line_is_no_lines(cli, tmp_path):
    (tmp_path / "one.txt").write_text("all on one line\n")
    refused(cli("train.py", *quick(data="one.txt", kind="lines")), "one.txt", "only one distinct line", "--kind stream")


def test_a_folder_without_text_is_refused(cli, tmp_path):
    (tmp_path / "photos").mkdir()
    refused(cli("train.py", "--data", "photos", "--out", "run"), "photos", "no files")
    (tmp_path / "photos/a.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "photos/.hidden.txt").write_text("hidden")
    refused(cli("train.py", "--data", "photos", "--out", "run"), "photos", "no utf-8 text", "1 files")
    assert not Path("run").exists()


def test_a_text_shorter_than_the_context_says_what_fits(cli, tmp_path):
    (tmp_path / "short.txt").write_text("abcdefghij" * 10)
    refused(
        cli("train.py", *quick(data="short.txt", context=300)), "90 tokens", "context of 300", "context that fits is 89"
    )
    assert not Path("run").exists()
    ok(cli("train.py", *quick(data="short.txt", context=89)))


def test_too_many_lanes_say_how_many_fit(cli, tmp_path):
    (tmp_path / "short.txt").write_text("abcdefghij" * 10)
    flags = {"data": "short.txt", "context": 20, "carry_state": True}
    refused(cli("train.py", *quick("lstm", **flags, batch_size=5)), "90 tokens", "--batch-size that fits is 4")
    ok(cli("train.py", *quick("lstm", **flags, batch_size=4)))


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfanna\nnan\nana\nnaan\n",
        b"anna\r\nnan\r\nana\r\nnaan\r\n",
        b"anna  \nnan\t\n\n  \nana \nnaan",
    ],
    ids=["bom", "crlf", "blanks"],
)
def test_the_ways_of_writing_lines_make_no_difference(cli, tmp_path, content):
    for name, text in (("odd", content), ("plain", b"anna\nnan\nana\nnaan\n")):
        (tmp_path / f"{name}.txt").write_bytes(text)
        assert ok(cli("train.py", *quick(data=f"{name}.txt", kind="lines", out=name))).err == ""
    assert left(tmp_path / "odd") == left(tmp_path / "plain")


def test_windows_line_ends_make_no_difference_in_a_stream(cli, tmp_path, text):
    (tmp_path / "odd.txt").write_bytes(text.read_bytes().replace(b"\n", b"\r\n"))
    ok(cli("train.py", *quick(**STREAM | {"data": "odd.txt", "out": "odd"})))
    assert left(tmp_path / "odd") == left(trained(cli, **STREAM))


@pytest.mark.parametrize("name", ["猫", "a$\\q$", "a run [1] *", "-"])
def test_any_name_will_do_for_a_run(cli, name):
    assert ok(cli("train.py", *quick(**STREAM, out=name))).err == ""
    ok(cli("sample.py", "--seed", 1, "--", name) if name == "-" else cli("sample.py", name, "--seed", 1))


@pytest.mark.parametrize(
    "content", ["a line of ten megabytes " * 436_907, "猫が好き🙂👩‍👩‍👧 и кошка\n" * 60, "the cat " * 60 + "\n"],
    ids=["ten megabytes", "emoji and CJK", "a line end at the very end"],
)  # fmt: skip
def test_an_unusual_text_is_taken_without_a_word(cli, tmp_path, content):
    (tmp_path / "odd.txt").write_text(content, "utf-8")
    words = ["never occur"] if content.count("\n") == 1 else []
    result = ok(cli("train.py", *quick("bigram", data="odd.txt", context=8, steps=2)))
    assert [word for word in words if word in result.err] == words and len(warnings_of(result)) == len(words)
    assert ok(cli("sample.py", "run", "--max-new-tokens", 20, "--seed", 1)).err == ""


@pytest.mark.parametrize(
    "content, flags, warning",
    [
        ("the cat sat\n" * 60 + "ÄÖ", {"context": 8}, "2 characters of the validation text (2 distinct: 'Ä' 'Ö')"),
        ("anna\nnan\nanna\nana\nnan\nanna\nnaan\n", {"kind": "lines"}, "3 of 7 lines are duplicates"),
        ("anna\nnan\nanananana\nnaan\n", {"kind": "lines", "context": 6}, "1 of 4 lines are longer than the context"),
    ],
    ids=["unseen", "duplicates", "long"],
)
def test_one_warning_that_counts(cli, tmp_path, content, flags, warning):
    (tmp_path / "odd.txt").write_text(content, "utf-8")
    (told,) = warnings_of(ok(cli("train.py", *quick(data="odd.txt", **flags))))
    assert warning in told


def test_files_of_a_folder_that_are_not_text_are_counted_each_time(cli, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("the cat sat on the mat\n" * 9)
    assert warnings_of(ok(cli("train.py", *quick(data="notes", context=8, out="first")))) == []
    (tmp_path / "notes/b.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "notes/c.zip").write_bytes(b"PK\3\4\0\0")
    (told,) = warnings_of(ok(cli("train.py", *quick(data="notes", context=8))))
    assert "2 of the 3 files in notes" in told


# ---- runs


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


# ---- damaged files of a run


def rewrite(path: Path, change) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


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


# ---- sampling


@pytest.mark.parametrize(
    "flags, words",
    [
        ([], []),
        (["--prompt", "anné"], ["'é'", "position 3", "vocabulary of 2", "--unknown skip"]),
        (["--prompt", "a\nb"], ["--prompt", "line end"]),
        (["--prompt", "@nowhere.txt"], ["nowhere.txt", "--prompt", "No such file"]),
        (["--prompt", "@latin.txt"], ["latin.txt", "not UTF-8", "offset 3"]),
        (["--prompt", "two", "words"], ["words"]),
        (["--temperature", -1], ["--temperature is -1"]),
        (["--temperature", "nan"], ["--temperature is nan"]),
        (["--temperature", "inf"], ["--temperature is inf"]),
        (["--temperature", "warm"], ["--temperature", "'warm'"]),
        (["--top-p", 0], ["--top-p is 0"]),
        (["--top-p", 1.5], ["--top-p is 1.5"]),
        (["--top-p", "nan"], ["--top-p is nan"]),
        (["--top-k", 0], ["--top-k is 0"]),
        (["--min-p", 2], ["--min-p is 2"]),
        (["--repetition-penalty", 0], ["--repetition-penalty is 0"]),
        (["--num", 0], ["--num is 0"]),
        (["--num", -3], ["--num is -3"]),
        (["--max-new-tokens", 0], ["--max-new-tokens is 0"]),
        (["--seed", 10**20], ["--seed is 100000000000000000000"]),
        (["--stop", ""], ["--stop is empty"]),
        (["--stream", "--json"], ["--stream", "--json"]),
        (["--checkpoint", "newest"], ["--checkpoint", "'newest'"]),
        (["--device", "gpu"], ["'gpu'"]),
        (["--score", ""], ["nothing to score"]),
        (["--score", "@empty.txt"], ["nothing to score"]),
        (["--score", "éé", "--unknown", "skip"], ["nothing to score"]),
        (["--score", "éé"], ["'é'", "position 0"]),
        (["--score", "anna", "--stream"], ["--stream", "--score"]),
        (["--score", "anna", "--prompt", "a"], ["--prompt", "--score"]),
        (["--score", "anna", "--seed", 0], ["--seed", "--score"]),
        (["--score", "anna", "--temperature", 0.5], ["--temperature", "--score"]),
    ],
    ids=words_of,
)
def test_a_wrong_way_of_sampling_is_refused(cli, tmp_path, flags, words):
    trained(cli, **LINES)
    (tmp_path / "latin.txt").write_bytes(b"ann\xe9")
    (tmp_path / "empty.txt").touch()
    refused(cli("sample.py", *(["run", *flags] if flags else [])), *words)


@pytest.mark.parametrize("flags", [["--temperature", 1e-50], ["--temperature", 1000], ["--top-p", 1e-50]], ids=words_of)
def test_extreme_but_sensible_numbers_sample(cli, flags):
    trained(cli, **LINES)
    assert len(ok(cli("sample.py", "run", "--seed", 1, *flags)).out.splitlines()) == 10


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_a_prompt_in_another_encoding_is_no_crash(cli, tokenizer):
    trained(cli, **LINES, tokenizer=tokenizer)
    ok(cli("sample.py", "run", "--prompt", "ann\udce9", "--unknown", "skip"))


def test_a_file_name_in_another_encoding_is_no_crash(cli):
    name = os.fsdecode(b"na\xefve.txt")
    Path("text.txt").rename(name)
    ok(cli("train.py", *quick(**STREAM | {"data": name, "out": os.fsdecode(b"caf\xe9")})))
    ok(cli("sample.py", os.fsdecode(b"caf\xe9"), "--seed", 1))


def test_a_terminal_that_cannot_show_a_character_is_no_crash(cli, process, tmp_path):
    (tmp_path / "cjk.txt").write_text("猫が好き\n" * 60, "utf-8")
    trained(cli, data="cjk.txt", context=8)
    out, err = process("sample.py", "run", "--prompt", "猫", env={"PYTHONIOENCODING": "ascii"}).communicate()
    assert err == "" and len(out) > 500


@pytest.mark.parametrize("word", ["--score", "--prompt"])
def test_nothing_that_the_model_of_a_stream_knows(cli, word):
    trained(cli, **STREAM)
    result = cli("sample.py", "run", word, "€€", "--unknown", "skip", *(["--seed", 1] if word == "--prompt" else []))
    ok(result) if word == "--prompt" else refused(result, "nothing to score")


# ---- a full disk


def limit_file_size() -> None:
    """From here on no file of this process may grow past 2,000 bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_a_save_that_does_not_fit_loses_nothing(cli, tmp_path, nth):
    straight = left(trained(cli, "lstm", **STREAM))
    shutil.rmtree("run")
    with at_call(checkpoint, "save", nth, limit_file_size):
        refused(cli("train.py", *quick("lstm", **STREAM)), "free some space")
    assert not list(Path("run").glob("*.new")), "the space is given back"
    if nth > 2:
        ok(cli("sample.py", "run", "--seed", 1))
    ok(cli("train.py", "--resume", "--out", "run"))
    assert left(tmp_path / "run") == straight


def test_a_text_that_does_not_fit_into_the_cache(cli, tmp_path):
    (tmp_path / "big.txt").write_text("".join(NAMES) * 99)
    flags = quick("bigram", data="big.txt", context=8, steps=1)
    with at_call(Builder, "write", 1, limit_file_size):
        refused(cli("train.py", *flags), "free some space")
    assert not Path("run").exists()
    ok(cli("train.py", *flags))


@pytest.fixture
def disk(tmp_path):
    """A disk of 1 MB, and how to fill it."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"cannot mount a small disk here: {mount.stderr.strip()}")
    yield path
    subprocess.run(["umount", path], check=True)


MOMENTS = [
    (folder, "create", 1), (checkpoint, "save", 1), (checkpoint, "save", 2), (checkpoint, "save", 3),
    (Metrics, "write", 2), (report, "samples", 1), (report, "write_summary", 1), (report, "draw_loss", 1),
]  # fmt: skip


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: f"{moment[1]}-{moment[2]}")
def test_a_disk_that_is_full_from_some_moment_on(cli, disk, moment):
    def fill() -> None:
        with open(disk / "filler", "wb", buffering=0) as filler:
            try:
                while filler.write(bytes(512)):
                    pass
            except OSError:
                pass

    flags = quick("lstm", **LINES, out="disk/run")
    with at_call(*moment, fill):
        refused(cli("train.py", *flags), "free some space")
    os.unlink(disk / "filler")
    if (disk / "run/config.json").exists():
        ok(cli("train.py", "--resume", "--out", "disk/run"))
    else:
        assert not (disk / "run").exists()
        ok(cli("train.py", *flags))
    shutil.rmtree("run", ignore_errors=True)
    assert left(disk / "run") == left(trained(cli, "lstm", **LINES))
