"""Several texts at once: one text in their order, in training, preparing and evaluating."""

import json
from pathlib import Path

import pytest

from data.prepare import prepare
from tests.helpers import evaluated, left, ok, quick, refused, trained

pytestmark = pytest.mark.usefixtures("names", "text")  # names.txt and text.txt stand where the commands run


@pytest.fixture
def parts(tmp_path, text) -> list[str]:
    """The text in three files, which end with a line end each."""
    lines = text.read_text().splitlines(keepends=True)
    for n, name in enumerate(("a.txt", "b.txt", "c.txt")):
        (tmp_path / name).write_text("".join(lines[n * 20 : (n + 1) * 20 if n < 2 else None]))
    return ["a.txt", "b.txt", "c.txt"]


def config(run: str = "run") -> dict:
    return json.loads(Path(run, "config.json").read_text())


def test_several_texts_train_as_one(cli, tmp_path, text, parts):
    flags = quick("mlp", context=12)
    told = ok(cli("train.py", "--data", *parts, *flags))
    assert "on a-and-2-more:" in told.out and told.err == ""
    straight = left(tmp_path / "run")
    assert config()["config"]["data"] == parts
    ok(cli("train.py", "--resume", "--out", "run"))
    ok(cli("train.py", "--data", "text.txt", *quick("mlp", context=12, out="one")))
    assert left(tmp_path / "one") == straight
    assert config("one")["config"]["data"] == "text.txt", "as readers of earlier versions expect it"


def test_one_text_in_a_list_is_that_text(text):
    assert prepare([str(text)]).key == prepare(str(text)).key == prepare((str(text),), val_data=None).key


def test_a_run_on_several_texts_goes_on_when_its_prepared_text_is_gone(cli, tmp_path, parts, monkeypatch):
    monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / "cache"))
    ok(cli("train.py", "--data", *parts, *quick("bigram", context=12)))
    ok(cli("-m data.prepare", "--clear"))
    ok(cli("train.py", "--resume", "--out", "run", "--steps", 8))
    Path("b.txt").write_text("other\n")
    ok(cli("-m data.prepare", "--clear"))
    refused(cli("train.py", "--resume", "--out", "run", "--steps", 9), "the text of a.txt, b.txt, c.txt has changed")


def test_a_run_without_a_name_has_that_of_the_first(cli, parts):
    flags = ["--model", "bigram", "--steps", 1, "--context", 8]
    ok(cli("train.py", "--data", *parts, *flags))
    assert Path("runs/bigram-a-and-2-more-1").is_dir()


def test_several_texts_are_prepared_and_evaluated(cli, tmp_path, parts):
    made = ok(cli("-m data.prepare", "--data", *parts, "--val-data", "b.txt", "c.txt"))
    store = prepare(parts, val_data=["b.txt", "c.txt"])
    assert str(store.folder) in made.out
    trained(cli, data="text.txt", context=12)
    both = evaluated(cli, "--val-data", "b.txt", "c.txt")
    del both["peak_memory_mb"]
    Path("both.txt").write_text(Path("b.txt").read_text() + Path("c.txt").read_text())
    one = evaluated(cli, "--val-data", "both.txt")
    assert both == {name: one[name] for name in both}
    assert evaluated(cli, "--data", *parts)["val_tokens"] == evaluated(cli, "--data", "text.txt")["val_tokens"]


def test_folders_and_standard_input_are_among_several(cli, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("one two three\n" * 20)
    (tmp_path / "notes/b.png").write_bytes(b"\x89PNG\0")
    made = ok(cli("-m data.prepare", "--data", "notes", "-", stdin=b"four five six\n" * 20))
    assert "train: 504 tokens" in made.out and "val: 56 tokens" in made.out and "(b.png)" in made.err
    refused(cli("-m data.prepare", "--data", "-", "-"), "only one text can be standard input")
    refused(cli("-m data.prepare", "--data", "-", "--val-data", "-"), "only one text can be standard input")


def test_what_does_not_go_together_says_so(cli, text, names):
    refused(cli("train.py", "--data", "text.txt", "names"), "text is read as stream, names as lines", "--kind")
    ok(cli("-m data.prepare", "--data", "names.txt", "names", "--kind", "lines"))
    refused(cli("train.py", "--data", "text.txt", "gone.txt"), "no such file", "'gone.txt'")
    refused(cli("train.py", "--data", "--steps", 1), "--data names no text")


def test_the_first_of_several_decides_the_defaults(cli, names):
    flags = ["--kind", "lines", "--model", "bigram", "--steps", 1, "--out", "run"]
    told = ok(cli("train.py", "--data", "names", "names.txt", *flags))
    assert "lines" in told.out and config()["config"]["batch_size"] == 64
