"""Corpora as they are published: JSON lines, JSON and Parquet, packed, in folders and by patterns; as streams of
documents with `<eos>` after each."""

import gzip
import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data import parquet, pieces
from data.errors import UserError
from data.pieces import Piece, Starts
from data.prepare import prepare
from data.tokenizers import AFTER_EOS
from engine.run.load import load_run
from tests.conftest import NAMES
from tests.helpers import at_call, evaluated, left, ok, quick, refused, summary, warnings_of

FIXED = settings(max_examples=40, deadline=None, derandomize=True)
STORIES = [f"{a} met {b}.\n\n  They spoke of {c}. " for a, b, c in zip(NAMES, NAMES[7:], NAMES[19:], strict=False)]


def corpus(name: str, documents: list[str], key: str = "text") -> bytes:
    """A file of these documents as they are published under such a name."""
    rows = [{"id": n, key: document} for n, document in enumerate(documents)]
    if name.endswith(".parquet"):
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer, row_group_size=max(1, len(rows) // 3))
        return buffer.getvalue()
    is_list = ".json" in name and ".jsonl" not in name and "lines" not in name
    content = (json.dumps(rows) if is_list else "\n".join(map(json.dumps, rows)) + "\n").encode()
    if name.endswith(".zst"):
        return zstandard.ZstdCompressor().compress(content)
    return gzip.compress(content) if name.endswith(".gz") else content


def write(path: Path, documents: list[str], key: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(corpus(path.name, documents, key))
    return path


def documents_of(store) -> list[str]:
    """The documents of both sides, decoded; the last one of a side has to have its end."""
    found = []
    for side in (store.train, store.val):
        ids, eos = side.tokens.array(), store.tokenizer.special.eos
        ends = np.flatnonzero(ids == eos)
        assert not len(ids) or ends[-1] == len(ids) - 1
        found += [store.tokenizer.decode(part.tolist()) for part in np.split(ids, ends + 1)[:-1]]
    return found


FILES = ["x.jsonl", "x.jsonl.zst", "x.jsonl.gz", "lines.json.gz", "lines.json", "x.json", "x.json.gz", "x.parquet"]


@pytest.mark.parametrize("name", FILES)
def test_a_published_file_is_a_stream_of_documents_with_ends(tmp_path, name):
    store = prepare(str(write(tmp_path / name, [*STORIES, "", " \n"])), tokenizer="byte")
    assert store.kind == "stream" and store.train.offsets is None and store.meta["start"] == AFTER_EOS
    assert documents_of(store) == STORIES and store.meta["notes"] == []
    characters = store.characters()
    assert (
        characters[store.tokenizer.special.eos] == 0 and store.tokenizer.characters()[store.tokenizer.special.eos] == 1
    )


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe:300"])
def test_every_tokenizer_puts_ends_between_documents(tmp_path, tokenizer):
    path = write(tmp_path / "x.jsonl", [*STORIES, "<eos> is text here, as <|endoftext|> is"] * 2)
    assert (
        documents_of(prepare(str(path), tokenizer=tokenizer))
        == [*STORIES, "<eos> is text here, as <|endoftext|> is"] * 2
    )


def test_bpe_learns_no_word_across_documents(tmp_path):
    store = prepare(str(write(tmp_path / "x.jsonl", ["xy"] * 50)), tokenizer="bpe:260")
    assert store.tokenizer.tokens[256:] == [b"xy"]


@FIXED
@given(
    documents=st.lists(st.text("ab \n", min_size=1, max_size=9).filter(str.strip), min_size=2, max_size=12),
    fraction=st.sampled_from([0.1, 0.5, 0.9]),
    most=st.sampled_from([2, 4, 1 << 20]),
)
def test_validation_begins_with_a_document(tmp_path_factory, documents, fraction, most):
    path = write(tmp_path_factory.mktemp("corpus") / "x.jsonl", documents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "MOST_STARTS", most)
        patch.setenv("CHARLM_CACHE", str(path.parent / "cache"))
        store = prepare(str(path), tokenizer="byte", val_fraction=fraction)
    assert documents_of(store) == documents
    assert len(store.train.tokens) and len(store.val.tokens)
    if most > len(documents):
        kept = len(store.train.tokens) - int((store.train.tokens.array() == 2).sum())
        whole = sum(map(len, documents))
        assert kept >= int(whole * (1 - fraction)) or documents[-1] == documents_of(store)[-1]


def test_one_document_is_cut_inside(tmp_path):
    store = prepare(str(write(tmp_path / "x.jsonl", ["".join(STORIES)])), tokenizer="byte")
    ids = np.concatenate([store.train.tokens.array(), store.val.tokens.array()])
    assert store.tokenizer.decode(ids) == "".join(STORIES)
    assert list(np.flatnonzero(ids == 2)) == [len(ids) - 1] and len(store.train.tokens) == int(
        len("".join(STORIES)) * 0.9
    )


@given(text=st.text("ab", max_size=5), ends=st.booleans(), at=st.integers(-3, 8))
def test_a_piece_keeps_its_end_when_cut(text, ends, at):
    parts = Piece(text, ends).cut(at)
    assert "".join(part.text for part in parts) == text and sum(part.ends for part in parts) == ends


def test_starts_stay_few_and_even(monkeypatch):
    monkeypatch.setattr(pieces, "MOST_STARTS", 8)
    starts = Starts()
    for position in range(0, 1000, 10):
        starts.add(position)
    assert len(starts._starts) < 8 and starts.at_or_after(895) <= 990 and starts.at_or_after(991) == 990
    assert Starts().at_or_after(7) == 7


def test_the_alphabet_is_of_the_training_documents_alone(tmp_path):
    store = prepare(str(write(tmp_path / "x.jsonl", ["abab" * 9, "abab" * 9, "zaz"])))
    assert store.tokenizer.alphabet == "ab"


def test_rows_and_columns_as_before(tmp_path):
    path = write(tmp_path / "x.jsonl", STORIES)
    explicit = prepare(str(path), text_column="text")
    assert explicit.kind == "documents" and prepare(str(path), kind="documents").key == explicit.key
    lines = write(tmp_path / "y.parquet", NAMES)
    store = prepare(str(lines), kind="lines")
    assert store.kind == "lines" and len(store.train.offsets) + len(store.val.offsets) - 2 == len(NAMES)
    body = write(tmp_path / "z.jsonl.gz", STORIES, "body")
    assert documents_of(prepare(str(body), text_column="body", kind="stream", tokenizer="byte")) == STORIES


def test_plain_text_has_no_ends_and_the_key_that_it_had(tmp_path):
    (tmp_path / "x.txt").write_text("\n".join(STORIES))
    store = prepare(str(tmp_path / "x.txt"))
    assert store.key == "e456efa102a66813" and store.meta["start"] == "\n" and not store.train.tokens.has(2)


def test_a_folder_with_tables_is_these_tables(tmp_path):
    for n, name in enumerate(["b/2.parquet", "a/1.parquet", "c/3.jsonl.zst"]):
        write(tmp_path / "corpus" / name, STORIES[n::3])
    (tmp_path / "corpus/README.md").write_text("The corpus.")
    (tmp_path / "corpus/info.json").write_text('{"text": 3}')
    store = prepare(str(tmp_path / "corpus"), tokenizer="byte")
    assert documents_of(store) == STORIES[1::3] + STORIES[::3] + STORIES[2::3]
    assert [note.split(": ")[-1] for note in store.meta["notes"]] == ["left out (README.md, info.json)"]


def test_a_folder_of_code_with_settings_stays_plain_text(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code/a.py").write_text("x = {}\n" * 9)
    (tmp_path / "code/package.json").write_text('{"name": "x", "text": {}}')
    (tmp_path / "code/list.json").write_text('[{"name": "x"}]')
    store = prepare(str(tmp_path / "code"))
    assert store.meta["start"] == "\n" and "2 of the 3 files" in store.meta["notes"][0]


@pytest.mark.parametrize("pattern", ["corpus/*.jsonl", "corpus/**/*.jsonl", "corpus/*", "corp*", "*/[ab].jsonl"])
def test_patterns_name_files(tmp_path, monkeypatch, pattern):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "corpus/b.jsonl", STORIES[5:])
    write(tmp_path / "corpus/a.jsonl", STORIES[:5])
    assert documents_of(prepare(pattern, tokenizer="byte")) == STORIES


def test_of_patterns_that_match_nothing_and_names_that_look_like_patterns(cli, tmp_path):
    refused(cli("-m data.prepare", "--data", "none/*.jsonl"), "no file matches 'none/*.jsonl'")
    (tmp_path / "a[1]*.txt").write_text("\n".join(STORIES))
    (tmp_path / "a1.txt").write_text("another")
    assert len(prepare(str(tmp_path / "a[1]*.txt")).train.tokens) > 500


def test_plain_text_among_tables_is_a_document_each(tmp_path):
    write(tmp_path / "x.jsonl", STORIES[:4])
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"text of {name}\n")
    (tmp_path / "empty.txt").touch()
    listed = [str(tmp_path / name) for name in ("a.txt", "x.jsonl", "empty.txt", "b.txt")]
    store = prepare(listed, tokenizer="byte")
    assert documents_of(store) == ["text of a.txt\n", *STORIES[:4], "text of b.txt\n"]
    other = prepare(str(tmp_path / "x.jsonl"), val_data=str(tmp_path / "a.txt"), tokenizer="bpe:260")
    assert documents_of(other) == [*STORIES[:4], "text of a.txt\n"]
    rows = prepare(listed, kind="documents")
    assert len(rows.train.offsets) + len(rows.val.offsets) - 2 == 6


RAW = "\n".join(json.dumps({"body": text}) for text in STORIES)


@pytest.mark.parametrize("name", ["x.txt", "x.log", "x", "-", "lines.json", "folder/x.txt"])
def test_json_lines_are_never_plain_text(cli, tmp_path, name):
    (tmp_path / "folder").mkdir()
    if name != "-":
        (tmp_path / name).write_text(f"\n{RAW}\n")
    data = name.split("/")[0]
    told = cli("train.py", "--data", data, *quick("bigram"), stdin=RAW.encode())
    refused(told, "body", "--text-column", {"-": "standard input"}.get(name, name))
    for kind in ("stream", "documents"):
        made = cli("-m data.prepare", "--data", data, "--text-column", "body", "--kind", kind, stdin=RAW.encode())
        assert "train: " in ok(made).out


PROSE = {
    "a brace": "{ is a brace.\nSo is }.\n",
    "code": "{\n  'a': 1\n}\n",
    "one object": '{"a": 1}\nand then prose\n',
    "tex": "{\\bf Title}\nText.\n",
    "numbers": "1\n2\n3\n",
    "lists": "[1]\n[2]\n",
}


@pytest.mark.parametrize("case", PROSE)
def test_prose_with_a_brace_is_text(tmp_path, case):
    (tmp_path / "x.txt").write_text(PROSE[case] * 3)
    assert prepare(str(tmp_path / "x.txt")).meta["start"] == "\n"


def test_a_missing_key_is_named_with_those_there_are(cli, tmp_path):
    for name, word in (("x.jsonl", "no key 'text'"), ("x.json", "no key 'text'"), ("x.parquet", "no column 'text'")):
        write(tmp_path / name, STORIES, "content")
        refused(cli("train.py", "--data", name), name, word, "it has: id, content", "--text-column")
    refused(cli("train.py", "--data", "x.parquet", "--text-column", "contents"), "Did you mean 'content'?")
    refused(
        cli("train.py", "--data", "x.jsonl", "--kind", "documents", "--separator", "%"), "--separator", "leave it out"
    )


def test_parquet_that_cannot_be_read_says_why(tmp_path, monkeypatch):
    damaged = write(tmp_path / "x.parquet", STORIES)
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(UserError, match="x.parquet is no whole .parquet file, or damaged"):
        prepare(str(damaged))
    pyarrow.parquet.write_table(pyarrow.table({"text": [["a"], ["b"]]}), tmp_path / "y.parquet")
    with pytest.raises(UserError, match="'text' holds neither texts nor numbers, but list"):
        prepare(str(tmp_path / "y.parquet"))
    path = write(tmp_path / "z.parquet", STORIES)
    with at_call(parquet, "_digest", 1, lambda: write(path, STORIES[::-1])):
        with pytest.raises(UserError, match="z.parquet changed while it was read"):
            prepare(str(path))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="pip install pyarrow"):
        prepare(str(path), tokenizer="byte")


