"""Documents: cut at blank lines or at a separator, in chunks of any size; trained, sampled and scored as rows."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data import documents
from data.documents import occurs, read_documents, unescaped
from data.errors import UserError
from data.prepare import prepare
from data.tokenizers import EOS
from engine import load_run
from tests.conftest import NAMES
from tests.helpers import evaluated, ok, quick, refused, summary, warnings_of

FIXED = settings(max_examples=200, deadline=None, derandomize=True)
POEMS = [f"{a} met {b};\n  they spoke of {c}." for a, b, c in zip(NAMES, NAMES[7:], NAMES[19:], strict=False)]
DOCUMENTS = {"data": "poems.txt", "kind": "documents"}


@pytest.fixture
def poems(tmp_path) -> Path:
    """A file of poems of two lines each."""
    path = tmp_path / "poems.txt"
    path.write_text("\n\n".join(POEMS) + "\n", "utf-8")
    return path


def in_chunks(text: str, cuts: list[int]) -> list[str]:
    borders = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in zip(borders, borders[1:], strict=False)]


CUTS = st.lists(st.integers(0, 60), max_size=6)


@FIXED
@given(text=st.text("ab \n\t\u2003", max_size=40), cuts=CUTS)
@example(text="a\n \n  \nb", cuts=[3, 5])
@example(text="a\n\n  \n b", cuts=[4])
def test_blank_lines_end_a_document_wherever_chunks_end(text, cuts):
    expected, document = [], []
    for line in [*text.split("\n"), ""]:
        if line.strip():
            document.append(line)
        elif document:
            expected.append("\n".join(document))
            document = []
    assert list(read_documents(in_chunks(text, cuts), None, "x")) == expected


@FIXED
@given(parts=st.lists(st.text("ab% \n", max_size=8)), separator=st.sampled_from(["%%", "\n\n\n", "ab", "a"]), cuts=CUTS)
def test_a_separator_of_ones_own_is_found_wherever_chunks_end(parts, separator, cuts):
    text = separator.join(parts)
    expected = [re.sub(r"\A(\s*\n)|\n\s*\Z", "", part) for part in text.split(separator) if part.strip()]
    assert list(read_documents(in_chunks(text, cuts), separator, "x")) == expected


def whole_text_cut(text: str, separator: str) -> list[str]:
    """The documents by a search over the whole text, one place after the other."""
    before = len(separator) - len(separator.lstrip("\n"))
    after = len(separator) - len(separator.rstrip("\n"))
    text, begin, parts = "\n" * before + text + "\n" * after, 0, []
    while (place := text.find(separator, begin)) >= 0:
        parts.append(text[begin:place])
        begin = place + len(separator) - min(before, after)
    return [re.sub(r"\A(\s*\n)|\n\s*\Z", "", part) for part in [*parts, text[begin:]] if part.strip()]


@FIXED
@given(
    pieces=st.lists(st.sampled_from(["%%", "\n", "\n", "a", " ", "%"]), max_size=30),
    separator=st.sampled_from(["\n%%\n", "\n%%", "%%\n", "\n\n%%\n", "\n%%\n\n", "\n%\n%\n"]),
    cuts=CUTS,
)
@example(pieces=[*"%%\n%%\na\n%%\n%%"], separator="\n%%\n", cuts=[2, 3, 6])
def test_separators_share_line_ends_with_the_file_and_each_other(pieces, separator, cuts):
    text = "".join(pieces)
    assert list(read_documents(in_chunks(text, cuts), separator, "x")) == whole_text_cut(text, separator)


def test_no_separator_leaks_into_a_document(tmp_path):
    (tmp_path / "edges.txt").write_text("%%\nfirst poem\nx\n%%\n%%\n%%\nsecond poem\n%%\nthird\n%%")
    store = prepare(str(tmp_path / "edges.txt"), kind="documents", separator=r"\n%%\n")
    assert "%" not in store.tokenizer.alphabet
    assert len(store.train.offsets) + len(store.val.offsets) - 2 == 3


def test_escapes_of_a_separator():
    assert [unescaped(text) for text in (r"\n%%\n", r"\t", r"a\\nb", "<|endoftext|>", r"\x", r"\r\n%\r", "\r\n")] == [
        "\n%%\n", "\t", r"a\nb", "<|endoftext|>", r"\x", "\n%\n", "\n",
    ]  # fmt: skip


@FIXED
@given(text=st.text("a%\n", max_size=20), separator=st.sampled_from(["\n%%\n", "%%", "%%\n", "\n%", "\n"]), cuts=CUTS)
def test_whether_a_separator_occurs_wherever_chunks_end(text, separator, cuts):
    before = "\n" if separator.startswith("\n") and separator != "\n" else ""
    after = "\n" if separator.endswith("\n") and separator != "\n" else ""
    assert occurs(separator, in_chunks(text, cuts)) == (separator in before + text + after)


def test_a_separator_that_occurs_nowhere_is_named(cli, monkeypatch):
    Path("text.txt").write_text("a poem\n%%\nanother\n")
    told = cli("-m data.prepare", "--data", "text.txt", "--kind", "documents", "--separator", r"\r\n--\r\n")
    refused(told, r"only one distinct document: '\n--\n' occurs nowhere in it; use --kind stream")
    assert "--separator" not in told.err
    monkeypatch.setattr(documents, "MAX_DOCUMENT", 10)
    with pytest.raises(
        UserError, match=r"document 1 of x has more than 10 characters: '--' occurs nowhere in it; leave it out"
    ):
        list(read_documents(["a poem\n%%\nanother\n"], "--", "x"))


def test_a_document_without_an_end_is_refused_before_it_fills_the_memory(monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENT", 1000)
    read = 0

    def endless():
        nonlocal read
        yield "one\n\ntwo\n\n"
        while read < 100_000:
            read += 100
            yield "never a blank line\n" * 5

    with pytest.raises(UserError, match=r"document 3 of big\.txt has more than 1,000 characters; see --separator"):
        list(read_documents(endless(), None, "big.txt"))
    assert read < 2000


def test_documents_are_rows_split_by_their_hash(tmp_path, poems):
    store = prepare(str(poems), kind="documents")
    rows = {}
    for side in ("train", "val"):
        split = getattr(store, side)
        pieces = np.split(split.tokens.array(), split.offsets[1:-1])
        assert all(piece[-1] == EOS for piece in pieces)
        rows[side] = [store.tokenizer.decode(piece) for piece in pieces]
    assert sorted(rows["train"] + rows["val"]) == sorted(POEMS) and rows["val"]
    other = tmp_path / "other.txt"
    other.write_text("%%\n".join(reversed(POEMS)) + "%%" + POEMS[0])
    again = prepare(str(other), kind="documents", separator="%%")
    assert again.meta["notes"] == [
        f"1 of {len(POEMS) + 1} documents are duplicates: kept (all copies on one side of the split)"
    ]
    pieces = np.split(again.val.tokens.array(), again.val.offsets[1:-1])
    assert {again.tokenizer.decode(piece) for piece in pieces} == set(rows["val"])


def test_no_document_goes_on_from_one_file_into_the_next(tmp_path):
    (tmp_path / "poems").mkdir()
    for n, poem in enumerate(POEMS):
        (tmp_path / f"poems/{n:02d}.txt").write_text(poem)
    store = prepare(str(tmp_path / "poems"), kind="documents")
    assert len(store.train.offsets) + len(store.val.offsets) - 2 == len(POEMS)


def test_how_documents_are_cut_is_part_of_the_key(poems):
    keys = {prepare(str(poems), kind="documents", separator=s).key for s in (None, ";\n", r"\n", "met")}
    assert len(keys) == 4


@pytest.mark.parametrize("model", ["transformer", "lstm", "ngram"])
def test_a_run_on_documents_is_trained_sampled_scored_and_resumed(cli, poems, model):
    flags = quick(model, **DOCUMENTS) if model != "ngram" else ["--model", model, "--out", "run"]
    flags += ["--data", "poems.txt", "--kind", "documents"] if model == "ngram" else []
    told = ok(cli("train.py", *flags))
    assert " documents, " in told.out and told.err == ""
    samples = Path("run/samples.txt").read_text()
    assert len(re.findall(r"^--- (?:new|in train|in val)$", samples, re.MULTILINE)) == 5
    found = evaluated(cli)
    assert found["val_loss"] == pytest.approx(summary()["val_loss"], rel=1e-6)
    store = prepare("poems.txt", kind="documents")
    row = store.tokenizer.decode(store.val.tokens.array()[: store.val.offsets[1]])
    Path("one.txt").write_text(row)
    scored = json.loads(ok(cli("sample.py", "run", "--score", "@one.txt", "--json")).out)
    one = evaluated(cli, "--val-data", "one.txt")
    assert scored["bits_per_char"] == pytest.approx(one["val_bits_per_char"], rel=1e-5) and "\n" in row
    assert ok(cli("sample.py", "run", "--prompt", "emma met ava;\n  they")).out.startswith("emma met ava;\n  they")
    if model != "ngram":
        ok(cli("train.py", "--resume", "--out", "run", "--steps", 8))


def test_a_sample_goes_on_past_the_context_until_its_end(cli, poems):
    flags = {"context": 16, "steps": 300, "batch_size": 16, "eval_interval": 300, "lr": 0.01}
    told = ok(cli("train.py", *quick("lstm", **DOCUMENTS | flags), "--n-embd", 32, "--n-hidden", 32))
    (note,) = warnings_of(told)
    assert "documents are longer than the context of 16: cut into pieces" in note
    texts = load_run("run").generate(num=20, seed=1)
    assert all(len(text) < 500 for text in texts), "each has ended by itself"
    assert sum(len(text) > 17 for text in texts) > 3 and any("\n" in text for text in texts)
    shown = ok(cli("sample.py", "run", "--num", 2, "--seed", 1)).out
    assert shown.count("-" * 60) == 2


def test_the_context_of_documents_is_that_of_the_longest_within_reason(cli, poems):
    ok(cli("train.py", *quick("bigram", **DOCUMENTS)))
    assert json.loads(Path("run/config.json").read_text())["config"]["context"] == max(map(len, POEMS)) + 1
    poems.write_text("\n\n".join(poem * 9 for poem in POEMS))
    ok(cli("train.py", *quick("bigram", **DOCUMENTS, out="long")))
    assert json.loads(Path("long/config.json").read_text())["config"]["context"] == 64


def test_what_has_no_documents_says_what_helps(cli, poems, text):
    single = ("--data", "text.txt", "--out", "new")
    refused(
        cli("train.py", *single, "--kind", "documents"), "only one distinct document", "--kind stream", "--separator"
    )
    refused(cli("train.py", *single, "--separator", "%"), "--separator", "--kind documents")
    refused(cli("train.py", *single, "--kind", "documents", "--separator", ""), "--separator is empty")
    refused(cli("-m data.prepare", "--data", "text.txt", "--separator", "%"), "--kind documents")
    ok(cli("train.py", *quick("bigram", data="text.txt", context=8)))
    refused(cli("train.py", "--resume", "--out", "run", "--separator", "%"), "--separator")
    refused(cli("train.py", *quick("lstm", **DOCUMENTS, carry_state=True, out="new")), "documents do not go on")
    ok(cli("-m data.prepare", "--data", "text.txt", "--kind", "documents", "--separator", r".\n"))


def test_a_run_on_documents_is_a_start_for_others(cli, poems, text):
    ok(cli("train.py", *quick("transformer", **DOCUMENTS, tokenizer="byte")))
    ok(cli("train.py", "--init", "run", "--data", "text.txt", "--steps", 2, "--out", "next"))
    Path("spam.tsv").write_text("".join(f"ham\tsee {n}\nspam\twin {n}\n" for n in NAMES))
    ok(cli("-m finetune.classify", "--data", "spam.tsv", "--init", "run", "--steps", 2, "--out", "labels"))
