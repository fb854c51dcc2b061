"""Vectors of words in NumPy: skip-gram and GloVe, by their commands and by their gradients."""

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from makemore.scratch import glove, skipgram, word_command
from makemore.scratch.rows import RowAdagrad, summed
from makemore.scratch.words import Words, read_words
from tests.helpers import ok, refused
from tests.scratch_helpers import difference, loads_torch

LORDS, LADIES = ("tom", "ben", "sam", "rob"), ("ann", "eve", "ida", "liz")
FEW = ["--epochs", 2, "--n-embd", 8, "--min-count", 2]


@pytest.fixture
def play(tmp_path) -> Path:
    """A text in which speakers stand at the beginning of a speech, and lords and ladies beside words of their own."""
    rng = np.random.default_rng(0)
    speeches = []
    for n in range(300):
        who, says = ((LORDS, "sword horse battle king"), (LADIES, "ring gown garden song"))[n % 2]
        words = [*rng.choice(who, 2), *rng.choice(says.split(), 5), *rng.choice("the a of in and to".split(), 4)]
        speeches.append(f"{words[0].title()}:\n{' '.join(rng.permutation(words[1:]))}.\n")
    path = tmp_path / "play.txt"
    path.write_text("\n".join(speeches), "utf-8")
    return path


def test_words_are_counted_and_the_rare_left_out(play):
    play.write_text(play.read_text() + "\nadieu, I said\nRemember:\nadieu, farewell\n")
    words = read_words([str(play)], 2)
    plain = play.read_text().lower().translate(str.maketrans(":.,", "   ")).split()
    assert {w: int(n) for w, n in zip(words.vocabulary, words.counts, strict=True)} == {
        w: plain.count(w) for w in set(plain) if plain.count(w) > 1
    }
    assert [words.vocabulary[i] for i in words.tokens] == [w for w in plain if plain.count(w) > 1]
    assert "adieu" in words and "farewell" not in words and "remember" not in words
    assert {words.vocabulary[i] for i in words.speakers} == {*LORDS, *LADIES}
    assert list(words.counts) == sorted(words.counts, reverse=True)


def test_negative_samplings_gradients_are_differences():
    rng = np.random.default_rng(0)
    check_gradients(skipgram.negative_sampling, [rng.standard_normal((3, 4)), rng.standard_normal((3, 6, 4))])


def test_gloves_gradients_are_differences():
    rng = np.random.default_rng(0)
    counts = np.array([0.5, 9.0, 40.0])
    check_gradients(
        lambda a, b: glove.weighted_squares(a, b, counts, 10), [rng.standard_normal((3, 5)) for _ in range(2)]
    )


def check_gradients(function, arguments: list[np.ndarray]) -> None:
    _, back = function(*arguments)
    for argument, gradient in zip(arguments, back(), strict=True):
        assert gradient.shape == argument.shape
        for index in np.ndindex(argument.shape):
            slope = difference(lambda: function(*arguments)[0], argument, index)
            assert abs(slope - gradient[index]) < 1e-8 * max(1, abs(slope)), index


def test_a_line_with_a_colon_is_a_speaker_only_after_an_empty_one(play):
    play.write_text(play.read_text() + "\nthe king\nSword:\nsword\n")
    words = read_words([str(play)], 2)
    assert "sword" in words and {words.vocabulary[i] for i in words.speakers} == {*LORDS, *LADIES}


def test_glove_is_what_its_formula_says():
    a, b = np.array([[1.0, 2.0, 0.5], [0.0, 1.0, 0.0]]), np.array([[3.0, -1.0, 0.25], [1.0, 1.0, 1.0]])
    loss, _ = glove.weighted_squares(a, b, np.array([2.0, 50.0]), most=10)
    expected = 0.2**0.75 * (3 - 2 + 0.75 - np.log(2)) ** 2 + (1 + 1 - np.log(50)) ** 2
    assert loss == pytest.approx(expected / 2)