def test_parquet_types_that_are_texts(tmp_path):
    for n, kind in enumerate(
        [pyarrow.large_string(), pyarrow.string(), pyarrow.dictionary(pyarrow.int8(), pyarrow.string())]
    ):
        column = pyarrow.array([None, *STORIES[n:]], pyarrow.string()).cast(kind)
        pyarrow.parquet.write_table(pyarrow.table({"a": column, "text": column}), tmp_path / f"{n}.parquet")
        assert documents_of(prepare(str(tmp_path / f"{n}.parquet"), tokenizer="byte")) == STORIES[n:]


def test_of_a_large_row_group_little_is_held(tmp_path):
    """Rows are handed out before the row group has been decoded."""
    path = tmp_path / "x.parquet"
    texts = [f"{n} " * 500 for n in range(20_000)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, compression="zstd", row_group_size=len(texts))
    before = pyarrow.total_allocated_bytes()
    held = [pyarrow.total_allocated_bytes() - before for _ in parquet.read_column(path, "text")]
    assert len(held) == len(texts) and max(held) < sum(map(len, texts)) / 8


@pytest.mark.parametrize("model", ["bigram", "ngram", "mlp", "transformer"])
def test_a_run_on_documents_draws_them_from_their_start_to_their_end(cli, tmp_path, model):
    write(tmp_path / "x.jsonl", ["ab", "abb"] * 40)
    counted = {"bigram": ["--counts"], "ngram": []}
    words = ["--out", "run", *counted[model]] if model in counted else [*quick(model), "--context", 8]
    ok(cli("train.py", "--data", "x.jsonl", "--model", model, *words))
    run = load_run("run")
    assert run.has_ends and not run.is_lines and run.prompt_ids("a")[0] == run.tokenizer.special.eos
    assert run.tokenizer.special.eos not in run.suppressed and "longest_copied" in summary()
    drawn = list(run.samples(num=20, seed=1))
    if model in counted:
        assert {sample.end for sample in drawn} == {"eos"} and sum(each.text in ("ab", "abb") for each in drawn) > 10
        assert "---" in Path("run/samples.txt").read_text()
    scored = run.score("ab")
    assert scored.n_tokens == scored.n_characters == 2
    told = ok(cli("sample.py", "run", "--num", 2, "--seed", 1, "--min-new-tokens", 3, "--max-new-tokens", 5, "--json"))
    assert all(len(json.loads(line)["text"]) >= 3 for line in told.out.splitlines())


