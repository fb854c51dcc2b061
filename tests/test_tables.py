"""Tables as language-model data: one column's texts, in bounded memory, and a table that is taken as it stands."""

import csv
import gzip
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import reading, table_rows, tables
from data.errors import UserError
from data.prepare import prepare
from data.tables import read_texts
from tests.conftest import NAMES
from tests.helpers import at_call, evaluated, left, ok, quick, refused, warnings_of

FIXED = settings(max_examples=60, deadline=None, derandomize=True)
LINES = [f"{a} met {b}, so it says" for a, b in zip(NAMES, NAMES[7:], strict=False)]
POEMS = [f'{line}\n  and then "no"' for line in LINES]


def table(name: str, texts: list[str], column: str = "body") -> bytes:
    """A table of these texts, with an id before and a label after each."""
    rows = [{"id": n, column: text, "label": "ab"[n % 2]} for n, text in enumerate(texts)]
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix == ".json":
        content = json.dumps(rows)
    elif suffix == ".jsonl":
        content = "\n".join(map(json.dumps, rows))
    elif suffix == ".tsv":
        content = "\n".join("\t".join(map(str, row)) for row in (["id", column, "label"], *(r.values() for r in rows)))
    else:
        written = io.StringIO(newline="")
        writer = csv.DictWriter(written, ["id", column, "label"])
        writer.writeheader()
        writer.writerows(rows)
        content = written.getvalue()
    return gzip.compress(content.encode()) if name.endswith(".gz") else content.encode()


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows_of(store) -> list[str]:
    pieces = [p for s in (store.train, store.val) for p in np.split(s.tokens.array(), s.offsets[1:-1])]
    return [store.tokenizer.decode(piece) for piece in pieces]


NAMES_OF_TABLES = ["x.csv", "x.json", "x.jsonl", "x.csv.gz"]


@pytest.mark.parametrize("name", [*NAMES_OF_TABLES, "x.tsv"])
def test_a_column_of_lines_trains_as_those_lines(cli, tmp_path, name):
    write(tmp_path / name, table(name, LINES))
    write(tmp_path / "plain.txt", "\n".join(LINES))
    told = ok(cli("train.py", "--data", name, "--text-column", "body", *quick("mlp", batch_size=8)))
    assert told.err == "" and "lines, " in told.out and " on x: " in told.out
    assert json.loads(Path("run/config.json").read_text())["config"]["kind"] == "lines"
    store, plain = prepare(name, text_column="body"), prepare("plain.txt", kind="lines")
    assert rows_of(store) == rows_of(plain) and store.kind == plain.kind == "lines"
    assert store.tokenizer.to_json() == plain.tokenizer.to_json()


@pytest.mark.parametrize("name", NAMES_OF_TABLES)
def test_a_column_of_texts_of_several_lines_has_documents(cli, tmp_path, name):
    write(tmp_path / name, table(name, [*POEMS, " ", "\n"]))
    store = prepare(str(tmp_path / name), text_column="body")
    assert store.kind == "documents" and sorted(rows_of(store)) == sorted(POEMS)
    with pytest.raises(UserError, match=r"text 1 of .* has several lines; use --kind documents"):
        prepare(str(tmp_path / name), text_column="body", kind="lines")


@FIXED
@given(
    texts=st.lists(st.text('ab ,"\n\t', min_size=1, max_size=12).filter(lambda t: t.strip()), min_size=1, max_size=5),
    chunk=st.integers(1, 20),
    name=st.sampled_from(["x.csv", "x.json", "x.jsonl"]),
)
def test_chunks_end_anywhere(tmp_path_factory, texts, chunk, name):
    path = write(tmp_path_factory.mktemp("table") / name, table(name, texts))
    whole = list(read_texts(path, "body", "utf-8"))
    assert [text.split() for text in whole] == [text.split() for text in texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "CHUNK", chunk)
        assert list(read_texts(path, "body", "utf-8")) == whole


