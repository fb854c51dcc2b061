"""A large source is read in full once: not again while it is the file that the note is about, and always when not."""

import hashlib
import json
import os
import shutil
import zlib
from pathlib import Path

import pytest

from data import reading, source_notes, sources, tables
from tests.conftest import Forked
from tests.helpers import at_call, ok, quick, refused, warnings_of

BIGRAM = quick("bigram", data="text.txt")


@pytest.fixture
def cache(tmp_path, text, monkeypatch) -> Path:
    """An empty cache, for which text.txt is large and was not written just now."""
    monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(source_notes, "LARGE", 1000)
    monkeypatch.setattr(source_notes, "SETTLED", -1)
    return tmp_path / "cache"


@pytest.fixture
def read(tmp_path, monkeypatch):
    """`read()`: the names of the files that were read in full since it was asked before, by any process. (The commands
    are forked from here.)"""
    told = tmp_path / "told"

    def watch(owner, name: str) -> None:
        function = getattr(owner, name)

        def wrapper(path, *args):
            with open(told, "a") as file:
                file.write(f"{path.name}\n")
            return function(path, *args)

        monkeypatch.setattr(owner, name, wrapper)

    for owner, name in ((reading, "_fingerprint"), (reading, "_has_text"), (sources, "digest_of")):
        watch(owner, name)

    def names() -> list[str]:
        lines = told.read_text().split() if told.exists() else []
        told.unlink(missing_ok=True)
        return lines

    return names


def prepared(cli, *flags) -> str:
    """The folder of the text that the command prepares or finds."""
    (line,) = [line for line in ok(cli("-m data.prepare", *flags)).out.splitlines() if line.startswith("prepared in ")]
    return line.split(";")[0]


def notes(cache: Path) -> list[Path]:
    return list((cache / "sources").glob("*"))


def edit(path: Path) -> None:
    """Another character in place, at the same size and with the time of before."""
    times = path.stat()
    with open(path, "r+b") as file:
        file.write(b"Q")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_mtime_ns == times.st_mtime_ns and path.stat().st_size == times.st_size


def test_the_commands_of_a_run_read_its_text_in_full_once(cli, cache, read):
    ok(cli("train.py", *BIGRAM))
    for words in (["--resume", "--out", "run", "--steps", 9], ["--eval-only", "--out", "run"]):
        assert not warnings_of(ok(cli("train.py", *words)))
    prepared(cli, "--data", "text.txt")
    assert read() == ["text.txt"] and len(notes(cache)) == 1


def test_with_a_note_the_key_is_that_without(cli, cache, read, monkeypatch):
    flags = ("--data", "text.txt", "--encoding", "latin-1")
    keys = {prepared(cli, *flags) for _ in range(2)}
    monkeypatch.setattr(source_notes, "LARGE", 1 << 22)
    assert keys == {prepared(cli, *flags)} and read() == ["text.txt"] * 2


def test_of_several_processes_on_a_host_one_reads(cache, read, ranks):
    for each in ranks(2, "train.py", *BIGRAM):
        ok(each.wait())
    assert read() == ["text.txt"]


def test_an_edit_that_sets_the_time_back_is_found(cli, cache, read, text):
    before = prepared(cli, "--data", "text.txt")
    ok(cli("train.py", *BIGRAM))
    edit(text)
    assert prepared(cli, "--data", "text.txt") != before and read() == ["text.txt"] * 2
    (told,) = warnings_of(ok(cli("train.py", "--resume", "--out", "run", "--steps", 9)))
    assert "has changed since the run began" in told


def test_another_file_in_its_place_is_read(cli, cache, read, text, tmp_path):
    before = prepared(cli, "--data", "text.txt")
    (tmp_path / "other").write_bytes(b"Q" + text.read_bytes()[1:])
    shutil.copystat(text, tmp_path / "other")
    os.replace(tmp_path / "other", text)
    assert prepared(cli, "--data", "text.txt") != before and read() == ["text.txt"] * 2


def test_a_file_that_was_written_just_now_is_not_noted(cli, cache, read, text, monkeypatch):
    """Its next change might leave its times as they are, where a file system's clock ticks slowly."""
    monkeypatch.setattr(source_notes, "SETTLED", 3600)
    os.utime(text, (0, 0))
    for _ in range(2):
        prepared(cli, "--data", "text.txt")
    assert read() == ["text.txt"] * 2 and not notes(cache)


