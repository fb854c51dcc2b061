"""Rows of fine-tuning: batches by length, every row once an epoch, exact going on, padding that predicts nothing."""

import numpy as np
import pytest

from data.batches import IGNORE
from data.rows import EVAL_TOKENS, WINDOW, Row, RowLoader, by_length, collate, eval_rows

PAD = 99


def rows_of(count: int, longest: int = 30, seed: int = 0) -> list[Row]:
    """Rows of random lengths; the number of a row is its first token and its last target."""
    rows = []
    for n, length in enumerate(np.random.default_rng(seed).integers(1, longest, count)):
        tokens, targets = np.full(length, 7), np.full(length, IGNORE)
        tokens[0], targets[-1] = 1000 + n, n
        rows.append(Row(tokens, targets))
    return rows


@pytest.mark.parametrize(("count", "batch_size"), [(1, 4), (7, 7), (103, 4), (64, 64), (500, 8)])
def test_an_epoch_has_every_row_once_and_the_next_another_order(count, batch_size):
    loader, epochs = RowLoader(rows_of(count), batch_size, seed=3, pad=PAD), []
    for epoch in range(2):
        seen = []
        while loader.epoch == epoch:
            batch = loader.next()
            seen += batch.tokens[:, 0].tolist()
            assert batch.n_tokens == len(batch.tokens) <= batch_size
        epochs.append(seen)
        assert sorted(seen) == [1000 + n for n in range(count)]
    assert count <= batch_size or epochs[0] != epochs[1]


def test_rows_of_a_batch_have_about_one_length():
    loader = RowLoader(rows_of(WINDOW * 32), 32, seed=0, pad=PAD)
    used = total = 0
    while not loader.epoch:
        batch = loader.next()
        used, total = used + int((batch.tokens != PAD).sum()), total + batch.tokens.size
    assert used > 0.9 * total


def test_a_loader_goes_on_where_another_stood():
    one, other = (RowLoader(rows_of(50), 8, seed=1, pad=PAD) for _ in range(2))
    for _ in range(17):
        one.next()
    other.load_state_dict(one.state_dict())
    for _ in range(10):
        assert one.next().tokens.tolist() == other.next().tokens.tolist()


def test_the_shares_of_all_processes_together_are_the_batch():
    whole, loader = (RowLoader(rows_of(60), 16, seed=1, pad=PAD) for _ in range(2))
    for _ in range(9):
        deal = loader.deal()  # the last one of an epoch has 12 rows
        together = [n for rank in range(3) for n in loader.batch(deal.share(rank, 3)).tokens[:, 0].tolist()]
        assert together == whole.next().tokens[:, 0].tolist()


def test_padding_is_on_the_right_and_predicts_nothing():
    batch = collate([Row(np.array([5, 6]), np.array([IGNORE, 1])), Row(np.array([5, 6, 7]), np.array([6, 7, 2]))], PAD)
    assert batch.tokens.tolist() == [[5, 6, PAD], [5, 6, 7]]
    assert batch.targets.tolist() == [[IGNORE, 1, IGNORE], [6, 7, 2]] and batch.n_tokens == 4


def test_weights_go_with_their_rows_and_are_one_where_none_was_given():
    plain, weighted = Row(np.array([5, 6]), np.array([1, 2])), Row(np.array([5]), np.array([1]), np.array([0.5]))
    assert collate([plain, plain], PAD).weight is None and collate([plain], PAD).divisor == 2
    batch = collate([plain, weighted], PAD)
    assert batch.weight.tolist()[0] == [1, 1] and batch.weight.tolist()[1][0] == 0.5
    assert batch.n_tokens == 3 and batch.divisor == 2.5


def test_evaluation_sees_every_row_once_in_batches_of_bounded_size():
    rows = rows_of(400, longest=300)
    assert sorted(i for batch in by_length(rows) for i in batch) == list(range(400))
    batches = list(eval_rows(rows, PAD)())
    assert sum(batch.n_tokens for batch in batches) == 400
    assert all(batch.tokens.size <= EVAL_TOKENS for batch in batches)


def test_what_stands_before_rows_is_padded_apart_from_them_and_counts_in_their_size():
    tokens, targets = np.array([1, 2]), np.array([2, 3])
    rows = [Row(tokens, targets, prefix=np.arange(5)), Row(tokens, targets, prefix=np.arange(EVAL_TOKENS))]
    batch = collate(rows, PAD)
    assert batch.tokens.shape == (2, 2) and batch.prefix.shape == (2, EVAL_TOKENS)
    assert batch.prefix[0, :6].tolist() == [0, 1, 2, 3, 4, PAD] and batch.prefix[1, -1] == EVAL_TOKENS - 1
    assert [*by_length(rows)] == [[0], [1]] and collate([Row(tokens, targets)], PAD).prefix is None
