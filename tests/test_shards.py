"""Ids in shards: read by position as one file, written as one, and a store of shards trains to the bit as one."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import store, token_file
from data.batches import counting_arrays
from data.eval_batches import eval_batches
from data.prepare import prepare
from data.store import open_store
from data.token_file import TokenFile, TokenWriter
from engine.run.novelty import KnownLines, longest_copied
from tests.helpers import left, ok, quick, summary, warnings_of
from tests.test_batches import same
from tests.test_store import written

FIXED = settings(max_examples=50, deadline=None, derandomize=True)
SHARD = 300  # ids: few enough that the small texts are of several shards


def shards_of(folder: Path, side: str, ids: np.ndarray, sizes: list[int]) -> list[Path]:
    """The files that a writer leaves of these ids, written in parts of these sizes."""
    folder.mkdir(exist_ok=True)
    with TokenWriter(folder, side, 2) as out:
        for part in np.split(ids, np.cumsum(sizes)):
            out.write(part)
    return sorted(folder.glob(f"{side}*"))


@pytest.mark.parametrize("mapped", [False, True])
@FIXED
@given(
    count=st.integers(0, 60), shard=st.integers(1, 25), sizes=st.lists(st.integers(0, 30), max_size=6), data=st.data()
)
def test_shards_are_read_as_the_one_file_that_they_are(tmp_path_factory, mapped, count, shard, sizes, data):
    folder, ids = tmp_path_factory.mktemp("shards"), np.arange(count, dtype=np.uint16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_file, "SHARD", shard)
        patch.setattr(token_file, "MAX_OPEN", 3)
        if mapped:
            patch.setattr(token_file, "IN_MEMORY", 0 if count else 99)
        paths = shards_of(folder, "train", ids, sizes)
        if count <= shard:
            assert [path.name for path in paths] == ["train.bin"]
        else:
            assert [path.name for path in paths] == [f"train-{n:05d}.bin" for n in range(-(-count // shard))]
        tokens = TokenFile(paths, np.uint16)
        assert len(tokens) == count and tokens.array().tolist() == ids.tolist()
        for _ in range(6):
            shape = data.draw(st.sampled_from([(0,), (7,), (3, 4), (2, 3, 2)])) if count else (0,)
            positions = np.array(data.draw(st.lists(st.integers(0, max(0, count - 1)), min_size=24, max_size=24)))
            positions = np.resize(positions, shape)
            assert np.array_equal(tokens.take(positions), positions) and tokens.take(positions).dtype == np.uint16
            start, end = sorted(data.draw(st.tuples(st.integers(0, count), st.integers(0, count + 5))))
            assert tokens.slice(start, end).tolist() == ids[start:end].tolist()
        assert len(tokens._open) <= 3
        assert [tokens.has(n) for n in (0, count - 1, count)] == [count > 0, count > 0, False]


def sharded(folder: Path, monkeypatch) -> Path:
    """The store in `folder` rewritten in shards."""
    whole = open_store(folder)
    with monkeypatch.context() as patch:
        patch.setattr(token_file, "SHARD", SHARD)
        for side in ("train", "val"):
            ids = getattr(whole, side).tokens.array()
            (folder / f"{side}.bin").unlink()
            with TokenWriter(folder, side, 2) as out:
                out.write(ids)
    (folder / "meta.json").unlink()
    store.seal(folder, {name: value for name, value in whole.meta.items() if name not in ("files", "crc32")})
    return folder


def in_shards(tmp_path, monkeypatch, **how) -> tuple:
    """A text prepared as one file and in shards, each in a cache of its own."""
    stores = []
    for name, shard in (("one", 10**9), ("shards", SHARD)):
        monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / name))
        monkeypatch.setattr(token_file, "SHARD", shard)
        stores.append(prepare(str(tmp_path / "text.txt"), **how))
    return tuple(stores)


@pytest.mark.parametrize("kind", ["stream", "lines"])
def test_building_in_shards_writes_the_same_ids(tmp_path, text, monkeypatch, kind):
    one, shards = in_shards(tmp_path, monkeypatch, kind=kind)
    assert one.key == shards.key and one.tokenizer.to_json() == shards.tokenizer.to_json()
    assert len(shards.train.tokens.paths) > 2
    for side in ("train", "val"):
        a, b = getattr(one, side), getattr(shards, side)
        assert np.array_equal(a.tokens.array(), b.tokens.array()) and np.array_equal(a.offsets, b.offsets)
        for some, others in zip(counting_arrays(a), counting_arrays(b), strict=True):
            assert np.array_equal(some, others)
        pairs = zip(*(eval_batches(split, 7, 1 << 30, 5)() for split in (a, b)), strict=True)
        assert all(itertools.starmap(same, pairs))
    small = {path.name for path in shards.folder.iterdir()} - {path.name for path in shards.train.tokens.paths}
    assert "val.bin" in small and "train.bin" not in small, "a side of one shard is called as ever"


def test_what_is_copied_is_found_across_the_edges_of_shards(tmp_path, text, monkeypatch):
    one, shards = in_shards(tmp_path, monkeypatch)
    edge = one.tokenizer.decode(one.train.tokens.array()[SHARD - 20 : SHARD + 20])
    assert longest_copied(f"q{edge}q", shards) == longest_copied(f"q{edge}q", one) >= 40
    one, shards = in_shards(tmp_path, monkeypatch, kind="lines")
    known = KnownLines(shards.train)
    split = one.train
    lines = [split.tokens.array()[a : b - 1] for a, b in itertools.pairwise(split.offsets)]
    assert all(map(known.has, lines)) and not known.has(lines[0][:-1])


@pytest.mark.parametrize(("model", "flags"), [
    ("transformer", {"data": "text.txt", "context": 12}),
    ("gru", {"data": "text.txt", "context": 12, "carry_state": True}),
    ("mlp", {"data": "text.txt", "kind": "lines"}),
], ids=["stream", "lanes", "lines"])  # fmt: skip
def test_a_store_of_shards_trains_to_the_bit_as_one_file(cli, tmp_path, text, monkeypatch, model, flags):
    runs = []
    for name, shard in (("one", 10**9), ("shards", SHARD)):
        monkeypatch.setattr(token_file, "SHARD", shard)  # the commands are forked from here
        ok(cli("train.py", *quick(model, **flags, out=name), env={"CHARLM_CACHE": str(tmp_path / f"cache-{name}")}))
        runs.append((left(tmp_path / name), summary(name)["val_loss"]))
    assert len([*(tmp_path / "cache-shards").rglob("train-*.bin")]) >= 3
    assert runs[0] == runs[1]


def test_a_run_goes_on_with_its_text_in_shards(cli, tmp_path, text, monkeypatch):
    monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / "cache"))
    ok(cli("train.py", *quick("mlp", data="text.txt", context=12, steps=3)))
    shutil.copytree("run", "again")
    ok(cli("train.py", "--resume", "--out", "run", "--steps", 6))
    sharded(next((tmp_path / "cache" / "prepared").iterdir()), monkeypatch)
    assert not warnings_of(ok(cli("train.py", "--resume", "--out", "again", "--steps", 6)))
    assert left(tmp_path / "run") == left(tmp_path / "again")


DAMAGE = {
    "a shard is missing": lambda f: (f / "train-00001.bin").unlink(),
    "a shard is cut short": lambda f: (f / "train-00001.bin").write_bytes((f / "train-00001.bin").read_bytes()[:-2]),
    "two shards are swapped": lambda f: [
        (f / a).rename(f / b)
        for a, b in (("train-00000.bin", "x"), ("train-00001.bin", "train-00000.bin"), ("x", "train-00001.bin"))
    ],
    "a shard of another size": lambda f: (f / "train-00000.bin").write_bytes(
        (f / "train-00000.bin").read_bytes() + b"\6\0"
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_shards_are_prepared_again(tmp_path, text, monkeypatch, capsys, damage):
    monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(token_file, "SHARD", SHARD)
    folder = prepare(str(text)).folder
    whole = written(folder)
    DAMAGE[damage](folder)
    prepare(str(text))
    assert "is damaged" in capsys.readouterr().err and written(folder) == whole


def test_shards_of_different_lengths_are_not_read(tmp_path, monkeypatch):
    for name, count in (("train-00000.bin", 4), ("train-00001.bin", 3), ("train-00002.bin", 2)):
        np.arange(count, dtype=np.uint16).tofile(tmp_path / name)
    with pytest.raises(ValueError, match="not the same number of ids"):
        TokenFile(sorted(tmp_path.iterdir()), np.uint16)
