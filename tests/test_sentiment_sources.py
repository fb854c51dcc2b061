"""Labelled data sets by name, on small archives of the same shape: their sides, the cache, and what is refused."""

import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from data.errors import UserError
from data.examples import read_sides
from data.labelled import named
from data.labelled.example import Columns
from data.sources import Remote
from tests.helpers import ok, refused, summary, warnings_of

MODULE = "-m finetune.classify"
QUICK = ("--n-embd", 8, "--n-hidden", 8, "--steps", 2, "--eval-interval", 2, "--batch-size", 8, "--ngrams", 0)
GOOD, BAD = "a joy from end to end", 'dull , "long" and loud'
SST2 = {
    "train.tsv": "sentence\tlabel\n" + "".join(f"{GOOD} {n} \t1\n{BAD} {n} \t0\n" for n in range(20)),
    "dev.tsv": f"sentence\tlabel\n{GOOD} 3 \t1\n{BAD} \t0\n{GOOD} \t1\n",
    "test.tsv": "index\tsentence\n0\tnobody says what it is\n",
    "original/README.txt": "sentence\tlabel\n",
}
IMDB = {
    f"{side}/{label}/{n}_{9 if label == 'pos' else 1}.txt": f"{text}<br /><br />{side} {n}"
    for side, size in (("train", 20), ("test", 3))
    for label, text in (("pos", GOOD), ("neg", BAD))
    for n in range(size)
} | {
    "train/unsup/0_0.txt": "nobody says what it is",
    "train/labeledBow.feat": "9 0:1\n",
    "train/urls_pos.txt": "http://x\n",
    "imdb.vocab": "the\n",
    "README": "x",
}
SIZES = {"sst2": {"train": 40, "test": 3}, "imdb": {"train": 40, "test": 6}}


def zipped(files: dict[str, str], folder: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{folder}/", "")
        for name, text in files.items():
            archive.writestr(f"{folder}/{name}", text)
    return buffer.getvalue()


def tarred(files: dict[str, str], folder: str, *more: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
        for member in more:
            archive.addfile(member)
    return buffer.getvalue()


ARCHIVES = {"sst2": zipped(SST2, "SST-2"), "imdb": tarred(IMDB, "aclImdb")}
FILES = {"sst2": SST2, "imdb": IMDB}


@pytest.fixture
def known(tmp_path, monkeypatch):
    """`known(name, content)` makes this content, and the sizes above, what is known of the archive of `name`, and
    returns where in `$CHARLM_DATA` it belongs. Nothing can be downloaded."""
    monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CHARLM_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()

    def put(name: str, content: bytes) -> Path:
        old = named.NAMED[name]
        remote = Remote(old.remote.file, "http://127.0.0.1:9/x", len(content), hashlib.sha256(content).hexdigest())
        monkeypatch.setitem(named.NAMED, name, old._replace(remote=remote, sizes=SIZES[name]))
        return tmp_path / "data" / remote.file

    return put


@pytest.fixture
def brought(known):
    """The archives lie in `$CHARLM_DATA`."""
    for name, content in ARCHIVES.items():
        known(name, content).write_bytes(content)


def unpack(name: str, folder: Path) -> None:
    for file, text in FILES[name].items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text, "utf-8")


def triples(name: str) -> dict[str, list[tuple[str, str]]]:
    return {side: [(e.text, e.label) for e in examples] for side, examples in read_sides(name, Columns())[1].items()}


def test_the_archives_are_those_that_two_public_sources_know():
    sst2, imdb = named.NAMED["sst2"], named.NAMED["imdb"]
    assert (sst2.remote.file, sst2.remote.size, sst2.sizes["test"]) == ("SST-2.zip", 7_439_277, 872)
    assert (imdb.remote.file, imdb.remote.size, imdb.sizes["test"]) == ("aclImdb_v1.tar.gz", 84_125_825, 25_000)
    assert all(each.remote.url.startswith("https://") and len(each.remote.sha256) == 64 for each in (sst2, imdb))


def test_sst2_has_its_dev_side_for_the_test(cli, brought):
    done = ok(cli(MODULE, "--data", "sst2", *QUICK, "--no-baseline", "--out", "run"))
    assert "sst2: 36 train, 4 val, 3 test, 2 classes" in done.out
    assert "the labels of its test.tsv are not published, so dev.tsv is the test side here" in done.err
    assert list(summary()["test"]["classes"]) == ["negative", "positive"]
    assert summary()["test"]["classes"]["positive"]["examples"] == 2
    (twice,) = warnings_of(done)[:1]
    assert "1 of 40 train examples have a text that is in test too" in twice
    assert "SST-2/train.tsv line 8 and SST-2/dev.tsv line 2" in twice
    found = dict(map(reversed, triples("sst2")["train"][:2]))
    assert found == {"positive": f"{GOOD} 0", "negative": f"{BAD} 0"}  # quotes are data


def test_a_run_on_one_is_tried_on_the_other(cli, brought):
    ok(cli(MODULE, "--data", "imdb", *QUICK, "--no-baseline", "--out", "run"))
    assert summary()["test"]["classes"]["negative"]["examples"] == 3
    for more, name, size in (([], "imdb", 6), (["--data", "sst2"], "sst2", 3)):
        (line,) = ok(cli(MODULE, "--eval-only", *more, "--out", "run")).out.splitlines()
        assert (json.loads(line)["data"], json.loads(line)["examples"]) == (name, size)


def test_imdb_is_unpacked_once(known, tmp_path, capsys):
    path = known("imdb", ARCHIVES["imdb"])
    path.write_bytes(ARCHIVES["imdb"])
    first = triples("imdb")
    assert {side: len(found) for side, found in first.items()} == {"train": 40, "test": 6}
    assert first["test"][0] == (f"{BAD}<br /><br />test 0", "negative") and first["test"][-1][1] == "positive"
    made = sorted((tmp_path / "cache/downloads").iterdir())
    assert [path.name.split(".")[0:2] for path in made if path.suffix == ".jsonl"] == [
        ["imdb", "test"], ["imdb", "train"],
    ]  # fmt: skip
    times = [path.stat().st_mtime_ns for path in made]
    assert triples("imdb") == first and [path.stat().st_mtime_ns for path in made] == times
    made[-1].write_bytes(made[-1].read_bytes()[:-40])
    assert triples("imdb") == first and capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_unpacked_folder_is_as_good_as_the_archive(known, tmp_path, capsys, name):
    path = known(name, ARCHIVES[name])
    path.write_bytes(ARCHIVES[name])
    from_archive = triples(name)
    path.unlink()
    folder = tmp_path / "data" / named.NAMED[name].folder
    unpack(name, folder)
    assert triples(name) == from_archive and "warning" not in capsys.readouterr().err
    lost = folder / ("dev.tsv" if name == "sst2" else "test/neg/0_1.txt")
    lost.write_text("sentence\tlabel\nwarm\t1\ncold\t0\n") if name == "sst2" else lost.unlink()
    assert len(triples(name)["test"]) == SIZES[name]["test"] - 1
    assert f"{folder} has {SIZES[name]['test'] - 1} test texts; {SIZES[name]['test']} were published" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ARCHIVES)
