"""What of a sample is new: known lines, and the longest run that was copied from the training text."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.store import Split
from data.token_file import TokenFile
from engine import load_run
from engine.run import novelty, report
from engine.run.novelty import KnownLines, Novelty, _longest_run
from engine.run.samples import Sample
from tests.conftest import NAMES
from tests.helpers import LINES, STREAM, ok, refused, summary, trained, trained_any, warnings_of

FEW = settings(max_examples=150, deadline=None, derandomize=True)
words = st.text("ab", max_size=30) | st.text("abcdefgh ", max_size=30)


def symbols(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def by_hand(sample: str, text: str) -> int:
    return max(n for n in range(len(sample) + 1) for i in range(len(sample) - n + 1) if sample[i : i + n] in text)


@FEW
@given(sample=words, text=st.text("ab", max_size=120) | st.text("abcdefgh ", max_size=120), size=st.integers(1, 40))
def test_the_longest_copied_run_is_that_of_a_plain_search(sample, text, size):
    chunks = [symbols(text[i : i + size]) for i in range(0, len(text), size)]
    first, length = _longest_run(symbols(sample), chunks)
    assert length == by_hand(sample, text) and sample[first : first + length] in text


def test_a_chunk_is_looked_at_once_for_each_longer_run_and_once_more(monkeypatch):
    looked, common = [], novelty._common
    monkeypatch.setattr(novelty, "_common", lambda *given: looked.append(len(given[1])) or common(*given))
    text = np.random.default_rng(0).integers(0, 4, 1 << 18).astype(np.uint8)
    _, length = _longest_run(text[5000:5300], np.split(text, 16))
    assert length == 300 and len(looked) < 40 and max(looked) <= len(text) // 16 + 300


@FEW
@given(
    lines=st.lists(st.lists(st.integers(6, 9), max_size=5), min_size=1, max_size=12),
    asked=st.lists(st.integers(6, 9), max_size=5),
)
def test_known_lines_are_those_of_the_text(tmp_path_factory, lines, asked):
    path = tmp_path_factory.mktemp("lines") / "train.bin"
    np.array([i for line in lines for i in [*line, 2]], np.uint16).tofile(path)
    offsets = np.cumsum([0, *(len(line) + 1 for line in lines)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(novelty, "CHUNK", 4)
        known = KnownLines(Split(TokenFile(path, np.uint16), offsets))
    assert all(known.has(line) for line in lines) and known.has(asked) == (asked in lines)


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe:260"])
def test_the_summary_and_json_say_how_much_was_copied(cli, tmp_path, monkeypatch, tokenizer):
    monkeypatch.setattr(report, "N_CHARACTERS", 500)
    text = "🙂 emma met ava; they spoke of noah. é\n" * 30
    (tmp_path / "text.txt").write_text(text, "utf-8")
    trained_any(cli, "ngram", data="text.txt", tokenizer=tokenizer)
    said = (tmp_path / "run" / "samples.txt").read_text("utf-8")
    assert summary()["longest_copied"] >= len(said) - 40 > 100, "counts of a text that repeats itself copy it"
    line = json.loads(
        ok(cli("sample.py", "run", "--json", "--seed", 1, "--max-new-tokens", 60, "--prompt", "🙂 em")).out
    )
    store = Novelty(load_run("run")).store
    train = store.tokenizer.decode(store.train.tokens.array().tolist())
    assert line["end"] == "length" and line["longest_copied"] == by_hand(line["text"].removeprefix("🙂 em"), train)


def test_lines_say_whether_training_had_them(cli, names):
    trained_any(cli, "ngram", **LINES, order=7)
    flags = ["--num", 60, "--seed", 1, "--json"]
    lines = [json.loads(line) for line in ok(cli("sample.py", "run", *flags)).out.splitlines()]
    store = Novelty(load_run("run")).store
    ids = store.train.tokens.array().tolist()
    train = {
        store.tokenizer.decode(ids[a:b]) for a, b in zip(store.train.offsets, store.train.offsets[1:], strict=False)
    }
    assert train < set(NAMES) and {line["in_train"] for line in lines} == {True, False}
    assert all(line["in_train"] == (line["text"] in train) for line in lines)
    new = ok(cli("sample.py", "run", *flags[:4], "--only-new"))
    assert len(new.out.splitlines()) == 60 and not set(new.out.splitlines()) & train and not warnings_of(new)
    kept = [line["text"] for line in lines if not line["in_train"]]
    assert new.out.splitlines()[: len(kept)] == kept, "those that are not drawn again stay"
    assert len(ok(cli("sample.py", "run", *flags[2:4], "--only-new")).out.splitlines()) == 10


def test_what_cannot_be_new_is_drawn_again_only_so_often(cli, tmp_path):
    (tmp_path / "two.txt").write_text("ab\nab\nac\nac\n" * 9)
    trained_any(cli, "ngram", data="two.txt", kind="lines", val_data="two.txt")
    result = ok(cli("sample.py", "run", "--only-new", "--seed", 1, "--prompt", "ab", "--num", 3, "--top-k", 1))
    assert result.out == "" and "3 of 3 samples are missing" in warnings_of(result)[0]


def test_without_the_prepared_text_nothing_is_known(cli, tmp_path, names, text):
    trained(cli, **LINES)
    nowhere = {"CHARLM_CACHE": str(tmp_path / "nothing here")}
    lines = ok(cli("sample.py", "run", "--json", "--seed", 1, env=nowhere)).out.splitlines()
    assert [json.loads(line)["in_train"] for line in lines] == [None] * 10
    refused(cli("sample.py", "run", "--only-new", env=nowhere), "--only-new", "prepared", "data.prepare")
    shutil.rmtree("run")
    trained(cli, **STREAM)
    assert json.loads(ok(cli("sample.py", "run", "--json", env=nowhere)).out)["longest_copied"] is None
    refused(cli("sample.py", "run", "--only-new"), "--only-new is for runs on lines")
    assert not (tmp_path / "nothing here").exists()


def test_only_what_was_written_after_the_prompt_is_asked_about(cli, text):
    trained_any(cli, "ngram", **STREAM)
    known = Novelty(load_run("run"))
    sample = Sample("emma met ava; they", "@@@", "length")
    assert known.of(sample) == {"longest_copied": 0}


def test_documents_that_stand_in_the_training_text_are_drawn_again(cli, tmp_path):
    poems = [f"{a}\n  met {b}" for a in NAMES[:6] for b in NAMES[6:12]]
    (tmp_path / "poems.txt").write_text("\n\n".join(poems))
    trained_any(cli, "ngram", data="poems.txt", kind="documents", order=7)
    lines = ok(cli("sample.py", "run", "--num", 30, "--seed", 1, "--json")).out.splitlines()
    drawn = [json.loads(line) for line in lines]
    assert {one["in_train"] for one in drawn} == {True, False}
    new = [
        json.loads(line)
        for line in ok(cli("sample.py", "run", "--num", 30, "--seed", 1, "--json", "--only-new")).out.splitlines()
    ]
    assert len(new) == 30 and not any(one["in_train"] for one in new) and any("\n" in one["text"] for one in new)
    kept = [one["text"] for one in drawn if not one["in_train"]]
    assert [one["text"] for one in new][: len(kept)] == kept
