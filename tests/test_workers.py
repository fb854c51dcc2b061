"""Preparing with several processes, and going on after a kill: the same store to the bit as of one, uninterrupted."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data import journal, prepare, reading, tasks, token_file, words
from data.encoded import EncodedText
from data.errors import UserError
from data.pool import Pool
from data.tokenizers import AFTER_EOS, CharTokenizer
from tests.conftest import NAMES, ROOT
from tests.helpers import ok, refused
from tests.matrices import matrix
from tests.test_corpora import corpus, documents_of
from tests.test_store import WORDS, write, written

TEXT = "".join(f"{a} met {b}, é and 漢; {n}\n\n" for n, (a, b) in enumerate(zip(WORDS, WORDS[7:], strict=False)))
OTHER = "\n".join(["emma ß", *WORDS[:40], "zoé"])


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    """Every text here is of many groups, and has a journal."""
    monkeypatch.setattr(reading, "CHUNK", 400)
    monkeypatch.setattr(reading, "SMALL_CHUNK", 400)
    monkeypatch.setattr(words, "MAX_PIECE", 500)
    monkeypatch.setattr(tasks, "GROUP", 500)
    monkeypatch.setattr(token_file, "SHARD", 1500)
    monkeypatch.setattr("data.build.LARGE", 0)
    monkeypatch.setattr("data.build.EVERY", 2000)


def prepared(tmp_path: Path, monkeypatch, name: str, data: str = "t.txt", **how):
    """A text prepared in a cache of its own."""
    monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / name))
    return prepare.prepare(str(tmp_path / data), **how)


WAYS = [
    {"kind": kind, "tokenizer": tokenizer, "val_data": val}
    for kind in ("stream", "lines", "documents")
    for tokenizer in ("char", "byte", "bpe:300")
    for val in (None, "v.txt")
]


@pytest.mark.parametrize("way", matrix(WAYS, [WAYS[0], WAYS[5], WAYS[7], WAYS[14]]), ids=str)
def test_several_processes_prepare_the_same_store(tmp_path, monkeypatch, way):
    write(tmp_path / "t.txt", TEXT)
    write(tmp_path / "v.txt", OTHER)
    monkeypatch.chdir(tmp_path)
    one, two = (prepared(tmp_path, monkeypatch, str(n), **way, workers=n) for n in (1, 2))
    assert written(one.folder) == written(two.folder) and len(one.train.tokens.paths) > 2
    for module, name in ((tasks, "GROUP"), (reading, "CHUNK"), (words, "MAX_PIECE")):
        monkeypatch.setattr(module, name, 1 << 21)
    assert written(prepared(tmp_path, monkeypatch, "whole", **way).folder) == written(one.folder)


def test_a_character_of_the_training_side_is_known_whoever_meets_it_later(tmp_path, monkeypatch):
    write(tmp_path / "t.txt", "ß" + "plain text, " * 900 + "ß more of it " * 80)
    for workers in (1, 2):
        assert "ß" in prepared(tmp_path, monkeypatch, str(workers), workers=workers).tokenizer.alphabet


def test_what_was_written_behind_the_last_note_is_cut_off(tmp_path, monkeypatch):
    write(tmp_path / "t.txt", TEXT)
    whole = written(prepared(tmp_path, monkeypatch, "whole", kind="lines").folder)
    assert start(tmp_path, 14, "put", "--kind", "lines") == -signal.SIGKILL
    (part,) = (tmp_path / "killed" / "prepared").glob("*.part")
    for path in (max(part.glob("train-*.bin")), part / "val.bin", part / "val.offsets.bin"):
        write(path, path.read_bytes() + b"more" * 50)
    write(part / "train-00099.bin", "more")
    (part / "val.bin").rename(part / "val-00000.bin")  # its second file was begun
    write(part / "val-00001.bin", "more")
    assert written(prepared(tmp_path, monkeypatch, "killed", kind="lines").folder) == whole


def test_the_state_of_what_is_encoded_is_all_of_it(tmp_path):
    encode = tasks.Encoder(CharTokenizer("ab"), is_existing=True)
    with EncodedText(tmp_path, np.uint16, has_rows=True) as out:
        out.put(encode([("abé", True, "train"), ("b", True, "val")]))
        state = json.loads(json.dumps(out.state()))
    with EncodedText(tmp_path, np.uint16, has_rows=True, state=state) as again:
        assert again.state() == state and state["unknown"] == {"train": {"é": 1}, "val": {}}
        again.put(encode([("éa", True, "train")]))
    assert again.unknown["train"] == {"é": 2} and again.characters == {"train": 5, "val": 1}
    assert np.fromfile(tmp_path / "train.offsets.bin", np.uint64).tolist() == [0, 4, 7]
    assert np.fromfile(tmp_path / "train.bin", np.uint16).tolist() == [6, 7, 3, 2, 3, 6, 2]


def test_tables_are_prepared_the_same_by_several_processes(tmp_path, monkeypatch):
    write(tmp_path / "t.jsonl", "".join(f'{{"text": "{word} and\\n{word[::-1]}"}}\n' for word in WORDS))
    stores = []
    for workers in (1, 2):
        monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / str(workers)))
        stores.append(written(prepare.prepare(str(tmp_path / "t.jsonl"), tokenizer="bpe:300", workers=workers).folder))
    assert stores[0] == stores[1]


def test_a_known_vocabulary_and_its_unknown_characters(tmp_path, monkeypatch):
    write(tmp_path / "t.txt", TEXT.replace("é", "e\u0301"))
    known = CharTokenizer(TEXT[:900])
    one, two = (prepared(tmp_path, monkeypatch, str(n), vocabulary=known, workers=n) for n in (1, 2))
    assert written(one.folder) == written(two.folder)
    assert "accents part of their letters" in one.meta["notes"][0]


KILLED = """
import os, signal, sys
from data import build, journal, prepare, reading, tasks, token_file, words

