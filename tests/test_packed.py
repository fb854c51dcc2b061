"""Packed texts: read as what they hold, in bounded memory; those that are damaged, and those that never end."""

import bz2
import gzip
import itertools
import lzma
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data import packed, reading
from data.errors import UserError
from data.examples import Columns, read_examples
from data.prepare import prepare
from tests.conftest import NAMES, ROOT
from tests.helpers import at_call, ok, quick, refused
from tests.matrices import matrix

FIXED = settings(max_examples=40, deadline=None, derandomize=True)
PACK = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: zstandard.ZstdCompressor(write_checksum=True).compress(content),  # as the command does
}
PROSE = "".join(f"The sea, the sea. {a} saw {b}.\n" for a, b in zip(NAMES, NAMES[3:], strict=False))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", PACK)
@FIXED
@given(parts=st.lists(st.binary(max_size=300) | st.just(bytes(5000)), min_size=1, max_size=4), size=st.integers(1, 400))
@example(parts=[b""], size=1)
def test_every_part_of_a_packed_file_is_read(tmp_path_factory, suffix, parts, size):
    """Files packed one by one and put together are one file, as `cat a.gz b.gz` makes it."""
    path = tmp_path_factory.mktemp("packed") / f"x{suffix}"
    path.write_bytes(b"".join(map(PACK[suffix], parts)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "READ", 7)
        patch.setattr(packed, "ZSTD_READ", 7)
        assert b"".join(packed.read_bytes(path, size, "x")) == b"".join(parts)


@pytest.mark.parametrize("suffix", PACK)
def test_a_packed_text_trains_as_the_text_itself(cli, tmp_path, suffix):
    write(tmp_path / f"poems.txt{suffix}", PACK[suffix](PROSE.encode()))
    write(tmp_path / "plain.txt", PROSE.encode())
    told = ok(cli("train.py", *quick("bigram", data=f"poems.txt{suffix}", context=8)))
    assert "on poems:" in told.out and told.err == ""
    ok(cli("train.py", *quick("bigram", data="plain.txt", context=8, out="plain")))
    assert Path("run/best/model.safetensors").read_bytes() == Path("plain/best/model.safetensors").read_bytes()


def test_a_folder_may_hold_packed_files(tmp_path):
    write(tmp_path / "a.txt.gz", gzip.compress(b"packed text\n" * 20))
    write(tmp_path / "b.txt", b"plain text\n" * 20)
    store = prepare(str(tmp_path))
    assert len(store.train.tokens) + len(store.val.tokens) == 20 * 23 and store.meta["notes"] == []


@pytest.mark.parametrize("name", ["x.tsv", "x.csv", "x.jsonl", "x.json"])
def test_packed_examples_are_read(tmp_path, name):
    content = {
        "x.tsv": "one\ta\ntwo\tb\nthree\ta\n", "x.csv": "text,label\none,a\ntwo,b\nthree,a\n",
        "x.jsonl": '{"text": "one", "label": "a"}\n{"text": "two", "label": "b"}\n{"text": "three", "label": "a"}',
        "x.json": '[{"text": "one", "label": "a"}, {"text": "two", "label": "b"}, {"text": "three", "label": "a"}]',
    }[name]  # fmt: skip
    short, found = read_examples(str(write(tmp_path / f"{name}.gz", gzip.compress(content.encode()))), Columns())
    assert short == "x" and [example[:2] for example in found] == [("one", "a"), ("two", "b"), ("three", "a")]


def test_packed_classes_and_conversations(cli, tmp_path):
    for label in ("ham", "spam"):
        (tmp_path / "mail").mkdir(exist_ok=True)
        write(tmp_path / f"mail/{label}.txt.xz", lzma.compress("\n".join(NAMES[:5]).encode()))
    assert {example.label for example in read_examples(str(tmp_path / "mail"), Columns())[1]} == {"ham", "spam"}
    said = "\n".join(f'{{"prompt": "Who is {name}?", "completion": "{name}"}}' for name in NAMES)
    write(tmp_path / "chat.jsonl.bz2", bz2.compress(said.encode()))
    flags = ["--steps", 2, "--eval-interval", 2, "--n-embd", 8, "--n-layer", 1, "--n-head", 1, "--max-answer", 2]
    ok(cli("-m finetune.instruct", "--data", "chat.jsonl.bz2", *flags))
    assert Path("runs/instruct-transformer-chat-1").is_dir()


DAMAGE = {
    "cut off": lambda content: content[:-9],
    "cut off early": lambda content: content[:30],
    "other bytes": lambda content: content[:40] + bytes(b ^ 0x55 for b in content[40:80]) + content[80:],
    "none": lambda content: b"just a text" * 9,
}


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_packed_text_is_named(cli, tmp_path, suffix, damage):
    content = DAMAGE[damage](PACK[suffix](os.urandom(9000).hex().encode()))
    write(tmp_path / f"odd.txt{suffix}", content)
    refused(
        cli("-m data.prepare", "--data", f"odd.txt{suffix}"), f"odd.txt{suffix} is no whole {suffix} file, or damaged"
    )


def test_a_damaged_packed_file_of_a_folder_is_left_out_and_named(tmp_path):
    write(tmp_path / "a.txt", b"plain text\n" * 20)
    write(tmp_path / "b.txt.gz", gzip.compress(b"packed text\n" * 20)[:-6])
    (note,) = prepare(str(tmp_path)).meta["notes"]
    assert note.endswith("left out (b.txt.gz)")


@pytest.mark.parametrize("suffix", PACK)
def test_a_packed_text_that_changes_while_it_is_read_is_named(tmp_path, monkeypatch, suffix):
    monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / "cache"))  # it is not prepared already
    path = write(tmp_path / f"t{suffix}", PACK[suffix](PROSE.encode()))
    with at_call(reading, "read_chunks", 2, lambda: write(path, PACK[suffix](PROSE.replace("sea", "see").encode()))):
        with pytest.raises(UserError, match=f"t{suffix} changed while it was read"):
            prepare(str(path))


