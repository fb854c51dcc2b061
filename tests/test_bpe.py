"""Learning BPE's merges, and long words: the same merges as a plain reference, the same ids as tiktoken's, in linear
work."""

import json
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data import bpe, merges, words
from data.prepare import prepare
from tests.conftest import TINY
from tests.helpers import ok, quick, refused, warnings_of

FIXED = settings(max_examples=200, deadline=None, derandomize=True)
PROSE = "the sea, the sea, the open sea: it's 1849 and the shells sing — naïve songs, 'tis said; I'll ''s 99b4'd !'re"
# White space of every kind, "\x1c", which only Python takes for it, and what may join it in a word.
MIXED = st.text(st.sampled_from("a1'st! \n\t\r\x1c\x85\u2003漢\u0301"), max_size=40)
TOKENIZER = bpe.learn([PROSE + " \n\t  \n\n    \t\t        \u2003\u2003 x", "aaaa111!!!!''''"], 340, lambda note: None)


def learned_plainly(counts: dict[bytes, int], size: int) -> list[bytes]:
    """The merges, by counting all pairs again before each."""
    tokens = [bytes([b]) for b in range(256)]
    parts = {word: list(word) for word in counts}
    while len(tokens) < size:
        pairs = Counter()
        for word, part in parts.items():
            for pair in zip(part, part[1:], strict=False):
                pairs[pair] += counts[word]
        if not pairs:
            break
        (a, b), _ = min(pairs.items(), key=lambda item: (-item[1], item[0]))
        merged = tokens[a] + tokens[b]
        if merged not in tokens:
            tokens.append(merged)
        new = tokens.index(merged)
        for part in parts.values():
            for i in range(len(part)):
                if part[i : i + 2] == [a, b]:
                    part[i : i + 2] = [new]
    return tokens


@FIXED
@given(
    counts=st.dictionaries(
        st.text("ab", max_size=12).map(str.encode) | st.text("abcé", max_size=8).map(str.encode),
        st.integers(1, 4),
        max_size=6,
    ),
    size=st.sampled_from([256, 257, 260, 400]),
)
@example(counts={b"a" * 31: 1}, size=400)
@example(counts={b"abcab": 1, b"bc": 2, b"abc": 1, b"abcabc": 1}, size=400)  # "abc" is made of two pairs
def test_merges_are_those_of_counting_all_pairs_again(counts, size):
    assert merges.learn_tokens(counts, size) == learned_plainly(counts, size)


@pytest.mark.parametrize("text", ["a" * 3000, "abcd" * 800, "".join(str(n) for n in range(900))])
def test_learning_from_one_long_word_visits_no_position_more_than_three_times(text):
    visits, merge = 0, merges._Text.merge

    def counted(self, pair, new):
        nonlocal visits
        visits += len(self.positions[pair])
        return merge(self, pair, new)

    with mock.patch.object(merges._Text, "merge", counted):
        tokens = merges.learn_tokens({text.encode(): 1}, 2000)
    assert len(tokens) > 260 and visits <= 3 * len(text)


@FIXED
@given(text=MIXED, cuts=st.lists(st.integers(0, 40)), longest=st.integers(1, 12))
@example(text="a  b" * 5, cuts=[3, 9], longest=3)
def test_pieces_are_short_and_do_not_depend_on_the_chunks(text, cuts, longest):
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    with mock.patch.object(words, "MAX_PIECE", longest):
        pieces = list(words.whole_words(text[a:b] for a, b in zip(edges, edges[1:], strict=False)))
        whole = TOKENIZER.encode(text).tolist()
        assert sum((TOKENIZER.encode(piece).tolist() for piece in pieces), []) == whole
    assert "".join(pieces) == text and all(0 < len(piece) <= longest for piece in pieces)
    assert TOKENIZER.decode(whole) == text


@FIXED
@given(text=MIXED)
def test_text_is_cut_only_where_words_begin_in_any_text(text):
    ends, end = {len(text)}, 0
    for word in words.split(text):
        ends.add(end := end + len(word))
    assert {match.start() for match in words._last_edge().finditer(text)} <= ends