def test_negative_sampling_is_what_its_formula_says():
    v, u = np.array([[1.0, 2.0]]), np.array([[[0.5, 0.0], [0.0, -1.0], [3.0, 0.0]]])
    expected = -np.log(1 / (1 + np.exp(-0.5))) - np.log(1 / (1 + np.exp(-2.0))) - np.log(1 / (1 + np.exp(3.0)))
    assert skipgram.negative_sampling(v, u)[0] == pytest.approx(expected)
    far = skipgram.negative_sampling(1e4 * v, u)[0]
    assert np.isfinite(far) and far == pytest.approx(3e4)


@given(st.lists(st.integers(0, 300), max_size=400), st.integers(1, 3))
def test_repeated_rows_are_summed(rows, width):
    rows = np.array(rows, np.int32)
    gradients = np.random.default_rng(len(rows)).standard_normal((len(rows), width))
    which, total = summed(rows, gradients)
    expected = np.zeros((301, width))
    np.add.at(expected, rows, gradients)
    assert which.tolist() == sorted(set(rows.tolist()))
    assert np.allclose(total, expected[which])


def test_runs_of_many_lengths_are_summed():
    rows = np.random.default_rng(0).zipf(1.3, 5000).clip(max=2000)
    gradients = np.random.default_rng(1).standard_normal((5000, 3))
    which, total = summed(rows, gradients)
    expected = np.zeros((2001, 3))
    np.add.at(expected, rows, gradients)
    assert len(which) > 200 and np.allclose(total, expected[which])


def test_a_row_moves_less_the_more_it_was_moved():
    matrix = np.zeros((3, 2))
    adagrad = RowAdagrad(matrix, lr=1.0)
    adagrad.step(np.array([2, 0, 2]), np.array([[3.0, 4.0], [1.0, 1.0], [3.0, 4.0]]))
    assert np.allclose(matrix, [[-1, -1], [0, 0], [-6 / 50**0.5, -8 / 50**0.5]])
    adagrad.step(np.array([0]), np.array([[1.0, 1.0]]))
    assert np.allclose(matrix[0], -1 - 1 / 2**0.5)


@given(st.integers(2, 60), st.integers(1, 7), st.integers(1, 80))
def test_pairs_are_those_within_the_window(n, window, piece):
    with mock.patch.object(skipgram, "PIECE", piece):
        near = np.concatenate([*skipgram.pairs(np.arange(n), window, np.random.default_rng(0))])
    distance = np.abs(near[:, 0] - near[:, 1])
    assert distance.min() == 1 and distance.max() <= window
    assert len({tuple(pair) for pair in near.tolist()}) == len(near)  # none twice
    assert (distance == 1).sum() == 2 * (n - 1)  # the next word is within every reach
    if piece >= n:  # a word has a reach of its own, the same on both sides
        for centre in range(n):
            beside = near[near[:, 0] == centre, 1] - centre
            reach = range(-np.abs(beside).max(), np.abs(beside).max() + 1)
            assert {*beside.tolist()} == {d for d in reach if d and 0 <= centre + d < n}


@given(st.lists(st.integers(0, 5), min_size=2, max_size=60), st.integers(1, 7), st.integers(1, 20))
def test_cooccurrences_are_counted(tokens, window, piece):
    expected = np.zeros((6, 6))
    for i, a in enumerate(tokens):
        for j, b in enumerate(tokens):
            if 0 < abs(i - j) <= window:
                expected[a, b] += 1 / abs(i - j)
    words = Words([*"abcdef"], np.ones(6), np.array(tokens), np.zeros(0, int))
    with mock.patch.object(glove, "PIECE", piece):
        rows, columns, counts = glove.cooccurrences(words, window)
    table = np.zeros((6, 6))
    table[rows, columns] = counts
    assert len(rows) == len({*zip(rows.tolist(), columns.tolist(), strict=True)}) == np.count_nonzero(expected)
    assert np.allclose(table, expected, rtol=1e-6)


def test_rare_words_are_drawn_more_often_than_they_occur():
    drawn = skipgram.drawing(np.array([1000, 100, 1]))(np.random.default_rng(0), (200, 500))
    shares = np.bincount(drawn.reshape(-1), minlength=3) / drawn.size
    expected = np.array([1000, 100, 1]) ** 0.75
    assert np.allclose(shares, expected / expected.sum(), atol=0.005) and shares[2] > 1.5 / 1101


