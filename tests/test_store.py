"""Preparing a text: the splits, the vocabulary, notes, the cache, damaged stores, memory, and what is refused."""

import errno
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data import reading
from data.errors import UserError
from data.prepare import prepare
from data.store import FORMAT, open_store
from data.tokenizers import EOS, UNK, CharTokenizer
from tests.conftest import NAMES, ROOT
from tests.helpers import at_call, ok, refused, tree, warnings_of

WORDS = random.Random(1).sample([f"{a}{b}" for a in NAMES for b in NAMES], 350)


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def text_of(store, side: str) -> str:
    return store.tokenizer.decode(getattr(store, side).tokens.array())


def written(folder: Path) -> dict[str, bytes]:
    """What was prepared: the files of a store, without the note of what was checked later."""
    return {name: content for name, content in tree(folder).items() if name != "checked.json"}


def lines_of(store, side: str) -> list[str]:
    split = getattr(store, side)
    rows = np.split(split.tokens.array(), split.offsets[1:-1])
    assert all(row[-1] == EOS for row in rows)
    return [store.tokenizer.decode(row) for row in rows]


def test_a_stream_gives_its_last_tenth_to_validation(tmp_path):
    text = " ".join(WORDS)
    store = prepare(write(tmp_path / "t", text))
    border = int(len(text) * 0.9)
    assert store.kind == "stream" and (text_of(store, "train"), text_of(store, "val")) == (text[:border], text[border:])


def test_a_validation_text_of_its_own_leaves_the_training_text_whole(tmp_path):
    train, val = " ".join(WORDS[:300]), " ".join(WORDS[300:])
    store = prepare(write(tmp_path / "t", train), val_data=write(tmp_path / "v", val))
    assert (text_of(store, "train"), text_of(store, "val")) == (train, val)


def test_lines_are_split_by_their_hash_so_that_copies_stay_on_one_side(tmp_path):
    store = prepare(write(tmp_path / "t", "\n".join(WORDS * 3)), kind="lines")
    train, val = lines_of(store, "train"), lines_of(store, "val")
    assert sorted(train + val) == sorted(WORDS * 3)
    assert not set(train) & set(val)
    assert 0.05 < len(val) / len(WORDS * 3) < 0.15
    assert store.meta["notes"] == ["700 of 1,050 lines are duplicates: kept (all copies on one side of the split)"]


def test_adding_and_shuffling_lines_moves_no_other_line_to_the_other_side(tmp_path):
    before = prepare(write(tmp_path / "a", "\n".join(WORDS[:200])), kind="lines")
    more = random.Random(2).sample(WORDS, len(WORDS))
    after = prepare(write(tmp_path / "b", "\n".join(more)), kind="lines")
    assert set(lines_of(before, "val")) == set(lines_of(after, "val")) & set(WORDS[:200])


@pytest.mark.parametrize("count", [2, 3, 5])
def test_even_a_few_lines_leave_some_on_both_sides(tmp_path, count):
    for start in range(0, 40, count):
        store = prepare(write(tmp_path / "t", "\n".join(WORDS[start : start + count])), kind="lines")
        assert lines_of(store, "train") and lines_of(store, "val")


def test_line_ends_of_windows_and_blank_lines_leave_no_trace(tmp_path):
    unix = prepare(write(tmp_path / "a", "\n".join(WORDS)), kind="lines")
    windows = prepare(write(tmp_path / "b", "\ufeff" + " \r\n\r\n".join(WORDS) + "\r\n"), kind="lines")
    assert lines_of(windows, "train") == lines_of(unix, "train") and lines_of(windows, "val") == lines_of(unix, "val")


def test_the_vocabulary_is_that_of_the_training_side_and_the_rest_is_masked(tmp_path):
    store = prepare(write(tmp_path / "t", "abcd" * 225 + "abé€" * 25))
    assert store.tokenizer.alphabet == "abcd"
    assert (store.val.tokens.array() == UNK).sum() == 50 and not (store.train.tokens.array() == UNK).any()
    (note,) = store.meta["notes"]
    assert note.startswith("50 characters of the validation text (2 distinct: 'é' '€')")