def test_columns_go_by_number_and_in_any_case(tmp_path):
    path = write(tmp_path / "x.tsv", "one\tspam\ntwo\tham\n")
    assert list(read_texts(path, "1", "utf-8")) == ["one", "two"]
    path = write(tmp_path / "x.csv", "Label,Text\na,one\nb,two\n")
    assert list(read_texts(path, "text", "utf-8")) == list(read_texts(path, "2", "utf-8")) == ["one", "two"]
    long = "word " * 100_000
    assert list(read_texts(write(tmp_path / "y.csv", f"text\n{long}\n"), "text", "utf-8")) == [long.rstrip()]


def test_a_number_counts_columns_where_the_first_row_has_numbers_too(tmp_path):
    path = write(tmp_path / "yelp.csv", '"3","1","bad food"\n"1","5","good food"\n')
    assert list(read_texts(path, "3", "utf-8")) == ["bad food", "good food"]
    path = write(tmp_path / "pandas.csv", "0,1\na,one\nb,two\n")
    assert list(read_texts(path, "1", "utf-8")) == ["one", "two"]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_csv_may_have_other_delimiters(tmp_path, delimiter):
    rows = ["label;text", 'a;"one; of, two"', "b;two, three"]
    path = write(tmp_path / "x.csv", "\n".join(row.replace(";", delimiter) for row in rows))
    assert list(read_texts(path, "text", "utf-8")) == [f"one{delimiter} of, two", "two, three"]


MISTAKES = {
    "no column": ("x.csv", "a,text\n1,b\n", "txt", "has no column 'txt'; it has: a, text. Did you mean 'text'"),
    "no number": ("x.tsv", "a\tb\n", "3", "has no column '3'"),
    "no key": ("x.jsonl", '{"a": "b"}', "text", "line 1 has no key 'text'; it has: a"),
    "no object": ("x.json", "[1]", "text", "example 1 is not an object"),
    "nested": ("x.json", '[{"text": {}}]', "text", "example 1: 'text' is neither a text nor a number"),
    "half": ("x.jsonl", '{"text": "\\ud83d"}', "text", "line 1 has half of a character"),
    "short": ("x.csv", "a,b\n1\n", "b", "line 2 has 1 columns where 2 are needed"),
    "quote": ("x.csv", 'a,b\n1,"2\n', "b", "line [23]: "),
    "empty": ("x.csv", "", "b", "has no column 'b'; it has: nothing"),
    "no texts": ("x.csv", "a,b\n1,\n", "b", "is empty: it has no line with text"),
    "no table": ("x.txt", "a", "b", "--text-column is for tables, and .*x.txt is none by its name"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_names_the_place_and_the_way_out(tmp_path, case):
    name, content, column, message = MISTAKES[case]
    with pytest.raises(UserError, match=message) as error:
        prepare(str(write(tmp_path / name, content)), text_column=column)
    assert name in str(error.value)


@pytest.mark.parametrize("name", ["x.csv", "x.json"])
def test_a_table_that_changes_while_it_is_read_is_named(tmp_path, monkeypatch, name):
    monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / "cache"))  # it is not prepared already
    path = write(tmp_path / name, table(name, LINES))
    with at_call(reading, "read_chunks", 3, lambda: write(path, table(name, LINES[::-1]))):
        with pytest.raises(UserError, match=f"{name} changed while it was read"):
            prepare(str(path), text_column="body")


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.csv.gz"])
def test_a_table_read_as_it_stands_gets_a_note(cli, tmp_path, name):
    write(tmp_path / name, table(name, LINES))
    for _ in range(2):  # what is cached has none
        (note,) = warnings_of(ok(cli("-m data.prepare", "--data", name)))
        assert f"{name} is a table" in note and "--text-column NAME (it has: id, body, label)" in note
    write(tmp_path / "list.csv", "\n".join(NAMES))
    assert warnings_of(ok(cli("-m data.prepare", "--data", "list.csv", "--kind", "lines"))) == []
    assert warnings_of(ok(cli("-m data.prepare", "--data", name, "--text-column", "body"))) == []