def test_ends_are_targets_but_no_characters(cli, tmp_path):
    write(tmp_path / "x.jsonl", STORIES)
    write(tmp_path / "y.jsonl", STORIES[:5])
    ok(cli("train.py", "--data", "x.jsonl", "--context", 12, *quick("mlp")))
    facts = evaluated(cli, "--val-data", "y.jsonl", "--eval-tokens", 1000)
    ids = sum(map(len, STORIES[:5])) + 5
    assert facts["val_tokens"] == ids - 1
    characters = facts["val_loss"] * facts["val_tokens"] / np.log(2) / facts["val_bits_per_char"]
    assert round(characters) == ids - 1 - 5


def test_a_run_on_documents_is_resumed_to_the_bit(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "corpus/x.parquet", STORIES)
    ok(cli("train.py", "--data", "corpus/*.parquet", "--context", 12, *quick("gru", carry_state=True)))
    straight = left(tmp_path / "run")
    ok(cli("-m data.prepare", "--clear"))
    assert warnings_of(ok(cli("train.py", "--resume", "--out", "run"))) == []
    assert left(tmp_path / "run") == straight
    write(tmp_path / "corpus/y.parquet", STORIES)
    assert "has changed since" in ok(cli("train.py", "--resume", "--steps", 7, "--out", "run")).err