def test_the_vocabulary_of_lines_is_that_of_the_training_lines(tmp_path):
    store = prepare(write(tmp_path / "t", "\n".join(f"{word}{chr(0x4E00 + i)}" for i, word in enumerate(WORDS))))
    lines = prepare(
        write(tmp_path / "t", "\n".join(f"{w}{chr(0x4E00 + i)}" for i, w in enumerate(WORDS))), kind="lines"
    )
    assert set(lines.tokenizer.alphabet) == set("".join(lines_of(lines, "train")))
    assert set(store.tokenizer.alphabet) == set(text_of(store, "train"))
    assert "never occur in the training text" in lines.meta["notes"][-1]


def test_validation_lines_that_training_also_has_are_counted(tmp_path):
    train, val = "\n".join(WORDS[:50]), "\n".join(WORDS[40:60])
    store = prepare(write(tmp_path / "t", train), val_data=write(tmp_path / "v", val), kind="lines")
    assert store.meta["notes"] == ["10 of 20 validation lines also stand in the training text"]


@pytest.mark.parametrize("ending", ["", "\n", "\n\n"])
def test_the_start_text_is_in_the_vocabulary(tmp_path, ending):
    store = prepare(write(tmp_path / "t", "all of it on a single line " * 20 + ending))
    assert len(store.tokenizer.encode(store.meta["start"])) == 1


def test_a_text_on_one_line_trains_to_the_end(cli, tmp_path):
    write(tmp_path / "t.txt", "all of it on a single line " * 20 + "\n")
    flags = ("--model", "bigram", "--steps", 2, "--context", 8, "--out", "run")
    trained = cli("train.py", "--data", "t.txt", *flags)
    assert trained.code == 0, trained.err
    assert cli("sample.py", "run").code == 0


def test_a_given_vocabulary_is_kept_and_its_start_text_fits(tmp_path):
    known = prepare(write(tmp_path / "a", "abc" * 100)).tokenizer
    store = prepare(write(tmp_path / "b", "ab\ncd" * 100), vocabulary=known)
    assert store.tokenizer.to_json() == known.to_json()
    assert (store.train.tokens.array() == UNK).sum() == 180
    assert not any("never occur in the training text" in note for note in store.meta["notes"])
    assert len(known.encode(store.meta["start"])) == 1


@pytest.mark.parametrize(("distinct", "dtype"), [(65_530, np.uint16), (65_531, np.uint32)])
def test_a_large_vocabulary_gets_wider_ids(tmp_path, distinct, dtype):
    alphabet = "".join(map(chr, range(0x10000, 0x10000 + distinct)))
    store = prepare(write(tmp_path / "t", alphabet + alphabet[:10_000]))
    assert (
        store.train.tokens.dtype == dtype
        and (store.folder / "train.bin").stat().st_size % np.dtype(dtype).itemsize == 0
    )
    assert text_of(store, "train") + text_of(store, "val") == alphabet + alphabet[:10_000]


def test_bytes_and_encodings(tmp_path):
    path = write(tmp_path / "t", ("Füße und Äpfel\n" * 20).encode("latin-1"))
    store = prepare(path, tokenizer="byte", encoding="latin-1")
    assert text_of(store, "train") + text_of(store, "val") == "Füße und Äpfel\n" * 20
    assert store.tokenizer.vocab_size == 262


@pytest.mark.parametrize("kind", ["stream", "lines"])
@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("change", [b"more\n", b""], ids=["grows", "is emptied"])
def test_a_text_that_changes_while_it_is_read_is_named_and_nothing_is_kept(tmp_path, monkeypatch, kind, nth, change):
    monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / "cache"))
    content = "\n".join(WORDS).encode()
    path = Path(write(tmp_path / "log.txt", content))

    def grow() -> None:
        path.write_bytes(content + change if change else change)

    with at_call(reading, "read_chunks", 1 + nth, grow):  # once for the kind of file that it is
        if kind == "stream" and nth == 3:  # a stream is read twice
            prepare(str(path), kind=kind)
            return
        with pytest.raises(UserError, match=r"log\.txt (changed while it was read|is empty)"):
            prepare(str(path), kind=kind)
    assert not list((tmp_path / "cache").rglob("*.*"))
    path.write_bytes(content)
    assert "".join(lines_of(prepare(str(path), kind="lines"), "train")).count("more") == 0