@FIXED
@given(text=MIXED | st.text(" \n\ta", max_size=60), shortest=st.integers(1, 6))
@example(text="x" + " " * 30 + "y", shortest=2)
@example(text=" \n" * 15, shortest=1)
def test_long_blanks_have_the_ids_of_the_pattern(text, shortest):
    expected = TOKENIZER.encode(text).tolist()
    assert expected == [TOKENIZER.first_id + rank for rank in TOKENIZER._words.encode_ordinary(text)]
    with mock.patch.object(words, "LONG_BLANK", shortest):
        assert TOKENIZER.encode(text).tolist() == expected


def test_very_many_blanks_are_a_prompt_and_a_text_to_score(cli, text):
    ok(cli("train.py", *quick(data=text, tokenizer="bpe:280", context=8)))
    blanks = " " * 200_000
    Path("blanks.txt").write_text(blanks)
    assert ok(cli("sample.py", "run", "--prompt", "@blanks.txt", "--max-new-tokens", 2)).out.startswith(blanks)
    assert "over 200000 characters" in ok(cli("sample.py", "run", "--score", "@blanks.txt")).out


def test_very_many_blanks_are_a_text_to_prepare(tmp_path):
    path = tmp_path / "blanks.txt"
    path.write_text("a b\n" + " " * 200_000 + "\nb a" + "\n" * 60_000 + "end")
    made = prepare(str(path), tokenizer="bpe:270")
    ids = np.concatenate([made.train.tokens.array(), made.val.tokens.array()]).tolist()
    assert made.tokenizer.decode(ids) == path.read_text()


def test_words_beyond_a_limit_are_not_learned_from_and_that_is_noted():
    notes = []
    with mock.patch.object(bpe, "MAX_DISTINCT", 10):
        tokenizer = bpe.learn(["abcd abcd", " wxyz wxyz", " abcd abcd"], 258, notes.append)
    assert tokenizer.tokens[256:] == [b"ab", b"cd"]
    assert notes == [
        "bpe:258 learned from the first 9 characters of distinct words: "
        "10 characters of words that first occur later are left out"
    ]


def fewer(run: str) -> str:
    """The warning of a run that asked for bpe:20000."""
    learned = len(json.loads(Path(run, "tokenizer.json").read_text())["tokens"])
    return f"warning: bpe:20000 learned {learned:,} tokens: they make every word of the training text one token"


def test_fewer_tokens_than_asked_for_are_said_whether_prepared_now_or_before(cli, text):
    for run in ("now", "before"):
        done = ok(cli("train.py", *quick(data=text, context=8, tokenizer="bpe:20000", out=run)))
        assert fewer(run) in warnings_of(done)
    assert not warnings_of(ok(cli("train.py", *quick(data=text, context=8, tokenizer="bpe:270"))))


def test_a_text_that_has_become_one_token_is_refused_with_the_reason(cli):
    Path("a.txt").write_text("a" * 5000)
    done = cli("train.py", *quick(data="a.txt", tokenizer="bpe:4096", context=8))
    refused(done, "has 1 tokens: too short", "bpe:4096 learned 272 tokens: they make every word")


def test_fewer_tokens_than_asked_for_are_said_by_fine_tuning(cli, tmp_path):
    Path("spam.tsv").write_text("".join(f"{'spam' if n % 2 else 'ham'}\tmessage {n} is here\n" for n in range(60)))
    rows = [f'{{"instruction": "say {n}", "input": "", "output": "{n}"}}' for n in range(60)]
    Path("chat.json").write_text(f"[{','.join(rows)}]")
    for kind, data in (("classify", "spam.tsv"), ("instruct", "chat.json")):
        flags = ("--data", data, "--tokenizer", "bpe:20000", "--model", "mlp", *TINY["mlp"], "--steps", 2)
        done = ok(cli(f"-m finetune.{kind}", *flags, "--out", kind))
        assert fewer(kind) in warnings_of(done)
