"""Batches: each epoch covers the text once, resuming and ranks change nothing, evaluation scores every target once."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.batches import IGNORE, Batch, counting_arrays
from data.errors import UserError
from data.eval_batches import eval_batches
from data.loaders import LaneLoader, LineLoader, StreamLoader
from data.store import Split
from data.token_file import TokenFile
from data.tokenizers import BOS, EOS, N_SPECIALS, UNK
from tests.conftest import ROOT

FIXED = settings(max_examples=40, deadline=None, derandomize=True)


def split_of(ids, offsets=None) -> Split:
    """A split that holds these ids."""
    with tempfile.NamedTemporaryFile() as file:
        np.asarray(ids, np.uint16).tofile(file.name)
        return Split(TokenFile(Path(file.name), np.uint16), offsets)


def stream(length: int) -> Split:
    """A stream of ids that count up, so that an id tells its place."""
    return split_of(np.arange(N_SPECIALS, N_SPECIALS + length))


def lines(lengths: list[int]) -> Split:
    """Lines of these lengths, their ids counting up from line to line (a real one ends in `<eos>`)."""
    return split_of(np.arange(N_SPECIALS, N_SPECIALS + sum(lengths)), np.cumsum([0, *lengths]))


def rows_of(split: Split) -> list[list[int]]:
    return [row.tolist() for row in np.split(split.tokens.array(), split.offsets[1:-1])]


def epoch_of(loader) -> list[Batch]:
    """All batches up to the loader's next epoch."""
    batches = []
    while loader.epoch == 0:
        batches.append(loader.next())
    return batches


def same(a: Batch, b: Batch) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def scored(batch: Batch) -> list[list[int]]:
    """The targets that count, row by row."""
    return [row[row != IGNORE].tolist() for row in batch.targets]


@FIXED
@given(length=st.integers(2, 300), context=st.integers(1, 40), seed=st.integers(0, 9))
def test_an_epoch_of_a_stream_covers_it_once_but_for_less_than_a_window_at_each_end(length, context, seed):
    if length <= context:
        return
    batches = epoch_of(StreamLoader(stream(length), context, 1, seed))
    assert all(np.array_equal(batch.targets, batch.tokens + 1) for batch in batches)
    places = sorted(np.concatenate([batch.targets for batch in batches]).flatten().tolist())
    assert places == [*range(places[0], places[-1] + 1)]
    assert places[0] - (N_SPECIALS + 1) < context and (N_SPECIALS + length - 1) - places[-1] < context


def test_every_epoch_cuts_and_orders_the_stream_differently():
    loader = StreamLoader(stream(1000), 8, 4, seed=0)
    firsts = []
    for epoch in range(6):
        starts = []
        while loader.epoch == epoch:
            starts += loader.next().tokens[:, 0].tolist()
        firsts.append(starts[:20])
    assert len({start % 8 for starts in firsts for start in starts}) > 2
    assert len({tuple(starts) for starts in firsts}) == 6 and all(starts != sorted(starts) for starts in firsts)