tasks.GROUP, token_file.SHARD, build.LARGE, build.EVERY = 500, 1500, 0, 2000
reading.CHUNK = reading.SMALL_CHUNK = 400
words.MAX_PIECE = 500
left, at = int(sys.argv.pop(1)), sys.argv.pop(1)
owner = {"note": journal.Journal, "put": build.EncodedText, "seal": prepare.store}[at]
act = getattr(owner, at)

def counted(*args, **options):
    global left
    left -= 1
    if left == 0 and at != "note":
        os.kill(os.getpid(), signal.SIGKILL)
    result = act(*args, **options)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(owner, at, counted)
sys.exit(prepare.run_command(prepare.main))
"""


def start(tmp_path: Path, left: int, at: str, *flags, data: str = "t.txt") -> int:
    """The exit code of a command that prepares a text and kills itself at the `left`-th call of `at`."""
    command = [sys.executable, "-c", KILLED, str(left), at, "--data", data, *map(str, flags)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "CHARLM_CACHE": str(tmp_path / "killed")}
    return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True).returncode


MOMENTS = [("note", n) for n in range(1, 9)] + [("put", n) for n in (1, 6, 14)] + [("seal", 1)]


@pytest.mark.parametrize("kind", ["stream", "lines"])
@pytest.mark.parametrize("moment", matrix(MOMENTS, [("note", 1), ("put", 14), ("seal", 1)]))
def test_a_killed_preparation_goes_on_to_the_same_store(tmp_path, monkeypatch, kind, moment):
    at, nth = moment
    write(tmp_path / "t.txt", TEXT)
    how = {"kind": kind, "tokenizer": "bpe:300"}
    groups = count_groups(monkeypatch)
    whole = written(prepared(tmp_path, monkeypatch, "whole", **how).folder)
    all_groups = len(groups)
    groups.clear()
    ended = start(tmp_path, nth, at, "--kind", kind, "--tokenizer", "bpe:300", "--workers", 1 + nth % 2)
    assert ended == -signal.SIGKILL
    (part,) = (tmp_path / "killed" / "prepared").glob("*.part")
    again = prepared(tmp_path, monkeypatch, "killed", **how)
    assert written(again.folder) == whole
    assert [path.name for path in again.folder.parent.iterdir()] == [again.folder.name] and not part.exists()
    if at == "put" and nth == 14:
        assert 0 < len(groups) <= all_groups - 8, "what was encoded and noted is not encoded again"
    if at == "seal":
        assert not groups


# Corpora of documents with ends, each with how it is read.
CORPORA = {
    "parquet, BPE of a sample": ("t.parquet", {"tokenizer": "bpe:300", "bpe_sample": "4KB"}),
    "JSON lines": ("t.jsonl.gz", {"tokenizer": "byte"}),
    "a separator": ("t.txt", {"tokenizer": "bpe:300", "kind": "stream", "separator": r"\n\n"}),
    "a separator, by the character": ("t.txt", {"kind": "stream", "separator": "é"}),
}


@pytest.mark.parametrize("case", matrix(CORPORA, ["parquet, BPE of a sample", "a separator"]))
def test_a_killed_preparation_of_a_corpus_goes_on_to_the_same_store(tmp_path, monkeypatch, case):
    name, how = CORPORA[case]
    write(tmp_path / name, TEXT if name == "t.txt" else corpus(name, TEXT.strip().split("\n\n")))
    groups = count_groups(monkeypatch)
    whole = prepared(tmp_path, monkeypatch, "whole", name, **how)
    all_groups = len(groups)
    groups.clear()
    flags = [word for option, value in how.items() for word in (f"--{option.replace('_', '-')}", value)]
    assert start(tmp_path, 14, "put", *flags, "--workers", 2, data=name) == -signal.SIGKILL
    again = prepared(tmp_path, monkeypatch, "killed", name, **how)
    assert written(again.folder) == written(whole.folder) and again.meta["start"] == AFTER_EOS
    assert 0 < len(groups) <= all_groups - 8, "what was encoded and noted is not encoded again"


def count_groups(monkeypatch) -> list:
    """Grows with every group of text that is encoded in this process."""
    groups, encode = [], tasks.Encoder.__call__
    monkeypatch.setattr(tasks.Encoder, "__call__", lambda self, parts: groups.append(1) or encode(self, parts))
    return groups


DAMAGE = {
    "a torn journal": lambda part: os.truncate(part / "journal" / "journal.json", 40),
    "another journal": lambda part: write(part / "journal" / "journal.json", "[]"),
    "another bit": lambda part: write(
        part / "journal" / "journal.json",
        (part / "journal" / "journal.json").read_bytes().replace(b"survey", b"surwey"),
    ),
    "another version": lambda part: write(
        part / "journal" / "journal.json",
        (part / "journal" / "journal.json").read_text().replace('"version": 1', '"version": 0'),
    ),
    "a missing shard": lambda part: (part / "train-00000.bin").unlink(),
    "a shard cut short": lambda part: os.truncate(max(part.glob("train-*.bin")), 10),
    "missing offsets": lambda part: (part / "train.offsets.bin").unlink(),
    "another array": lambda part: write(part / "journal" / "hashes-0.npy", b"\x93NUMPY"),
}


@pytest.mark.parametrize(
    "damage", matrix(DAMAGE, ["another bit", "a missing shard", "a shard cut short", "another array"])
)
def test_a_damaged_beginning_is_discarded(tmp_path, monkeypatch, damage):
    write(tmp_path / "t.txt", TEXT)
    whole = written(prepared(tmp_path, monkeypatch, "whole", kind="lines").folder)
    assert start(tmp_path, 14, "put", "--kind", "lines") == -signal.SIGKILL
    (part,) = (tmp_path / "killed" / "prepared").glob("*.part")
    DAMAGE[damage](part)
    assert written(prepared(tmp_path, monkeypatch, "killed", kind="lines").folder) == whole


def test_a_text_that_was_changed_meanwhile_is_prepared_from_the_beginning(tmp_path, monkeypatch):
    write(tmp_path / "t.txt", TEXT)
    assert start(tmp_path, 14, "put") == -signal.SIGKILL
    write(tmp_path / "t.txt", TEXT.replace("emma", "amme"))
    whole = written(prepared(tmp_path, monkeypatch, "whole").folder)
    assert written(prepared(tmp_path, monkeypatch, "killed").folder) == whole


def test_a_small_text_that_is_killed_leaves_nothing_to_go_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr("data.build.LARGE", 1 << 30)
    write(tmp_path / "t.txt", TEXT)
    part = []
    monkeypatch.setattr(journal.Journal, "note", lambda self, **results: part.append(self) or interrupt())
    with pytest.raises(KeyboardInterrupt):
        prepared(tmp_path, monkeypatch, "cache")
    assert part and not list((tmp_path / "cache" / "prepared").iterdir())


def interrupt() -> None:
    raise KeyboardInterrupt


def test_ctrl_c_leaves_no_process_and_the_next_call_goes_on(tmp_path, monkeypatch):
    write(tmp_path / "t.txt", TEXT)
    whole = written(prepared(tmp_path, monkeypatch, "whole").folder)
    pools = []
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "Pool", lambda n: pools.append(Pool(n)) or pools[0])
        patch.setattr("data.encoded.EncodedText.state", lambda self: interrupt())
        with pytest.raises(KeyboardInterrupt):
            prepared(tmp_path, monkeypatch, "cache", workers=2)
    assert all(worker._process.poll() is not None for worker in pools[0]._started) and len(pools[0]._started) == 2
    assert list((tmp_path / "cache" / "prepared").glob("*.part/journal/journal.json"))
    assert written(prepared(tmp_path, monkeypatch, "cache").folder) == whole


def test_a_process_that_is_killed_ends_the_command_with_one_message(cli, tmp_path, monkeypatch):
    write(tmp_path / "t.txt", TEXT)
    monkeypatch.setattr(tasks.Encoder, "__reduce__", lambda self: (signal.raise_signal, (signal.SIGKILL,)))
    ended = cli("-m data.prepare", "--data", "t.txt", "--workers", 2, env={"CHARLM_CACHE": str(tmp_path / "cache")})
    refused(ended, "a process that prepares the text ended by signal 9", "--workers")
    assert list((tmp_path / "cache" / "prepared").glob("*.part/journal/journal.json")), "the next call goes on"


def test_the_command_takes_a_number_of_processes(cli, tmp_path):
    write(tmp_path / "t.txt", TEXT)
    ok(cli("-m data.prepare", "--data", "t.txt", "--workers", 2))
    for wrong in ("0", "-1", "many", "1000"):
        refused(cli("-m data.prepare", "--data", "t.txt", f"--workers={wrong}"), "--workers: from 1 to 256")


def test_only_a_large_text_takes_more_than_one_process_by_itself(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(prepare, "Pool", lambda n: asked.append(n) or Pool(1))
    monkeypatch.setattr(prepare, "cores", lambda: 3)
    write(tmp_path / "t.txt", TEXT)
    prepared(tmp_path, monkeypatch, "small")
    monkeypatch.setattr(prepare, "PARALLEL_FROM", 100)
    prepared(tmp_path, monkeypatch, "large", kind="lines")
    prepared(tmp_path, monkeypatch, "of bytes", tokenizer="byte")
    prepared(tmp_path, monkeypatch, "of characters")
    assert asked == [1, 3, 3, 1]


def test_bpe_learns_from_a_sample_that_is_always_the_same(tmp_path, monkeypatch):
    write(tmp_path / "t.txt", TEXT + "".join(f"{a}{b} " for a in NAMES for b in NAMES))
    every, one, two = (
        prepared(tmp_path, monkeypatch, str(n), tokenizer="bpe:400", bpe_sample=size, workers=workers)
        for n, (size, workers) in enumerate([(None, 1), ("3KB", 1), ("3 KB", 2)])
    )
    assert written(one.folder) == written(two.folder) and one.key != every.key
    assert one.tokenizer.to_json() != every.tokenizer.to_json()
    text = every.tokenizer.decode(every.train.tokens.array())
    assert text == one.tokenizer.decode(one.train.tokens.array())
    large = prepared(tmp_path, monkeypatch, "large", tokenizer="bpe:400", bpe_sample="1GB")
    assert large.tokenizer.to_json() == every.tokenizer.to_json(), "a text that is smaller is learned from whole"
    with pytest.raises(UserError, match="goes with --tokenizer bpe:N"):
        prepared(tmp_path, monkeypatch, "char", bpe_sample="1GB")
    for wrong in ("", "GB", "1XB", "0", "-1GB", "1e9"):
        with pytest.raises(UserError, match="as in 500MB or 1GB"):
            prepared(tmp_path, monkeypatch, "wrong", tokenizer="bpe:400", bpe_sample=wrong)


HOWS = [{"bpe_sample": sample, "workers": workers} for sample in (None, "2KB") for workers in (1, 2)]


@pytest.mark.parametrize("how", matrix(HOWS, [HOWS[0], HOWS[3]]), ids=str)
@pytest.mark.parametrize("name", ["t.jsonl", "t.txt"])
def test_bpe_learns_nothing_of_validation_documents(tmp_path, monkeypatch, name, how):
    training, validation = [f"{word} and\n {word[::-1]} " for word in WORDS], "abc" * 200
    learned = []
    for documents in ([*validation], [validation]):  # as many characters, but other ends
        rows = [*training, *documents]
        write(tmp_path / name, "%".join(rows) if name == "t.txt" else corpus(name, rows))
        separator = {"kind": "stream", "separator": "%"} if name == "t.txt" else {}
        fraction = (len(validation) + 1) / len("".join(rows))
        cache = str(len(documents))
        store = prepared(
            tmp_path, monkeypatch, cache, name, tokenizer="bpe:300", val_fraction=fraction, **separator, **how
        )
        assert documents_of(store)[-len(documents) :] == documents
        learned.append(store.tokenizer.to_json())
    assert learned[0] == learned[1]


@pytest.mark.parametrize("kind", ["stream", "lines"])
def test_a_sample_is_spread_over_the_text(kind):
    from data.sampling import sampled

    texts = [f"{n:07d}\n" for n in range(50_000)]
    taken = "".join(sampled(texts, 400_000, 40_000))
    numbers = [int(line) for line in taken.split() if len(line) == 7]
    assert 30_000 < len(taken) <= 45_000
    assert max(b - a for a, b in zip([0, *numbers], [*numbers, 50_000], strict=True)) < 5000
    assert "".join(sampled(texts, 400_000, 400_000)) == "".join(texts)


def test_a_run_learns_its_tokenizer_from_a_sample_and_finds_its_text_again(cli, tmp_path, monkeypatch):
    write(tmp_path / "t.txt", TEXT)
    monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / "cache"))
    how = ("--data", "t.txt", "--tokenizer", "bpe:300", "--bpe-sample", "2KB")
    ok(cli("-m data.prepare", *how, "--workers", 2))
    (folder,) = (tmp_path / "cache" / "prepared").iterdir()
    small = ("--model", "bigram", "--context", 8, "--steps", 2, "--eval-interval", 1, "--out", "run")
    ok(cli("train.py", *how, *small))
    shutil.rmtree(folder)
    assert not ok(cli("train.py", "--resume", "--out", "run", "--steps", 3)).err
    assert [*folder.parent.iterdir()] == [folder]
    refused(cli("train.py", "--data", "t.txt", "--bpe-sample", "1GB"), "--bpe-sample goes with --tokenizer bpe:N")
    refused(cli("train.py", "--init", "run", "--data", "t.txt", "--bpe-sample", "1GB"), "--bpe-sample")