def test_tables_among_several_files_get_one_note(cli, tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("a.csv", "b.tsv"):
        write(tmp_path / "folder" / name, table(name, LINES))
    write(tmp_path / "folder/c.txt", "\n".join(LINES))
    for data in (["folder"], ["folder/a.csv", "folder/b.tsv", "folder/c.txt"]):
        (note,) = warnings_of(ok(cli("-m data.prepare", "--data", *data)))
        assert "2 of the 3 files (folder/a.csv, folder/b.tsv) are tables, and read as they stand" in note
        assert "say --text-column NAME (a.csv has: id, body, label)" in note


def test_of_a_folder_the_tables_alone_have_a_column(cli, tmp_path):
    for folder in ("folder", "none"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "about.txt", "of these tables")
    for name, texts in (("a.csv", LINES[::2]), ("b.jsonl", LINES[1::2])):
        write(tmp_path / "folder" / name, table(name, texts))
    store = prepare("folder", text_column="body")
    assert store.meta["notes"] == ["1 of the 3 files in folder are not tables: left out (about.txt)"]
    assert sorted(rows_of(store)) == sorted(LINES)
    refused(cli("-m data.prepare", "--data", "none", "--text-column", "body"), "the folder none holds none", ".csv")
    listed = cli("-m data.prepare", "--data", "folder/a.csv", "folder/about.txt", "--text-column", "body")
    refused(listed, "about.txt is none by its name")


def test_a_run_on_a_column_is_resumed_and_evaluated(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "x.csv", table("x.csv", POEMS))
    write(tmp_path / "y.csv", table("y.csv", POEMS[:9], "poem"))
    write(tmp_path / "plain.txt", "\n\n".join(POEMS[:9]))
    ok(cli("train.py", "--data", "x.csv", "--text-column", "body", *quick("mlp")))
    straight = left(tmp_path / "run")
    ok(cli("-m data.prepare", "--clear"))
    ok(cli("train.py", "--resume", "--out", "run"))
    assert left(tmp_path / "run") == straight
    own = evaluated(cli, "--val-data", "y.csv", "--text-column", "poem")
    assert own["val_loss"] == evaluated(cli, "--val-data", "plain.txt")["val_loss"]
    refused(cli("train.py", "--eval-only", "--out", "run", "--val-data", "y.csv"), "no column 'body'")
    refused(cli("train.py", "--eval-only", "--out", "run", "--text-column", "poem"), "goes with --data")


def test_what_does_not_go_together_says_so(cli, tmp_path):
    write(tmp_path / "x.csv", table("x.csv", LINES))
    wrong = ("--kind", "documents", "--separator", "%")
    refused(cli("train.py", "--data", "x.csv", "--text-column", "body", *wrong), "--separator is for plain text")
    refused(cli("train.py", "--data", "names", "--text-column", "body"), "--text-column is for tables")


def test_of_a_large_table_little_is_held(tmp_path, monkeypatch):
    """No more than a chunk, a row, and the beginning that shows the delimiter: counted in characters that are read
    ahead of what is given out."""
    read = 0
    chunks = reading.read_chunks

    def counted(*args):
        nonlocal read
        for chunk in chunks(*args):
            read += len(chunk)
            yield chunk

    monkeypatch.setattr(reading, "CHUNK", 1000)
    monkeypatch.setattr(table_rows, "BEGINNING", 500)
    monkeypatch.setattr(tables.reading, "read_chunks", counted)
    path = write(tmp_path / "x.csv", table("x.csv", POEMS * 20))
    given_out = 0
    for text in read_texts(path, "body", "utf-8"):
        given_out += len(text)
        assert read - 2 * given_out < 2000
