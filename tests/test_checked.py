"""A prepared text is read in full once: not again while its files are those that were checked, and always when not."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from data import checked, token_file
from data.prepare import prepare
from data.store import Damaged, open_store
from tests.helpers import ok, quick, warnings_of
from tests.test_store import DAMAGE, SILENT, without_sums

LONG_AGO = time.time() - 3600


@pytest.fixture
def scans(monkeypatch) -> list[str]:
    """The names of the files that are read in full, as they are."""
    names, scan = [], token_file._scan
    monkeypatch.setattr(token_file, "_scan", lambda path, dtype: names.append(path.name) or scan(path, dtype))
    return names


@pytest.fixture
def folder(tmp_path, names, monkeypatch) -> Path:
    """A store that was prepared an hour ago."""
    monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / "cache"))
    return aged(prepare(str(names.rename(tmp_path / "t.txt")), kind="lines").folder)


def aged(folder: Path) -> Path:
    for path in folder.iterdir():
        os.utime(path, (LONG_AGO, LONG_AGO))
    return folder


FILES = ["train.bin", "train.offsets.bin", "val.bin", "val.offsets.bin"]


def test_each_file_is_read_in_full_once(folder, scans):
    for _ in range(3):
        assert open_store(folder).kind == "lines"
    assert scans == FILES
    assert {path.name for path in folder.iterdir()} == {*FILES, "meta.json", "tokenizer.json", "checked.json"}


def test_a_file_that_was_written_just_now_is_read_again(tmp_path, names, monkeypatch, scans):
    """Its next change might leave its times as they are, where a file system's clock ticks slowly."""
    monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(checked, "SETTLED", 3600)
    folder = prepare(str(names), kind="lines").folder
    open_store(folder)
    assert scans == FILES * 2 and not (folder / "checked.json").exists()
    os.utime(folder / "val.bin", (LONG_AGO - 1, LONG_AGO - 1))
    scans.clear()
    open_store(folder)
    open_store(folder)
    assert scans.count("val.bin") == 1 and scans.count("train.bin") == 2


@pytest.mark.parametrize("damage", [*DAMAGE, *SILENT])
def test_damage_after_the_check_is_found(folder, damage):
    open_store(folder)
    (SILENT.get(damage) or DAMAGE[damage][0])(folder)
    with pytest.raises(Damaged):
        open_store(folder)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_after_the_check_of_an_earlier_version_is_found(folder, damage):
    without_sums(folder)
    open_store(aged(folder))
    DAMAGE[damage][0](folder)
    with pytest.raises(Damaged):
        open_store(folder)


def test_damage_that_sets_the_time_back_is_found(folder):
    open_store(folder)
    times = (folder / "train.bin").stat()
    SILENT["zeros"](folder)
    os.utime(folder / "train.bin", ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(Damaged, match="checksum"):
        open_store(folder)


def test_another_file_in_its_place_is_read(folder, scans, tmp_path):
    open_store(folder)
    copy = shutil.copy2(folder / "val.bin", tmp_path / "val.bin")
    os.replace(copy, folder / "val.bin")
    scans.clear()
    open_store(folder)
    assert scans == ["val.bin"]
    open_store(shutil.copytree(folder, tmp_path / "copy"))
    assert scans[1:] == FILES, "a copied note is about other files"


NOTES = {
    "torn": lambda note: note.write_bytes(note.read_bytes()[:30]),
    "a list": lambda note: note.write_text("[1]"),
    "not text": lambda note: note.write_bytes(b"\xff"),
    "no files": lambda note: note.write_text(json.dumps({"about": json.loads(note.read_text())["about"], "files": 3})),
    "about another text": lambda note: note.write_text(note.read_text().replace('"about": [', '"about": [1, ')),
    "a folder": lambda note: (note.unlink(), note.mkdir()),
}


@pytest.mark.parametrize("case", NOTES)
def test_a_useless_note_means_that_all_is_read(folder, scans, case):
    open_store(folder)
    NOTES[case](folder / "checked.json")
    scans.clear()
    open_store(folder)
    assert scans == FILES and not [*folder.glob("*.new")]


def test_where_the_note_cannot_be_written_all_is_read_every_time(folder, scans, monkeypatch):
    def refuse(self, *args, **options):
        raise PermissionError(13, "not allowed", str(self))

    monkeypatch.setattr(Path, "write_text", refuse)
    open_store(folder)
    open_store(folder)
    assert scans == FILES * 2


def test_the_commands_of_a_run_read_its_text_in_full_once(cli, tmp_path, folder, monkeypatch):
    told = tmp_path / "scans"
    scan = token_file._scan

    def count(path, dtype):
        with open(told, "a") as file:
            file.write(f"{path.name}\n")
        return scan(path, dtype)

    monkeypatch.setattr(token_file, "_scan", count)  # the commands are forked from here
    ok(cli("train.py", *quick("bigram", data="t.txt", kind="lines")))
    assert not warnings_of(ok(cli("train.py", "--resume", "--out", "run", "--steps", 9)))
    ok(cli("sample.py", "run", "--only-new", "--num", 2))
    assert told.read_text().split() == FILES