def test_a_file_that_is_another_while_it_is_read_is_not_noted(cli, cache, text):
    """A link that points elsewhere for a while."""
    files = [text.rename(text.with_name("one")), text.with_name("other")]
    files[1].write_bytes(b"Q" + files[0].read_bytes()[1:])

    def point_to(file: Path) -> None:
        text.unlink(missing_ok=True)
        text.symlink_to(file)

    point_to(files[0])
    with at_call(reading, "_fingerprint", 1, lambda: point_to(files[1])):
        other = prepared(cli, "--data", "text.txt")
    assert not notes(cache)
    point_to(files[0])
    assert prepared(cli, "--data", "text.txt") != other


def test_small_files_and_standard_input_are_not_noted(cli, cache, text, names):
    prepared(cli, "--data", "names.txt")
    ok(cli("-m data.prepare", "--data", "-", stdin=text.read_bytes()))
    assert not notes(cache)


def rewritten(note: Path, change) -> None:
    """Change what a note says, and its checksum with it."""
    content = json.loads(note.read_text())
    del content["crc32"]
    change(content)
    note.write_text(json.dumps(content | {"crc32": zlib.crc32(json.dumps(content).encode())}))


def digit(note: Path) -> None:
    """Another digit in the hash that a note has."""
    digest = next(iter(json.loads(note.read_text())["facts"].values()))[0]
    note.write_text(note.read_text().replace(digest, ("1" if digest[0] == "0" else "0") + digest[1:]))