def test_without_a_network_the_message_says_what_to_bring_where(cli, known, name):
    path = known(name, ARCHIVES[name])
    told = cli(MODULE, "--data", name, *QUICK)
    refused(told, f"could not download '{name}'", f"call it {path.name} and put it into a folder", "$CHARLM_DATA")
    path.write_bytes(ARCHIVES[name][::-1])
    refused(cli(MODULE, "--data", name, *QUICK), f"{path} fails its SHA-256 check")


def link(name: str, to: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, to
    return member


def test_links_and_names_that_lead_out_are_passed_over(known, tmp_path):
    outside = [f"../aclImdb/test/pos/{n}_9.txt" for n in range(2)] + ["/aclImdb/test/pos/3_9.txt"]
    files = IMDB | {name: "x" for name in ("../../test/pos/7_9.txt", "test/pos/../neg/7_9.txt", "test/pos/sub/7_9.txt")}
    links = [link("aclImdb/test/pos/8_9.txt", "/etc/passwd"), *map(tarfile.TarInfo, outside)]
    content = tarred(files, "aclImdb", *links)
    known("imdb", content).write_bytes(content)
    assert len(triples("imdb")["test"]) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "data"]


BROKEN = {
    "no archive": ("imdb", b"x" * 100, "is no archive of aclImdb, or damaged"),
    "cut": ("imdb", ARCHIVES["imdb"][: len(ARCHIVES["imdb"]) // 2], "has no test texts: it is not aclImdb"),
    "no zip": ("sst2", b"PK" * 50, "is no archive of SST-2, or damaged"),
    "another folder": ("sst2", zipped(SST2, "SST-3"), "has no train texts: it is not SST-2"),
    "no test": (
        "imdb",
        tarred({name: text for name, text in IMDB.items() if "test/" not in name}, "aclImdb"),
        "has no test texts: it is not aclImdb",
    ),
    "another header": (
        "sst2",
        zipped(SST2 | {"dev.tsv": "text\tlabel\nwarm\t1\n"}, "SST-2"),
        "SST-2/dev.tsv line 1 does not name the columns 'sentence' and 'label'",
    ),
    "other labels": (
        "sst2",
        zipped(SST2 | {"dev.tsv": SST2["dev.tsv"].replace("\t1", "\t4")}, "SST-2"),
        "SST-2/dev.tsv line 2 has the label '4', not 0 or 1; 2 of 3 rows cannot be used",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_another_archive_is_refused_in_words(known, tmp_path, case):
    name, content, message = BROKEN[case]
    known(name, content).write_bytes(content)
    with pytest.raises(UserError) as error:
        triples(name)
    assert message in str(error.value) and not list((tmp_path / "cache/downloads").glob("*.part"))


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_unpacks_to_too_much_is_refused(brought, monkeypatch, name):
    monkeypatch.setattr(named, "MAX_BYTES", 400)
    with pytest.raises(UserError, match="unpacks to more than 400 bytes: it is not http"):
        triples(name)


def test_flags_of_files_mean_nothing_to_a_name(cli, brought):
    refused(cli(MODULE, "--data", "sst2", "--text-column", "sentence", *QUICK), "--text-column is for tables and JSON")
    refused(cli(MODULE, "--data", "imdb", "--encoding", "latin-1", *QUICK), "--encoding latin-1 is for files; imdb")


def test_what_is_not_there_names_the_labelled_data_sets(cli, known):
    names = "by name there are: surnames, sst2, imdb."
    refused(cli(MODULE, "--data", "sst-2", *QUICK), "no such file, folder or data set: 'sst-2'", names, "'sst2'?")
    refused(cli(MODULE, "--data", "shakespeare", *QUICK), "'shakespeare' has no labels", names)
