"""Files into clean text: encodings, byte-order marks, line ends at any chunk border, binary files, folders, lines."""

import os
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data import reading, sources
from data.errors import UserError

FIXED = settings(max_examples=60, deadline=None, derandomize=True)
TEXTS = st.text("ab \r\n\té€漢😀", max_size=40)
CHUNKS = st.integers(1, 12)


def read(content: bytes, encoding: str = "utf-8", chunk: int = 1 << 22) -> str:
    """What `read_chunks` makes of one file with this content, read `chunk` bytes at a time."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder, "text.txt")
        path.write_bytes(content)
        patch.setattr(reading, "CHUNK", chunk)
        return "".join(reading.read_chunks([path], encoding))


def clean(text: str) -> str:
    """`text` with one kind of line end."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def fill(folder: Path, files: dict[str, bytes]) -> sources.Text:
    """A folder with these files, as `--data` sees it."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return sources.resolve(str(folder))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "gb18030"])
@FIXED
@given(text=TEXTS, chunk=CHUNKS)
@example(text="a\r\nb\r\r\n\r", chunk=2)
@example(text="\r\n", chunk=1)
def test_a_text_reads_the_same_in_chunks_of_any_size(encoding, text, chunk):
    assert read(text.encode(encoding), encoding, chunk) == clean(text)


@FIXED
@given(text=TEXTS, chunk=CHUNKS)
def test_a_byte_order_mark_is_not_text(text, chunk):
    assert read(b"\xef\xbb\xbf" + text.encode(), "utf-8", chunk) == clean(text)
    assert read(("\ufeff" + text).encode("utf-16-be"), "utf-16-be", chunk) == clean(text)


def test_a_byte_order_mark_later_on_is_text():
    assert read("a\ufeffb".encode()) == "a\ufeffb"


@FIXED
@given(before=TEXTS, after=TEXTS, chunk=CHUNKS)
@example(before="", after="", chunk=1)
@example(before="漢", after="\n", chunk=2)
def test_an_invalid_byte_is_reported_at_its_offset(before, after, chunk):
    with pytest.raises(UserError, match=rf"text\.txt is not utf-8: invalid byte at offset {len(before.encode())};"):
        read(before.encode() + b"\xff" + after.encode(), "utf-8", chunk)


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_a_character_torn_at_the_end_of_the_file_is_reported_where_it_begins(chunk):
    with pytest.raises(UserError, match="offset 4;"):
        read("ab漢".encode("gb18030") + "漢".encode()[:1], "gb18030", chunk)
    with pytest.raises(UserError, match="offset 5;"):
        read("ab漢漢".encode()[:-1], "utf-8", chunk)


def test_utf_16_read_as_utf_8_names_the_encoding_to_use():
    with pytest.raises(UserError, match="use --encoding utf-16"):
        read("hello".encode("utf-16"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_plain_text_read_with_a_wide_encoding_is_a_mistake_and_not_a_crash(encoding):
    with pytest.raises(UserError, match=rf"text\.txt is not {encoding}"):
        read(b"hello world!", encoding)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_nul_bytes_mean_a_binary_file(chunk):
    with pytest.raises(UserError, match=r"text\.txt has NUL bytes"):
        read(b"text\0text", "utf-8", chunk)


@pytest.mark.parametrize("name", ["nonsense", "utf-88", "hex", "rot13", "base64"])
def test_an_encoding_that_is_none_is_refused(name):
    with pytest.raises(UserError, match=f"unknown encoding '{name}'"):
        reading.check_encoding(name)


@pytest.mark.parametrize("name", ["utf-8", "UTF8", "latin-1", "cp1252", "utf-16", "gb18030", "shift_jis", "utf-8-sig"])
def test_an_encoding_that_python_knows_is_taken(name):
    reading.check_encoding(name)


def test_a_nearly_right_encoding_is_suggested():
    with pytest.raises(UserError, match="Did you mean 'latin-1'"):
        reading.check_encoding("latin-11")


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*gone\.txt: No such file"):
        list(reading.read_chunks([tmp_path / "gone.txt"], "utf-8"))


def test_a_folder_is_read_in_sorted_order_with_a_line_end_between_files(tmp_path):
    files = {"b.txt": b"two\n", "a.txt": b"one", "c.txt": b"", "sub/a.txt": b"three", "sub/deep/x": b"four\r\n"}
    paths, _ = reading.text_files(fill(tmp_path, files), "utf-8")
    assert "".join(reading.read_chunks(paths, "utf-8")) == "one\ntwo\nthree\nfour\n"


def test_files_of_a_folder_that_are_not_text_are_named_and_left_out(tmp_path):
    files = {"a.txt": b"text", "nul.bin": b"a\0b", "image": b"\x89PNG\r\n\xff", "wide.txt": "wide".encode("utf-16")}
    paths, skipped = reading.text_files(fill(tmp_path, files), "utf-8")
    assert [path.name for path in paths] == ["a.txt"]
    assert [path.name for path in skipped] == ["image", "nul.bin", "wide.txt"]


def test_a_wide_encoding_leaves_out_what_is_not_in_it(tmp_path):
    files = {"plain.txt": b"plain text!", "wide.txt": "wide".encode("utf-16")}
    paths, skipped = reading.text_files(fill(tmp_path, files), "utf-16")
    assert [path.name for path in paths] == ["wide.txt"]
    assert [path.name for path in skipped] == ["plain.txt"]


def test_a_note_names_the_first_three_files_left_out(tmp_path):
    text = fill(tmp_path, {"a.txt": b"text"} | {f"deep/{n}.bin": b"\0" for n in range(5)})
    (note,) = reading.left_out(text, reading.text_files(text, "utf-8")[1], "utf-8")
    assert note.endswith("are not utf-8: left out (deep/0.bin, deep/1.bin, deep/2.bin and 2 more)")
    assert note.startswith("5 of the 6 files")


def test_hidden_files_folders_and_pipes_are_left_out(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # opening it would wait forever
    text = fill(tmp_path, {"a.txt": b"text", ".hidden": b"no", ".git/config": b"no", "sub/.x": b"no"})
    assert [path.name for path in text.files] == ["a.txt"]


@pytest.mark.parametrize(("files", "message"), [({}, "holds no files"), ({"x": b"\0"}, "holds no utf-8 text")])
def test_a_folder_without_text_is_refused(tmp_path, files, message):
    with pytest.raises(UserError, match=message):
        reading.text_files(fill(tmp_path, files), "utf-8")


def test_a_line_of_ten_megabytes_is_one_line():
    (line,) = reading.read_lines([read(b"0123456789" * (1 << 20))])
    assert len(line) == 10 << 20


@FIXED
@given(text=st.text("ab \n\r\t\x0b\x0c\x1c\x85\u2028\u00a0", max_size=40), cuts=st.lists(st.integers(0, 40)))
def test_lines_end_at_line_feeds_alone_wherever_chunks_end(text, cuts):
    borders = [0, *sorted(cuts), len(text)]
    chunks = [text[a:b] for a, b in zip(borders, borders[1:], strict=False)]
    stripped = [line.rstrip() for line in text.split("\n")]
    assert list(reading.read_lines(chunks)) == [line for line in stripped if line]


def test_spaces_before_a_line_stay_and_those_after_it_go():
    text = read(b"  indented  \r\nother\x0bone\t\r\n\r\n   \n")
    assert list(reading.read_lines([text])) == ["  indented", "other\x0bone"]


def test_the_message_of_the_command_line_names_file_and_offset(cli, tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"fine so far \x80 and on\n" * 9)
    ended = cli("train.py", "--data", "bad.txt", "--steps", 1)
    assert ended.code == 2 and re.fullmatch(r"error: bad\.txt is not utf-8: invalid byte at offset 12;.*\n", ended.err)


@FIXED
@given(text=TEXTS, chunk=CHUNKS, encoding=st.sampled_from(["utf-8", "utf-16", "utf-16-le", "latin-1", "gb18030"]))
@example(text="a\r", chunk=1, encoding="utf-8")
@example(text="a\r\n", chunk=2, encoding="utf-8")
@example(text="\u0d0d", chunk=9, encoding="utf-16-le")
def test_a_fingerprint_tells_line_ends_that_earlier_versions_read_as_characters(
    tmp_path_factory, text, chunk, encoding
):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_bytes(text.encode(encoding, "replace"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "CHUNK", chunk)
        assert reading.fingerprint(path, encoding)[1] == ("\r" in text.replace("\r\n", ""))


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (b"\x93caf\xe9\x94", "cp1252"),
        (b"caf\xe9", "latin-1"),
        ("\u0141\u00f3d\u017a \u201c".encode() + b"\xe9", "latin-1"),  # bytes 0x80 to 0x9f of good UTF-8 mean nothing
    ],
)
def test_the_encoding_that_is_proposed_has_the_bytes(content, encoding):
    with pytest.raises(UserError, match=f"as in --encoding {encoding}$"):
        read(content)


@pytest.mark.parametrize("given", ["a\udcc3\udca9b", "a\u00e9b"])
def test_bytes_of_utf_8_that_a_shell_passed_on_are_characters(given):
    assert reading.whole_characters(given) == "a\u00e9b"


@pytest.mark.parametrize("given", ["a\udcffb", "a\ud83db", "a\ude00b"])
def test_no_lone_surrogate_is_left(given):
    assert reading.whole_characters(given) == "a\ufffdb"
    with pytest.raises(UserError, match="x.json line 3 has half of a character"):
        reading.check_characters(given, "x.json line 3")
