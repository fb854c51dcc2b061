"""Data sets that are published elsewhere, on small files of the same shape: their parts, what the user brings, and bits
per byte."""

import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from data import encoded, published, sources
from data.errors import UserError
from data.prepare import prepare
from data.sources import Remote
from tests.conftest import NAMES
from tests.helpers import at_call, evaluated, ok, quick, refused, summary
from tests.test_store import written

TEXT = " ".join(NAMES * 3).encode()
SIZES = {"train": len(TEXT) - 100, "val": 50, "test": 50}


@pytest.fixture
def brought(tmp_path, monkeypatch):
    """The folder that $CHARLM_DATA names, with a cache of its own beside it."""
    monkeypatch.setenv("CHARLM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def archive(brought, monkeypatch):
    """`archive(name, text, sizes)` brings the zip archive of this text as that of `name`."""

    def put(name: str, text: bytes = TEXT, sizes: dict[str, int] = SIZES, member: str | None = None) -> Path:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.writestr(member or name, text)
        content = buffer.getvalue()
        remote = Remote(f"{name}.zip", "http://127.0.0.1:9/x.zip", len(content), hashlib.sha256(content).hexdigest())
        monkeypatch.setitem(published.ARCHIVES, name, published.Archive(remote, name, sizes))
        path = brought / f"{name}.zip"
        path.write_bytes(content)
        return path

    return put


def interrupt() -> None:
    raise KeyboardInterrupt


def text_of(name: str) -> bytes:
    return published.resolve(name).files[0].read_bytes()


def test_the_parts_are_as_the_benchmarks_have_them():
    assert [*published.ARCHIVES["text8"].sizes.values()] == [90_000_000, 5_000_000, 5_000_000]
    assert published.ARCHIVES["enwik8"].sizes == published.ARCHIVES["text8"].sizes
    names = {*published.ARCHIVES, *published.BROUGHT, "ptb-char", "tinystories"}
    assert names < set(sources.DATA_SETS) and all(sources.DATA_SETS[name] == "stream" for name in names)


def test_an_archive_is_cut_into_its_parts_once(archive, tmp_path):
    archive("text8")
    store = prepare("text8")
    assert store.meta["name"] == "text8" and store.meta["start"] != "<eos>" and store.meta["unit"] == "character"
    assert store.tokenizer.decode(store.train.tokens.array().tolist()).encode() == TEXT[:-100]
    assert store.tokenizer.decode(store.val.tokens.array().tolist()).encode() == TEXT[-100:-50]
    assert text_of("text8:test") == TEXT[-50:] and text_of("text8:train") == TEXT[:-100]
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache/downloads").iterdir()}
    assert len(made) == 4 and not [path for path in made if path.suffix == ".part"]
    assert prepare("text8").key == store.key and made == {path: path.stat().st_mtime_ns for path in made}
    damaged = next(path for path in made if ".val." in path.name)
    damaged.write_bytes(TEXT[:50])
    assert prepare("text8").key == store.key and text_of("text8:val") == TEXT[-100:-50]


def test_a_data_set_by_name_goes_into_shards_from_several_processes(archive, tmp_path, monkeypatch):
    archive("text8")
    small = {
        "tasks.GROUP": 100,
        "reading.CHUNK": 80,
        "reading.SMALL_CHUNK": 80,
        "token_file.SHARD": 200,
        "build.LARGE": 0,
        "build.EVERY": 300,
    }
    for name, size in small.items():
        monkeypatch.setattr(f"data.{name}", size)
    one = prepare("text8", workers=1)
    monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / "several"))
    with at_call(encoded.EncodedText, "state", 2, do=interrupt), pytest.raises(KeyboardInterrupt):
        prepare("text8", workers=2)
    assert list((tmp_path / "several/prepared").glob("text8-*.part/journal/journal.json"))
    two = prepare("text8", workers=2)
    assert written(two.folder) == written(one.folder) and len(two.train.tokens.paths) > 3
    assert two.tokenizer.decode(two.val.tokens.array().tolist()).encode() == TEXT[-100:-50]
    test = prepare("text8:test", vocabulary=two.tokenizer, val_fraction=1, workers=2)
    assert test.tokenizer.decode(test.val.tokens.array().tolist()).encode() == TEXT[-50:]


def test_a_part_ends_with_a_character(archive):
    text = "aé" * 40 + "ü"
    archive("enwik8", text.encode(), {"train": 80, "val": 2, "test": len(text.encode()) - 82})
    parts = [text_of(f"enwik8:{part}").decode() for part in published.PARTS]
    assert "".join(parts) == text and [len(part.encode()) for part in parts] == [81, 1, 40]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"sizes": SIZES | {"test": 51}}, "bytes, not"),
        ({"sizes": SIZES | {"test": 49}}, "bytes, not"),
        ({"member": "../text8"}, "no zip archive of text8"),
    ],
)
def test_another_archive_is_refused(archive, tmp_path, damage, message):
    archive("text8", **damage)
    with pytest.raises(UserError, match=message):
        prepare("text8")
    assert not list((tmp_path / "cache/downloads").iterdir())


def test_bytes_of_the_archive_are_checked(archive):
    path = archive("text8")
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(UserError, match="fails its SHA-256 check"):
        prepare("text8")


def test_parts_have_names_and_files_come_first(archive, tmp_path, monkeypatch):
    archive("text8")
    with pytest.raises(UserError, match="'text8' has no part 'dev'; it has: train, val, test"):
        prepare("text8:dev")
    monkeypatch.chdir(tmp_path)
    Path("text8:dev").write_text("a file of that name")
    assert published.resolve("text8:dev").files == (Path("text8:dev"),)


