"""Texts that are none, that are too short, and that are only unusual."""

import json
from pathlib import Path

import pytest

from tests.helpers import (
    STREAM,
    left,
    ok,
    quick,
    refused,
    trained,
    warnings_of,
)
from tests.matrices import matrix

pytestmark = pytest.mark.usefixtures("names", "text")  # names.txt and text.txt stand where the commands run


@pytest.mark.parametrize("kind", matrix(["stream", "lines"], ["stream"]))
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
    ended = cli("train.py", *(f"--{n.replace('_', '-')}={v}" for n, v in flags.items()))
    refused(ended, "cjk.txt", "vocabulary", "--tokenizer byte", *([] if "init" in flags else ["with --val-data"]))
    refused(cli("train.py", "--eval-only", "--out", "run", "--val-data", "cjk.txt"), "cjk.txt", "vocabulary")


def test_a_last_tenth_in_another_script_says_what_helps(cli, tmp_path):
    (tmp_path / "two.txt").write_text("the cat sat\n" * 60 + "кот сидел на столе " * 4, "utf-8")
    (told,) = warnings_of(ok(cli("train.py", *quick("bigram", data="two.txt", context=8))))
    assert "in another script" in told and "--val-data" in told and "--tokenizer byte" in told
    (tmp_path / "two.txt").write_text("the cat sat\n" * 60 + "котэ" * 20, "utf-8")  # a tenth, exactly
    refused(cli("-m data.prepare", "--data", "two.txt"), "in another script", "--val-data", "--tokenizer byte")
    ok(cli("train.py", *quick("bigram", data="two.txt", context=8, tokenizer="byte", out="new")))


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
        b"anna\rnan\rana\rnaan\r",
        b"anna  \nnan\t\n\n  \nana \nnaan",
    ],
    ids=["bom", "crlf", "cr", "blanks"],
)
def test_the_ways_of_writing_lines_make_no_difference(cli, tmp_path, content):
    for name, text in (("odd", content), ("plain", b"anna\nnan\nana\nnaan\n")):
        (tmp_path / f"{name}.txt").write_bytes(text)
        assert ok(cli("train.py", *quick(data=f"{name}.txt", kind="lines", out=name))).err == ""
    assert left(tmp_path / "odd") == left(tmp_path / "plain")


@pytest.mark.parametrize("end", [b"\r\n", b"\r"], ids=["windows", "mac"])
def test_other_line_ends_make_no_difference_in_a_stream(cli, tmp_path, text, end):
    (tmp_path / "odd.txt").write_bytes(text.read_bytes().replace(b"\n", end))
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


def test_files_of_a_folder_that_are_not_text_are_named_each_time(cli, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("the cat sat on the mat\n" * 9)
    assert warnings_of(ok(cli("train.py", *quick(data="notes", context=8, out="first")))) == []
    (tmp_path / "notes/b.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "notes/c.zip").write_bytes(b"PK\3\4\0\0")
    (told,) = warnings_of(ok(cli("train.py", *quick(data="notes", context=8))))
    assert "2 of the 3 files in notes" in told and "(b.png, c.zip)" in told