@FIXED
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=50), context=st.integers(1, 15), size=st.integers(1, 9)
)
def test_an_epoch_of_lines_covers_each_target_once_and_long_lines_lose_nothing(lengths, context, size):
    split = lines(lengths)
    loader = LineLoader(split, context, size, seed=0)
    pieces, seen = sum(-(-length // context) for length in lengths), []
    while len(seen) < pieces:
        seen += scored(loader.next())
    wanted = [row[i : i + context] for row in rows_of(split) for i in range(0, len(row), context)]
    assert sorted(seen[:pieces]) == sorted(wanted)


def test_a_line_stands_between_bos_and_eos_and_padding_does_not_count():
    batch = LineLoader(split_of([7, 8, EOS, 9, EOS, 7, EOS], np.array([0, 3, 5, 7])), 8, 3, seed=0).next()
    rows = sorted(zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True), key=lambda row: row[1])
    assert [row[1] for row in rows] == [[7, EOS, IGNORE], [7, 8, EOS], [9, EOS, IGNORE]]
    assert [row[0][:2] for row in rows] == [[BOS, 7], [BOS, 7], [BOS, 9]] and rows[1][0] == [BOS, 7, 8]
    assert batch.n_tokens == 7


def test_the_pieces_of_a_long_line_read_the_token_before_them():
    split = lines([10])
    (ids,) = rows_of(split)
    batch = LineLoader(split, 4, 3, seed=0).next()
    rows = sorted(zip(scored(batch), batch.tokens[:, 0].tolist(), strict=True))
    assert rows == [(ids[:4], BOS), (ids[4:8], ids[3]), (ids[8:], ids[7])]


LOADERS = {
    "stream": (StreamLoader, lambda n: stream(20 + n)),
    "lanes": (LaneLoader, lambda n: stream(60 + n)),
    "lines": (LineLoader, lambda n: lines([1 + i % 7 for i in range(n)])),
}


@pytest.mark.parametrize("kind", LOADERS)
@FIXED
@given(size=st.integers(1, 90), context=st.integers(1, 6), batch=st.integers(1, 5), cut=st.integers(0, 40))
def test_a_loader_goes_on_from_its_state_with_the_same_batches(kind, size, context, batch, cut):
    cls, make = LOADERS[kind]
    loader, again = (cls(make(size), context, batch, seed=3) for _ in range(2))
    for _ in range(cut):
        loader.next()
    again.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    assert all(same(loader.next(), again.next()) for _ in range(12))


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("world", [2, 3])
def test_the_shares_of_all_processes_together_are_the_batch(kind, world):
    cls, make = LOADERS[kind]
    one, other = (cls(make(90), 4, 2 * world, seed=5) for _ in range(2))
    for _ in range(40):
        together, deal = one.next(), other.deal()
        parts = [other.batch(deal.share(rank, world)) for rank in range(world)]
        assert [row for part in parts for row in scored(part)] == scored(together)
        assert sum(part.n_tokens for part in parts) == together.n_tokens
        assert {part.fresh for part in parts} == {together.fresh}


@pytest.mark.parametrize("kind", LOADERS)
def test_another_seed_gives_other_batches(kind):
    cls, make = LOADERS[kind]
    a, b = (cls(make(90), 4, 4, seed=seed) for seed in (1, 2))
    assert not all(same(a.next(), b.next()) for _ in range(4))


@FIXED
@given(length=st.integers(13, 400), context=st.integers(1, 6), lanes=st.integers(1, 2))
def test_lanes_go_on_where_they_stopped_and_cover_nearly_all_of_the_text(length, context, lanes):
    batches = epoch_of(LaneLoader(stream(length), context, lanes, seed=1))
    assert [batch.fresh for batch in batches] == [True] + [False] * (len(batches) - 1)
    for before, after in zip(batches, batches[1:], strict=False):
        assert np.array_equal(after.tokens[:, 0], before.targets[:, -1])
    targets = np.concatenate([batch.targets for batch in batches], 1)
    assert np.array_equal(targets, np.concatenate([batch.tokens for batch in batches], 1) + 1)
    assert len(np.unique(targets)) == targets.size > length - 1 - context * lanes


def test_a_text_too_short_for_its_context_or_lanes_says_what_fits():
    with pytest.raises(UserError, match="has 20 tokens, too short for a context of 20; .* fits is 19"):
        StreamLoader(stream(20), 20, 4, seed=0)
    assert StreamLoader(stream(20), 19, 4, seed=0).next().n_tokens == 4 * 19
    with pytest.raises(UserError, match="too short for 9 lanes of context 4; the largest --batch-size that fits is 4"):
        LaneLoader(stream(20), 4, 9, seed=0)
    assert LaneLoader(stream(20), 4, 4, seed=0).next().n_tokens == 16


def test_unknown_characters_are_read_but_never_scored():
    ids = [7, UNK, 8, 9, UNK, 7, 8, 9, 7]
    batches = [StreamLoader(split_of(ids), 8, 1, seed=0).next(), *eval_batches(split_of(ids), 8, 99)()]
    for batch in batches:
        assert batch.tokens.tolist() == [ids[:-1]]
        assert batch.targets.tolist() == [[IGNORE if i == UNK else i for i in ids[1:]]] and batch.n_tokens == 6
    (batch,) = eval_batches(split_of([7, UNK, EOS], np.array([0, 3])), 8, 99)()
    assert batch.tokens.tolist() == [[BOS, 7, UNK]] and batch.targets.tolist() == [[7, IGNORE, EOS]]


def prefixes(batch, history: int) -> list[list[int]]:
    """What stands before each row; nothing where no history is wanted."""
    assert batch.position is None and (batch.prefix is None) == (history == 0)
    return [[]] * len(batch.tokens) if batch.prefix is None else batch.prefix.tolist()


HISTORIES = st.sampled_from([0, 1, 3, 50])


@FIXED
@given(length=st.integers(2, 300), context=st.integers(1, 40), history=HISTORIES)
def test_evaluating_a_stream_scores_every_target_once_and_in_order(length, context, history):
    found = []
    for batch in eval_batches(stream(length), context, 1 << 30, history)():
        assert (batch.targets == batch.tokens + 1).all() and batch.tokens.shape[1] <= context
        found += batch.targets.flatten().tolist()
        for prefix, first in zip(prefixes(batch, history), batch.tokens[:, 0].tolist(), strict=True):
            real = [*range(N_SPECIALS, first)][-history:] if history else []
            assert prefix == [BOS] * (history - len(real)) + real
        assert batch.n_tokens == sum(map(len, scored(batch)))
    assert found == [*range(N_SPECIALS + 1, N_SPECIALS + length)]


@FIXED
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20), context=st.integers(1, 12), history=HISTORIES)
def test_evaluating_lines_scores_every_target_once_after_what_stands_before_it(lengths, context, history):
    split, found = lines(lengths), []
    begin = {row[0] + i: row[0] for row in rows_of(split) for i in range(len(row))}
    for batch in eval_batches(split, context, 1 << 30, history)():
        for tokens, prefix, wanted in zip(batch.tokens.tolist(), prefixes(batch, history), scored(batch), strict=True):
            assert len(wanted) <= context
            for token, target in zip(tokens, wanted, strict=False):
                assert token == (BOS if target in begin.values() else target - 1)
            real = [*range(begin[wanted[0]], wanted[0] - 1)][-history:] if history else []
            assert prefix == [BOS] * (history - len(real)) + real
            found += wanted
    assert sorted(found) == split.tokens.array().tolist()