def test_enwik8_is_read_and_counted_by_the_byte(archive, cli):
    text = ("straße in œuvre " * 40).encode()
    archive("enwik8", text, {"train": len(text) - 200, "val": 100, "test": 100})
    told = ok(cli("train.py", "--data", "enwik8", "--context", 8, *quick("mlp", eval_tokens=1000)))
    assert "bits a byte" in told.out
    assert json.loads(Path("run/config.json").read_text())["config"]["tokenizer"] == "byte"
    facts = summary()
    assert facts["val_bits_per_byte"] == facts["val_bits_per_char"]
    assert facts["val_bits_per_byte"] == pytest.approx(facts["val_loss"] / np.log(2))
    own = evaluated(cli)
    assert own["val_bits_per_byte"] == pytest.approx(facts["val_bits_per_byte"])
    assert evaluated(cli, "--val-data", "enwik8:test")["val_tokens"] == 99
    assert evaluated(cli, "--val-data", "enwik8")["val_loss"] == own["val_loss"], "all of it is what is for validation"
    for tokenizer in ("char", "bpe:260"):
        store = prepare("enwik8", tokenizer=tokenizer)
        assert store.characters()[store.train.tokens.array()].sum() == len(text) - 200
    part = prepare("enwik8").tokenizer.n_bytes()
    assert part[:6].sum() == 0 and part.sum() == 256


def test_the_characters_of_the_penn_treebank(brought):
    for part, line in (("train", "n e w _ y o r k"), ("valid", "< u n k > _ n"), ("test", "w e _ k n o w")):
        (brought / f"ptb.char.{part}.txt").write_text(f" {line} \n" * 9)
    store = prepare("ptb-char")
    assert store.tokenizer.alphabet == "\n ekn" + "orwy"
    assert text_of("ptb-char:val") == b"<unk> n\n" * 9 and text_of("ptb-char:test") == b"we know\n" * 9
    (brought / "ptb.char.valid.txt").write_text("of _ words\n")
    with pytest.raises(UserError, match="ptb.char.valid.txt line 1 is not single characters"):
        prepare("ptb-char")


def test_stories_are_documents_with_ends(brought, monkeypatch):
    for part, count in (("train", 20), ("val", 5)):
        content = "\n<|endoftext|>\n".join(f"Once {name}\nran." for name in NAMES[:count]).encode()
        file = published.STORIES[part].file
        (brought / file).write_bytes(content)
        remote = Remote(file, "http://127.0.0.1:9/x", len(content), hashlib.sha256(content).hexdigest())
        monkeypatch.setitem(published.STORIES, part, remote)
    store = prepare("tinystories")
    assert store.kind == "stream" and store.meta["start"] == "<eos>"
    assert [int((side.tokens.array() == 2).sum()) for side in (store.train, store.val)] == [20, 5]
    assert "|" not in store.tokenizer.alphabet
    assert len(prepare("tinystories", kind="documents").train.offsets) == 21
    assert len(prepare("tinystories:val", tokenizer="byte", val_fraction=1).train.tokens) == 0


@pytest.mark.parametrize("name", published.BROUGHT)
def test_large_corpora_are_brought(brought, cli, monkeypatch, name):
    refused(cli("-m data.prepare", "--data", name), f"the folder {name} of {brought}", ".parquet", "docs/corpora.md")
    monkeypatch.setattr(published, "BROUGHT", {name: published.Brought("files", 0.25)})
    (brought / name / "plain_text").mkdir(parents=True)
    for n in range(2):
        table = pyarrow.table({"text": [f"{each} {n} " for each in NAMES[n * 8 : n * 8 + 8]]})
        pyarrow.parquet.write_table(table, brought / name / "plain_text" / f"train-{n}.parquet")
    (brought / name / "README.md").write_text("about")
    store = prepare(name, tokenizer="byte")
    ends = [int((side.tokens.array() == 2).sum()) for side in (store.train, store.val)]
    assert sum(ends) == 16 and 3 <= ends[1] <= 4 and store.meta["name"] == name
    monkeypatch.delenv("CHARLM_DATA")
    refused(cli("-m data.prepare", "--data", name), f"the folder {name} of a folder that $CHARLM_DATA names")


def test_what_is_missing_is_said(brought, cli):
    refused(cli("train.py", "--data", "ptb-char"), "ptb.char.train.txt", "the folder ptb-char", str(brought))
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    refused(cli("train.py", "--data", "text8", env=nowhere), "could not download 'text8'", "text8.zip", "$CHARLM_DATA")
    named = "TinyStoriesV2-GPT4-train.txt"
    refused(cli("train.py", "--data", "tinystories", env=nowhere), "could not download", named, "$CHARLM_DATA")


def test_a_separator_makes_a_stream_of_documents(cli, tmp_path):
    (tmp_path / "x.txt").write_text("\n%\n".join(NAMES))
    store = prepare(str(tmp_path / "x.txt"), kind="stream", separator=r"\n%\n")
    assert int((store.train.tokens.array() == 2).sum() + (store.val.tokens.array() == 2).sum()) == len(NAMES)
    words = ("train.py", "--data", "x.txt", "--kind", "stream", "--separator")
    ok(cli(*words, "%", "--context", 8, *quick("mlp")))
    refused(cli(*words, "#", *quick("mlp", out="other")), "'#' occurs nowhere in x.txt", "leave out --separator")
    (tmp_path / "one.txt").write_text(" ".join(NAMES) + "#")
    (tmp_path / "val.txt").write_text("#".join(NAMES))
    store = prepare(str(tmp_path / "one.txt"), val_data=str(tmp_path / "val.txt"), kind="stream", separator="#")
    assert [int((side.tokens.array() == 2).sum()) for side in (store.train, store.val)] == [1, len(NAMES)]