def test_without_the_package_a_zst_names_it(tmp_path, monkeypatch):
    path = write(tmp_path / "t.zst", PACK[".zst"](PROSE.encode()))
    for name in ("zstandard", "compression"):
        monkeypatch.setitem(sys.modules, name, None)
    for data in (path, tmp_path):
        with pytest.raises(UserError, match="pip install zstandard"):
            prepare(str(data))


def test_what_unpacks_to_more_than_the_disk_holds_is_refused_before_it_is_written(tmp_path, monkeypatch):
    path = write(tmp_path / "bomb.gz", gzip.compress(b"a" * (20 << 20)))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10 << 20))
    with pytest.raises(UserError, match=r"bomb\.gz unpacks to more than the 10,485,760 bytes that are free"):
        prepare(str(path))
    write(tmp_path / "bomb.gz", gzip.compress(b"ab" * (4 << 20)))
    assert len(prepare(str(path)).val.tokens) > 0
    monkeypatch.setattr(reading, "IN_MEMORY", 1 << 20)
    with pytest.raises(UserError, match="too many to hold in memory"):
        read_examples(str(path.rename(tmp_path / "bomb.tsv.gz")), Columns())


@pytest.mark.parametrize("suffix", matrix(PACK, [".gz"]))
def test_a_file_of_a_hundred_kilobytes_that_unpacks_to_hundreds_of_megabytes_takes_little_memory(tmp_path, suffix):
    make = {
        ".gz": lambda: gzip.open(tmp_path / "x.gz", "wb"),
        ".bz2": lambda: bz2.open(tmp_path / "x.bz2", "wb"),
        ".xz": lambda: lzma.open(tmp_path / "x.xz", "wb", preset=0),
        ".zst": lambda: zstandard.open(tmp_path / "x.zst", "wb"),
    }
    piece = b"a" * (1 << 20)
    with make[suffix]() as file:
        for _ in itertools.repeat(None, 200):
            file.write(piece)
    code = (
        "import re, sys; from pathlib import Path; from data import packed\n"
        "n = sum(map(len, packed.read_bytes(Path(sys.argv[1]), 1 << 22, 'x')))\n"
        "print(n, re.search('VmHWM: *([0-9]+)', Path('/proc/self/status').read_text().replace('\\t', ''))[1])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / f"x{suffix}")]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    length, peak = map(int, done.stdout.split())
    assert length == 200 * len(piece) and peak < 160 << 10, "KB"