DAMAGE = {
    "torn": lambda note: note.write_bytes(note.read_bytes()[:30]),
    "empty": lambda note: note.write_bytes(b""),
    "a list": lambda note: note.write_text("[1]"),
    "not text": lambda note: note.write_bytes(b"\xff"),
    "another hash": digit,
    "of a later version": lambda note: rewritten(note, lambda content: content.update(format=99)),
    "a folder": lambda note: (note.unlink(), note.mkdir()),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_useless_note_means_that_the_file_is_read(cli, cache, read, case):
    before = prepared(cli, "--data", "text.txt")
    (note,) = notes(cache)
    DAMAGE[case](note)
    assert prepared(cli, "--data", "text.txt") == before and read() == ["text.txt"] * 2
    assert notes(cache) == [note], "nothing unfinished is left"
    assert prepared(cli, "--data", "text.txt") == before and len(read()) == (case == "a folder")


def test_where_no_note_can_be_written_the_file_is_read_every_time(cli, cache, read):
    cache.mkdir()
    (cache / "sources").write_text("a file")
    for _ in range(2):
        prepared(cli, "--data", "text.txt")
    assert read() == ["text.txt"] * 2 and (cache / "sources").read_text() == "a file"


def test_a_note_that_is_not_true_is_found_while_the_text_is_prepared_and_does_not_last(cli, cache):
    """As of a file that was written by way of memory, which may set its times late."""
    folder = prepared(cli, "--data", "text.txt")
    shutil.rmtree(folder.removeprefix("prepared in "))
    wrong = hashlib.sha256(b"another text").hexdigest()
    rewritten(*notes(cache), lambda content: content["facts"].update({"fingerprint in utf-8": [wrong, False]}))
    refused(
        cli("-m data.prepare", "--data", "text.txt"), "text.txt changed while it was read", "prepare its text again"
    )
    assert prepared(cli, "--data", "text.txt") == folder


def test_a_process_that_is_killed_while_it_writes_leaves_the_note_as_it_was(cli, cache, read):
    prepared(cli, "--data", "text.txt")
    write_text = Path.write_text

    def torn(self, content, *how):
        write_text(self, content[:40], *how)
        os._exit(9)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_text", torn)
        assert cli("-m data.prepare", "--data", "text.txt", "--encoding", "latin-1").code == 9
    assert len(notes(cache)) == 2 and len(read()) == 2
    prepared(cli, "--data", "text.txt")
    assert read() == []
    ok(cli("-m data.prepare", "--clear"))
    assert not notes(cache)


def test_two_processes_at_once_leave_a_whole_note(cli, cache, read, tmp_path):
    """One reads and writes all while the other is about to write."""
    with at_call(source_notes, "_write", 1, lambda: Forked(tmp_path, "-m data.prepare", "--data", "text.txt").wait()):
        prepared(cli, "--data", "text.txt", "--encoding", "latin-1")
    assert len(read()) == 2 and len(notes(cache)) == 1
    prepared(cli, "--data", "text.txt", "--encoding", "latin-1")
    assert read() == []
    each = [Forked(tmp_path, "-m data.prepare", "--data", "text.txt", "--workers", 1) for _ in range(4)]
    for one in each:
        ok(one.wait())
    prepared(cli, "--data", "text.txt")
    assert 1 <= len(read()) <= 4 and len(notes(cache)) == 1


def test_the_files_of_a_folder_are_read_in_full_once(cli, cache, read, text, tmp_path):
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.txt"):
        shutil.copy(text, tmp_path / "texts" / name)
    (tmp_path / "texts" / "c.bin").write_bytes(bytes(2000))
    first = ok(cli("-m data.prepare", "--data", "texts"))
    assert read() == ["a.txt", "b.txt", "c.bin", "a.txt", "b.txt"] and len(notes(cache)) == 2
    again = ok(cli("-m data.prepare", "--data", "texts"))
    assert read() == ["c.bin"], "of what is no text nothing is noted"
    assert (first.out, warnings_of(first)) == (again.out, warnings_of(again))
    edit(tmp_path / "texts" / "a.txt")
    assert ok(cli("-m data.prepare", "--data", "texts")).out != first.out
    assert read() == ["a.txt", "c.bin", "a.txt"]


def test_what_was_found_in_one_encoding_is_not_taken_for_another(cli, cache, tmp_path):
    (tmp_path / "texts").mkdir()
    for name, content in (("a.txt", b"caf\xe9 " * 500), ("b.txt", b"coffee " * 500)):
        (tmp_path / "texts" / name).write_bytes(content)
    for encoding, left_out in (("latin-1", 0), ("utf-8", 1), ("latin-1", 0)):
        told = warnings_of(ok(cli("-m data.prepare", "--data", "texts", "--encoding", encoding)))
        assert len([line for line in told if "are not utf-8: left out (a.txt)" in line]) == left_out
    (tmp_path / "malayalam.txt").write_bytes("\u0d0d".encode("utf-16-le") * 1000)
    for encoding, has_lone_returns in (("utf-16-le", False), ("latin-1", True), ("utf-16-le", False)):
        assert reading.fingerprint(tmp_path / "malayalam.txt", encoding)[1] == has_lone_returns


def test_whether_rows_have_line_ends_is_found_once(cli, cache, tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n" + "one,two\nthree,four\n" * 99)
    prepared(cli, "--data", "t.csv", "--text-column", "a")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "read_texts", None)  # it would be called
        prepared(cli, "--data", "t.csv", "--text-column", "a")
    (tmp_path / "t.csv").write_text("a,b\n" + 'one,two\n"three\n3",four\n' * 99)
    assert "documents" in ok(cli("-m data.prepare", "--data", "t.csv", "--text-column", "a")).out


def test_the_checksum_of_a_data_set_is_computed_once(cli, cache, read, text, tmp_path, monkeypatch):
    digest = hashlib.sha256(text.read_bytes()).hexdigest()
    remote = sources.Remote("text.txt", "http://nowhere", text.stat().st_size, digest)
    monkeypatch.setitem(sources.REMOTES, "shakespeare", remote)
    monkeypatch.setenv("CHARLM_DATA", str(tmp_path))
    for _ in range(2):
        prepared(cli, "--data", "shakespeare")
    assert read() == ["text.txt"] * 2, "once for the checksum, once for the fingerprint"
    edit(text)
    refused(cli("-m data.prepare", "--data", "shakespeare"), "text.txt fails its SHA-256 check")


def test_notes_are_listed_and_cleared_and_nothing_else_with_them(cli, cache):
    prepared(cli, "--data", "text.txt")
    (note,) = notes(cache)
    (cache / "sources" / "mine.json").write_text("dear")
    (row,) = [line for line in ok(cli("-m data.prepare", "--list")).out.splitlines() if line.startswith("sources")]
    assert "notes on large sources" in row and f"{note.stat().st_size} bytes" in row
    ok(cli("-m data.prepare", "--clear", "sources"))
    assert [path.name for path in notes(cache)] == ["mine.json"] and list((cache / "prepared").iterdir())
    assert "mine.json" not in ok(cli("-m data.prepare", "--list")).out
