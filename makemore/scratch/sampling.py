"""Text from a model in NumPy: for each new token all that fit into the context are read again, which is simple and
slow; `sample.py` reads each token once."""

import numpy as np

from data.tokenizers import AFTER_EOS, Tokenizer
from makemore.scratch.base import Model
from makemore.scratch.functions import Array, softmax

MOST_LINES_TOKENS = 60  # of a line or document


def generate(model: Model, rows: Array, count: int, context: int, rng: np.random.Generator, ends: bool = True) -> Array:
    """`rows` (B, T) continued by `count` tokens, drawn from the model's probabilities: (B, T + count), or fewer where
    all rows have ended. A row that has ended goes on with `<eos>`; without `ends`, as in a stream, none does."""
    ended = np.zeros(len(rows), bool)
    for _ in range(count):
        probabilities, _ = softmax(model.logits(rows[:, -context:])[:, -1].astype(np.float64))
        drawn = (probabilities.cumsum(-1) > rng.random((len(rows), 1))).argmax(-1)
        ended |= ends & (drawn == model.special.eos)
        rows = np.concatenate([rows, np.where(ended, model.special.eos, drawn)[:, None]], 1)
        if ended.all():
            break
    return rows


def lines(model: Model, tokenizer: Tokenizer, num: int, context: int, seed: int) -> list[str]:
    """`num` lines or documents."""
    rows = np.full((num, 1), model.special.bos)
    drawn = generate(model, rows, min(context, MOST_LINES_TOKENS), context, np.random.default_rng(seed))
    return [tokenizer.decode(row[row != model.special.eos].tolist()) for row in drawn[:, 1:]]


def stream(model: Model, tokenizer: Tokenizer, start: str, count: int, context: int, seed: int) -> str:
    """The text of a stream that goes on after `start`; of a stream of documents, up to the end of one."""
    rows = np.array([tokenizer.start_ids(start)])
    drawn = generate(model, rows, count, context, np.random.default_rng(seed), ends=start == AFTER_EOS)
    return tokenizer.decode(drawn[0, rows.shape[1] :].tolist())