@pytest.mark.parametrize("history", [0, 3])
@pytest.mark.parametrize("split", [stream(5000), lines([5] * 1000)], ids=["stream", "lines"])
def test_a_large_split_is_evaluated_on_the_same_evenly_spaced_part_each_time(split, history):
    part = eval_batches(split, 10, 1000, history)
    first, second, other = list(part()), list(part()), list(eval_batches(split, 10, 1000, history)())
    assert all(same(a, b) and same(a, c) for a, b, c in zip(first, second, other, strict=True))
    targets = sorted(i for batch in first for row in scored(batch) for i in row)
    assert 800 <= sum(batch.n_tokens for batch in first) <= 1000
    gaps = np.diff([N_SPECIALS, *targets, N_SPECIALS + 5000])
    assert gaps.max() < 60, "no part of the split is left out"


def test_a_split_of_exactly_the_limit_is_evaluated_whole():
    batches = list(eval_batches(stream(1005), 10, 1004)())
    assert sum(batch.n_tokens for batch in batches) == 1004


def test_training_batches_say_where_their_targets_stand():
    for loader, split in (
        (StreamLoader(stream(100), 7, 4, seed=0), stream(100)),
        (LaneLoader(stream(100), 7, 4, seed=0), stream(100)),
        (LineLoader(lines([3, 20, 8]), 7, 2, seed=0), lines([3, 20, 8])),
    ):
        counted = counting_arrays(split)[1]
        for _ in range(5):
            batch = loader.next()
            assert counted[batch.position].tolist() == batch.targets[:, 0].tolist() and batch.prefix is None


def test_history_changes_what_is_read_and_not_what_is_scored():
    for split in (stream(200), lines([7, 30, 2, 19])):
        plain, more = (
            sorted(row for batch in eval_batches(split, 8, 1 << 30, history)() for row in scored(batch))
            for history in (0, 5)
        )
        assert plain == more


def test_batches_of_evaluation_stay_small_whatever_the_context():
    for context in (8, 512):
        shapes = [batch.tokens.shape for batch in eval_batches(stream(30_000), context, 1 << 30, 600)()]
        assert max(rows * width for rows, width in shapes) <= 8192


def test_models_that_count_get_all_pairs_and_the_place_in_the_row():
    inputs, targets, position = counting_arrays(split_of([7, 8, EOS, 9, EOS], np.array([0, 3, 5])))
    assert (inputs.tolist(), targets.tolist(), position.tolist()) == (
        [BOS, 7, 8, BOS, 9], [7, 8, EOS, 9, EOS], [0, 1, 2, 0, 1],
    )  # fmt: skip
    inputs, targets, position = counting_arrays(split_of([7, 8, 9]))
    assert (inputs.tolist(), targets.tolist(), position.tolist()) == ([7, 8], [8, 9], [0, 1])


def test_batches_are_dealt_without_torch():
    code = (
        "import sys, numpy as np; import data.loaders; from data.rows import Row, collate;"
        "collate([Row(np.zeros(2, int), np.zeros(2, int))], 0); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