def test_a_file_that_changes_while_bpe_is_learned_from_it_is_named(tmp_path):
    path = write(tmp_path / "log.txt", "one and two " * 99)
    with at_call(reading, "read_chunks", 3, lambda: write(Path(path), "one and two " * 98 + "one and owt ")):
        with pytest.raises(UserError, match=r"log\.txt changed while it was read"):
            prepare(path, tokenizer="bpe:260")


def test_returns_alone_are_line_ends_and_change_the_key_of_their_text_only(tmp_path):
    unix = prepare(write(tmp_path / "unix", "\n".join(WORDS)), kind="lines")
    mac = prepare(write(tmp_path / "mac", "\r".join(WORDS)), kind="lines")
    assert lines_of(mac, "train") == lines_of(unix, "train") and lines_of(mac, "val") == lines_of(unix, "val")
    # As an earlier version made them: a "\r" was a character, and what it cached is not to be found.
    how = hashlib.sha256(f"{FORMAT} lines char utf-8 0.1".encode() + b"text")
    for store, name in ((unix, "unix"), (mac, "mac")):
        old = how.copy()
        old.update(hashlib.sha256((tmp_path / name).read_bytes()).digest())
        assert (store.key == old.hexdigest()[:16]) == (name == "unix")


def test_control_characters_of_a_text_that_is_cp1252_are_noted(tmp_path):
    path = write(tmp_path / "t", "\u201csome text\u201d ".encode("cp1252") * 99)
    (note,) = prepare(path, encoding="latin-1").meta["notes"]
    assert "'\\x93' '\\x94'" in note and "--encoding cp1252" in note
    assert prepare(path, encoding="cp1252").meta["notes"] == []
    for encoding in ("iso8859-9", "latin9"):
        assert "--encoding cp1252" in prepare(path, encoding=encoding).meta["notes"][0]
    (note,) = prepare(path, encoding="iso8859-2").meta["notes"]
    assert "'\\x93' '\\x94'" in note and note.endswith("see --encoding")


def test_the_same_text_is_prepared_once_wherever_it_lies(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    first = prepare(write(tmp_path / "t.txt", "once and again " * 40))
    stamp = (first.folder / "train.bin").stat().st_mtime_ns
    again = prepare(write(tmp_path / "elsewhere" / "t.txt", "once and again " * 40))
    assert again.folder == first.folder and (again.folder / "train.bin").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    "change", [{"kind": "lines"}, {"tokenizer": "byte"}, {"encoding": "latin-1"}, {"val_data": ""}]
)
def test_reading_it_another_way_prepares_it_anew(tmp_path, change):
    path = write(tmp_path / "t.txt", "once\nand again " * 40)
    change = {name: value or path for name, value in change.items()}
    assert prepare(path, **change).key != prepare(path).key


def test_changed_text_is_prepared_anew_even_at_the_same_size_and_time(tmp_path):
    path = tmp_path / "t.txt"
    first = prepare(write(path, "abcd" * 100))
    times = path.stat()
    write(path, "abdc" * 100)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    second = prepare(str(path))
    assert second.key != first.key and text_of(second, "train").startswith("abdc")


def test_where_one_file_ends_and_the_next_begins_is_part_of_the_text(tmp_path):
    texts = []
    for name, files in {"a": ("one two ", "three " * 9), "b": ("one ", "two " + "three " * 9)}.items():
        (tmp_path / name).mkdir()
        for n, content in enumerate(files):
            write(tmp_path / name / f"{n}.txt", content)
        texts.append(text_of(prepare(str(tmp_path / name)), "train"))
    assert texts[0] != texts[1]


