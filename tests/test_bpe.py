"""Learning BPE's merges: those of a plain reference, in linear work."""

from collections import Counter
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data import merges

FIXED = settings(max_examples=200, deadline=None, derandomize=True)


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
