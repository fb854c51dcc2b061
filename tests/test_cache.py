"""The cache: listed, measured and freed, and nothing else with it."""

import os
import time
from pathlib import Path

import pytest

from data.prepare import prepare
from tests.helpers import ok, refused, tree

pytestmark = pytest.mark.usefixtures("names", "text")  # names.txt and text.txt stand where the commands run
LONG_AGO = time.time() - 10 * 24 * 3600


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of two prepared texts, a download, and leftovers of processes that ended, one of them just now."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CHARLM_CACHE", str(folder))
    prepare(str(tmp_path / "text.txt"))
    prepare(str(tmp_path / "names.txt"), kind="lines", tokenizer="bpe:260")
    (folder / "downloads").mkdir()
    (folder / "downloads/shakespeare.txt").write_text("x" * 5000)
    for name, changed in (("old", LONG_AGO), ("new", time.time())):
        part = folder / "prepared" / f"{name}-0123456789abcdef.12ab.part"
        part.mkdir()
        (part / "train.bin").write_bytes(bytes(100))
        os.utime(part / "train.bin", (changed, changed))
        os.utime(part, (changed, changed))
    return folder


def test_the_list_has_everything_with_its_size(cli, cache):
    shown = ok(cli("-m data.prepare", "--list")).out.splitlines()
    total = sum(map(len, tree(cache).values()))
    rows = {line.split()[0]: line for line in shown}
    assert set(rows) == {"name", "shakespeare", "text", "names", "old", "new", "total"}
    assert "stream, char, " in rows["text"] and "lines, bpe:260, " in rows["names"]
    assert "downloaded" in rows["shakespeare"] and "5.0 KB" in rows["shakespeare"]
    assert (
        "unfinished" in rows["old"] and f"5 in {cache}" in rows["total"] and f"{total / 1000:.1f} KB" in rows["total"]
    )
    assert f"{cache}, {total / 1000:.1f} KB" in ok(cli("-m engine.doctor")).out


def test_a_damaged_text_is_listed_as_such_and_cleared(cli, cache):
    (folder,) = cache.glob("prepared/text-*")
    (folder / "meta.json").write_bytes(bytes(50))
    assert any(
        line.split()[:2] == ["text", "damaged"] for line in ok(cli("-m data.prepare", "--list")).out.splitlines()
    )
    ok(cli("-m data.prepare", "--clear", "text"))
    assert not folder.exists()


def test_clearing_frees_all_but_what_may_be_written_just_now(cli, cache):
    told = ok(cli("-m data.prepare", "--clear"))
    assert [Path(name).parts[:2] for name in tree(cache)] == [("prepared", "new-0123456789abcdef.12ab.part")]
    assert "(4 removed)" in told.out and "new-0123456789abcdef.12ab.part" in told.err
    ok(cli("-m data.prepare", "--data", "text.txt"))
    assert len(list(cache.glob("prepared/text-*"))) == 1


def test_clearing_by_name_leaves_the_rest(cli, cache):
    (folder,) = cache.glob("prepared/names-*")
    ok(cli("-m data.prepare", "--clear", folder.name, "shakespeare"))
    assert {path.name.split("-")[0] for path in (cache / "prepared").iterdir()} == {"text", "old", "new"}
    assert not list((cache / "downloads").iterdir())
    refused(cli("-m data.prepare", "--clear", "texts"), "nothing in", "'texts'", "Did you mean 'text'?")


def test_links_are_not_followed_and_foreign_files_not_touched(cli, cache, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("dear")
    before = tree(tmp_path / "mine")
    (cache / "prepared/mine-0123456789abcdef").symlink_to(tmp_path / "mine", target_is_directory=True)
    (cache / "downloads/names.txt").symlink_to(tmp_path / "names.txt")
    (cache / "prepared/diary").mkdir()
    (cache / "prepared/diary/day.txt").write_text("dear")
    (folder,) = cache.glob("prepared/text-*")
    (folder / "link").symlink_to(tmp_path / "mine", target_is_directory=True)
    ok(cli("-m data.prepare", "--clear"))
    assert tree(tmp_path / "mine") == before and (tmp_path / "names.txt").exists() and not folder.exists()
    left = {path.name for path in cache.glob("*/*")}
    assert left == {"mine-0123456789abcdef", "names.txt", "diary", "new-0123456789abcdef.12ab.part"}


def test_a_folder_of_the_cache_that_is_a_link_is_left_alone(cli, cache, tmp_path):
    (cache / "prepared").rename(tmp_path / "elsewhere")
    (cache / "prepared").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    before = tree(tmp_path / "elsewhere")
    ok(cli("-m data.prepare", "--clear"))
    assert tree(tmp_path / "elsewhere") == before


def test_an_empty_cache_and_what_does_not_go_together(cli, tmp_path):
    nowhere = {"CHARLM_CACHE": str(tmp_path / "none")}
    assert "0 in" in ok(cli("-m data.prepare", "--list", env=nowhere)).out
    assert "freed 0 bytes" in ok(cli("-m data.prepare", "--clear", env=nowhere)).out
    assert not (tmp_path / "none").exists()
    refused(cli("-m data.prepare", "--list", "--kind", "lines"), "--kind goes with --data")
    refused(cli("-m data.prepare"), "one of the arguments --data --list --clear is required")
    refused(cli("-m data.prepare", "--list", "--data", "text.txt"), "not allowed with argument")