def test_the_note_on_files_left_out_is_about_the_folder_as_it_is_now(tmp_path):
    write(tmp_path / "a.txt", "some text to read " * 20)
    assert prepare(str(tmp_path)).meta["notes"] == []
    write(tmp_path / "b.bin", b"\0\1\2")
    assert prepare(str(tmp_path)).meta["notes"] == [f"1 of the 2 files in {tmp_path} are not utf-8: left out (b.bin)"]
    (tmp_path / "b.bin").unlink()
    assert prepare(str(tmp_path)).meta["notes"] == []


def test_what_is_prepared_changes_only_together_with_the_format(tmp_path):
    """What is cached is not prepared again, so a text of old would go on being split as of old."""
    digest = hashlib.sha256()
    hard = "\ufeff" + "\r\n".join([*WORDS, *WORDS[:9], "", " ", "naïve 漢字", "a\tb\x85c\u2028d"]) + "\n\n"
    path, other = write(tmp_path / "t", hard), write(tmp_path / "v", "\n".join(WORDS[::7]))
    ways = [(kind, tokenizer) for kind in ("lines", "stream") for tokenizer in ("char", "byte", "bpe:300")]
    for kind, tokenizer, val in [*((*way, None) for way in ways), ("lines", "char", other)]:
        store = prepare(path, kind=kind, tokenizer=tokenizer, val_data=val)
        digest.update(json.dumps([store.tokenizer.to_json(), store.meta["start"]]).encode())
        for split in (store.train, store.val):
            digest.update(split.tokens.array().astype(np.int64).tobytes())
            digest.update(b"" if split.offsets is None else split.offsets.astype(np.int64).tobytes())
    assert (FORMAT, digest.hexdigest()[:16]) == (2, "d851f917fc99814c")


def test_what_a_killed_preparation_left_behind_is_no_obstacle(tmp_path):
    path = write(tmp_path / "t.txt", "cut off in the middle " * 20)
    folder = prepare(path).folder
    folder.rename(folder.with_name(f"{folder.name}.{os.getpid()}.part"))
    assert prepare(path).folder == folder
    assert [other.name for other in folder.parent.glob(f"{folder.name}*")] == [folder.name]


def test_others_may_read_a_prepared_text_where_the_umask_lets_them(tmp_path):
    folder = prepare(write(tmp_path / "t.txt", "something to share " * 20)).folder
    (tmp_path / "plain").mkdir()
    assert folder.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("data", ["names", "shakespeare"])
def test_a_cache_that_cannot_be_written_is_a_readable_mistake(monkeypatch, data):
    monkeypatch.setenv("CHARLM_CACHE", os.devnull)
    with pytest.raises(UserError, match=r"\$CHARLM_"):
        prepare(data)


def test_a_failed_preparation_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="offset 90"):
        prepare(write(tmp_path / "t.txt", b"text and then \n" * 6 + b"\xff"))
    assert not list(Path(tmp_path, "cache").rglob("*.*"))


DAMAGE = {
    "a foreign id": (lambda f: np.fromfile(f / "train.bin", np.uint16).__add__(99).tofile(f / "train.bin"), "the id"),
    "a torn file": (lambda f: os.truncate(f / "val.bin", 10), "val.bin holds 5 ids, not"),
    "a missing file": (lambda f: (f / "train.bin").unlink(), "train.bin"),
    "a torn meta.json": (lambda f: os.truncate(f / "meta.json", 20), "is not a prepared text"),
    "another meta.json": (lambda f: (f / "meta.json").write_text("[]"), "is not a prepared text"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "not a tokenizer"),
    "torn offsets": (lambda f: os.truncate(f / "val.offsets.bin", 8), "val.offsets.bin does not fit"),
    "no offsets": (lambda f: os.truncate(f / "val.offsets.bin", 0), "val.offsets.bin does not fit"),
}  # fmt: skip