def test_the_score_is_the_share_of_speakers_among_the_nearest():
    angle = np.linspace(0, 1, 40) + 2 * (np.arange(40) > 10)
    vectors = np.stack([np.cos(angle), np.sin(angle)], 1) * np.arange(1, 41)[:, None]  # length says nothing
    assert word_command.nearest_words(vectors, np.array([0, 39]), 2).tolist() == [[1, 2], [38, 37]]
    together, apart = np.arange(11), np.array([0, 39])
    assert word_command.speakers_score(vectors, together) == (1.0, 10 / 39)
    assert word_command.speakers_score(vectors, apart) == (0.0, 1 / 39)


@pytest.mark.parametrize("command", ["skipgram", "glove"])
def test_words_that_stand_beside_the_same_words_get_near(cli, play, command):
    epochs = 20 if command == "skipgram" else 60
    flags = ["--data", play, *FEW[2:], "--lr", 0.3, "--epochs", epochs, "--words", "Tom", "ann"]
    out = ok(cli(f"-m makemore.scratch.{command}", *flags)).out
    near = dict(line.split(" -> ") for line in out.splitlines() if "->" in line)
    lords, ladies = {*LORDS, *"sword horse battle king".split()}, {*LADIES, *"ring gown garden song".split()}
    assert {*near["tom"].split()[:3]} <= lords and {*near["ann"].split()[:3]} <= ladies, out
    assert "speakers among the 10 nearest of a speaker: 0." in out and "by chance 0.333" in out


def test_several_texts_and_a_pipe_are_one_text(cli, play):
    words = ok(cli("-m makemore.scratch.skipgram", "--data", play, *FEW)).out.splitlines()[0]
    both = cli("-m makemore.scratch.skipgram", "--data", play, "-", *FEW, stdin=play.read_bytes())
    assert int(ok(both).out.split()[0].replace(",", "")) == 2 * int(words.split()[0].replace(",", ""))


@pytest.mark.parametrize("command", ["skipgram", "glove"])
def test_the_same_seed_gives_the_same_file(cli, play, command):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        ok(cli(f"-m makemore.scratch.{command}", "--data", play, *FEW, "--seed", seed, "--out", f"{name}.npz"))
    a, b, c = (Path(f"{name}.npz").read_bytes() for name in "abc")
    assert a == b and a != c
    with np.load("a.npz") as file:
        assert file["vectors"].shape == (len(file["words"]), 8) and file["vectors"].dtype == np.float32
        assert {*file["words"][file["speakers"]]} == {*LORDS, *LADIES}


@pytest.mark.parametrize(
    ("command", "flags", "words"),
    [
        ("skipgram", ["--min-count", 2000], ["play.txt has 0 words", "at least 2000 times", "--min-count"]),
        ("glove", ["--min-count", 150], ["play.txt has", "20 are the fewest"]),
        ("skipgram", ["--words", "swords"], ["'swords' is not among the 22 words", "Did you mean 'sword'?"]),
        ("skipgram", ["--negatives", 0], ["--negatives is 0", "above 0"]),
        ("glove", ["--most", -1], ["--most is -1", "above 0"]),
        ("skipgram", ["--lr", "nan"], ["--lr is nan"]),
        ("glove", ["--out", "v.txt"], ["--out is v.txt", ".npz"]),
        ("glove", ["--out", "none/v.npz"], ["none"]),
        ("skipgram", ["--data", "nowhere.txt"], ["no such file", "nowhere.txt"]),
        ("skipgram", ["--data", "bytes.bin"], ["bytes.bin is not utf-8"]),
        ("skipgram", ["--data", "-", "play.txt", "-"], ["only one text can be standard input"]),
        ("skipgram", ["--epoch", 3], ["--epoch"]),
        ("glove", ["--lr", 1e30], ["the steps are too long", "--lr"]),
    ],
)
def test_mistakes_of_the_user(cli, play, command, flags, words):
    Path("bytes.bin").write_bytes(b"caf\xe9 " * 100)
    data = [] if "--data" in flags else ["--data", play]
    refused(cli(f"-m makemore.scratch.{command}", *data, *flags), *words)


@pytest.mark.parametrize("command", ["skipgram", "glove"])
def test_torch_stays_unloaded(command, play):
    assert not loads_torch(f"makemore.scratch.{command}", "--data", play, *FEW)