def without_sums(folder: Path) -> None:
    """Make the store what earlier versions wrote."""
    meta = json.loads((folder / "meta.json").read_text())
    del meta["files"], meta["crc32"]
    (folder / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_store_of_earlier_versions_is_named_and_not_used(tmp_path, damage):
    kept = prepare(write(tmp_path / "t", "\n".join(WORDS)), kind="lines").folder
    folder = shutil.copytree(kept, tmp_path / "copy")
    without_sums(folder)
    assert open_store(folder).kind == "lines"
    change, message = DAMAGE[damage]
    change(folder)
    with pytest.raises(UserError, match=message) as error:
        open_store(folder)
    assert str(folder) in str(error.value)


def hole(path: Path, start: int, length: int) -> None:
    """What a crash leaves of a file whose blocks never reached the disk: zeros."""
    content = bytearray(path.read_bytes())
    content[start : start + length] = bytes(len(content[start : start + length]))
    path.write_bytes(content)


def swap(path: Path, old: str, new: str) -> None:
    content = path.read_text()
    assert content.count(old) == 1
    path.write_text(content.replace(old, new))


SILENT = {
    "zeros": lambda f: hole(f / "train.bin", 0, 1 << 30),
    "a hole": lambda f: hole(f / "val.bin", 20, 16),
    "zeros for offsets": lambda f: hole(f / "train.offsets.bin", 0, 1 << 30),
    "zeros for meta.json": lambda f: hole(f / "meta.json", 0, 1 << 30),
    "another name in meta.json": lambda f: swap(f / "meta.json", '"name": "t"', '"name": "u"'),
    "another id": lambda f: hole(f / "train.bin", 8, 1),
    "another alphabet": lambda f: hole(f / "tokenizer.json", 40, 1),
}


@pytest.mark.parametrize("damage", [*DAMAGE, *SILENT])
def test_a_damaged_store_is_prepared_again_with_one_warning(tmp_path, monkeypatch, capsys, damage):
    monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path / "t.txt", "\n".join([*WORDS, "zz"]))
    folder = prepare(path, kind="lines").folder
    whole = written(folder)
    (SILENT.get(damage) or DAMAGE[damage][0])(folder)
    prepare(path, kind="lines")
    (told,) = capsys.readouterr().err.splitlines()
    assert str(folder) in told and "is damaged" in told
    assert written(folder) == whole and list((tmp_path / "cache" / "prepared").iterdir()) == [folder]


@pytest.mark.parametrize("name", ["meta.json", "train.bin"])
def test_a_store_that_the_disk_does_not_give_is_kept(cli, tmp_path, monkeypatch, name):
    """It may be the only copy of its text."""
    monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / "cache"))
    folder = prepare(write(tmp_path / "t.txt", " ".join(WORDS))).folder
    before, plain = written(folder), io.open

    def fail(path, *args, **options):
        if str(path) == str(folder / name):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return plain(path, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(io, "open", fail)
        patched.setattr("builtins.open", fail)
        ended = cli("-m data.prepare", "--data", "t.txt")
    refused(ended, f"cannot read the prepared text {folder}: Input/output error")
    assert written(folder) == before


def test_a_run_whose_prepared_text_is_damaged_goes_on_from_the_text(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "t.txt", "\n".join([*WORDS, "zz"]))
    flags = ("--model", "bigram", "--steps", 2, "--eval-interval", 1, "--kind", "lines")
    ok(cli("train.py", "--data", "t.txt", "--out", "run", *flags))
    (folder,) = (tmp_path / "cache" / "prepared").iterdir()
    whole = written(folder)
    for again in ("--resume", "--eval-only"):
        SILENT["zeros"](folder)
        (told,) = warnings_of(ok(cli("train.py", again, "--out", "run")))
        assert str(folder) in told and "is damaged" in told
        assert written(folder) == whole
    SILENT["zeros"](folder)
    (tmp_path / "t.txt").unlink()
    refused(cli("train.py", "--resume", "--out", "run"), "is damaged", "no such file")


def test_a_store_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / "cache"))
    done, original = [], os.rename

    def fsync(number: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{number}")).name)

    def rename(source, target) -> None:
        assert {"train.bin", "val.bin", "tokenizer.json", "meta.json", Path(source).name} == set(done)
        done.clear()
        original(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    prepare(write(tmp_path / "t", " ".join(WORDS)))
    assert done == ["prepared"]


_MEASURE = """
import resource, sys
from data.loaders import StreamLoader
from data.eval_batches import eval_batches
from data.prepare import prepare

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
store, before = prepare(sys.argv[1]), peak()
loader = StreamLoader(store.train, 64, 32, seed=0)
for _ in range(3000):
    loader.next()
for batch in eval_batches(store.val, 64, 1 << 40)():
    pass
print(before, peak(), len(store.train.tokens))
"""


def test_a_large_text_is_never_held_in_memory(tmp_path):
    peaks = {}
    for megabytes in (6, 90):
        path = tmp_path / "large.txt"
        with open(path, "w") as file:
            for n in range(megabytes * 4):
                file.write(f"{n:5d} lines of this text were prepared so far, or so it says here\n" * 4096)
        command = [sys.executable, "-c", _MEASURE, str(path)]
        env = os.environ | {"CHARLM_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        peaks[megabytes] = [float(number) for number in done.stdout.split()]
    assert peaks[90][2] > 80e6
    preparing, iterating = peaks[90][0] - peaks[6][0], peaks[90][1] - peaks[6][1]
    assert preparing < 60, "MB more than for a small text"
    assert iterating < 100, "MB more than for a small text, whose ids take 170 MB less"


BAD = {
    "empty": ("", {}, "is empty"),
    "blank": (" \n\t\n", {}, "only white space"),
    "short": ("abc", {}, "validation text of .* has 1 tokens: too short"),
    "no lines": (" \n\n", {"kind": "lines"}, "no line with text"),
    "one line": ("same\nsame\n", {"kind": "lines"}, "only one distinct line.*use --kind stream"),
    "kind": ("some text", {"kind": "chat"}, "unknown kind 'chat'"),
    "tokenizer": ("some text", {"tokenizer": "bites"}, "Did you mean 'byte'"),
    "encoding": ("some text", {"encoding": "utf-99"}, "unknown encoding 'utf-99'"),
    "half a character": ("text +2AA- text " * 20, {"encoding": "utf-7"}, "utf-7.*not text"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_text_that_cannot_be_trained_on_is_refused(tmp_path, case):
    content, how, message = BAD[case]
    with pytest.raises(UserError, match=message):
        prepare(write(tmp_path / "t", content), **how)


def test_the_command_reports_notes_and_sizes(cli, tmp_path):
    write(tmp_path / "t.txt", "\n".join([*WORDS, *WORDS[:3]]))
    made = cli("-m data.prepare", "--data", "t.txt", "--kind", "lines")
    assert made.code == 0 and made.err.startswith("warning: 3 of 353 lines are duplicates")
    folder = Path(made.out.split("prepared in ")[1].split(";")[0])
    tokens = json.loads((folder / "meta.json").read_text())["tokens"]
    assert f"train: {tokens['train']:,} tokens" in made.out and f"val: {tokens['val']:,} tokens" in made.out


@pytest.mark.parametrize("kind", ["stream", "lines"])
def test_a_text_in_another_unicode_form_than_the_vocabulary_s_is_told_so(tmp_path, kind):
    vocabulary = CharTokenizer("caf\u00e9 ab\n0123456789")
    texts = [f"cafe\u0301 {n}\n" for n in range(99)]
    path = write(tmp_path / "t", "".join(texts).encode())
    notes = prepare(path, kind=kind, vocabulary=vocabulary).meta["notes"]
    assert len(notes) == 2, "a note a side"
    for note in notes:
        assert "are not in the model's vocabulary" in note
        assert note.endswith("accents part of their letters (NFC), so write the text in that form")
    path = write(tmp_path / "u", "".join(texts).replace("e\u0301", "x").encode())
    assert all("NFC" not in note for note in prepare(path, kind=kind, vocabulary=vocabulary).meta["notes"])
