"""Skip-gram with negative sampling: vectors of words, learned by telling the words that stand near a word from words
drawn at random.

    python -m makemore.scratch.skipgram --data shakespeare [--words romeo king] [--out vectors.npz]

Mikolov et al., "Distributed Representations of Words and Phrases and their Compositionality", 2013. Its two matrices
are the vectors of words as centres, which are the result, and as neighbours.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from data.errors import run_command
from makemore.scratch import word_command
from makemore.scratch.functions import Array, sigmoid
from makemore.scratch.rows import RowAdagrad
from makemore.scratch.words import Words

PIECE = 1 << 16  # places of the text whose pairs are shuffled together
BATCH = 4096  # pairs a step


@dataclass
class Options(word_command.Options):
    """Learn vectors of words by skip-gram with negative sampling."""

    window: int = 5
    """Neighbours are at most this many words away; for each word a smaller reach is drawn, so that near ones count
    more."""
    negatives: int = 5
    """Words drawn at random for each neighbour."""
    epochs: int = 4
    """Times over the text."""
    lr: float = 0.1
    """Adagrad's learning rate."""


def negative_sampling(centre: Array, others: Array) -> tuple[Array, Callable[..., tuple[Array, Array]]]:
    """The mean over P pairs of -log sigmoid(v u_0) - sum over k of log sigmoid(-v u_k): `centre` v (P, C), `others` u
    (P, 1 + K, C), first the neighbour's vector, then those of K drawn words. `back` gives the derivatives by both."""
    scores = np.einsum("pc,pkc->pk", centre, others)  # (P, 1 + K)
    is_neighbour = np.zeros_like(scores)
    is_neighbour[:, 0] = 1
    losses = np.logaddexp(0, np.where(is_neighbour, -scores, scores))  # -log sigmoid(x) = log(1 + exp(-x))

    def back(dloss: float = 1.0) -> tuple[Array, Array]:
        ds = (sigmoid(scores)[0] - is_neighbour) * (dloss / len(scores))  # probability less truth
        return np.einsum("pk,pkc->pc", ds, others), ds[:, :, None] * centre[:, None]

    return losses.sum() / len(scores), back


def train(words: Words, options: Options, report: Callable[[int, float], None]) -> Array:
    """The vectors (V, C) of the words; `report(epoch, loss)` after each time over the text."""
    rng = np.random.default_rng(options.seed)
    size = (len(words.vocabulary), options.n_embd)
    centres = ((rng.random(size) - 0.5) / options.n_embd).astype(np.float32)
    others = np.zeros(size, np.float32)
    steps = RowAdagrad(centres, options.lr), RowAdagrad(others, options.lr)
    draw = drawing(words.counts)
    for epoch in range(options.epochs):
        total, count = 0.0, 0
        for near in pairs(words.tokens, options.window, rng):
            for v, u in zip(*(np.array_split(side, -(-len(side) // BATCH)) for side in near.T), strict=True):
                u = np.concatenate([u[:, None], draw(rng, (len(u), options.negatives))], 1)  # (P, 1 + K)
                loss, back = negative_sampling(centres[v], others[u])
                dv, du = back()
                steps[0].step(v, dv)
                steps[1].step(u.reshape(-1), du.reshape(-1, options.n_embd))
                total, count = total + float(loss) * len(v), count + len(v)
        report(epoch, total / count)
    return centres


def pairs(tokens: Array, window: int, rng: np.random.Generator) -> Iterator[Array]:
    """All (word, neighbour) of the text, (P, 2), a piece of it at a time and shuffled there. The reach of each word is
    drawn from 1 to `window`."""
    for start in range(0, len(tokens), PIECE):
        piece = tokens[start : start + PIECE + window]
        reach = rng.integers(1, window + 1, len(piece))
        near = []
        for distance in range(1, window + 1):
            left, right = (np.arange(len(piece) - distance)[:PIECE] + d for d in (0, distance))
            for a, b in ((left, right), (right, left)):
                near.append(np.stack([piece[a], piece[b]], 1)[reach[a] >= distance])
        yield rng.permutation(np.concatenate(near))


def drawing(counts: Array) -> Callable[[np.random.Generator, tuple[int, ...]], Array]:
    """A function that draws words: each in proportion to its count to the power of 3/4, so that rare ones are drawn
    more often than they occur."""
    edges = np.cumsum(counts**0.75)
    edges /= edges[-1]
    return lambda rng, shape: np.searchsorted(edges, rng.random(shape), side="right").astype(np.int32)


if __name__ == "__main__":
    sys.exit(run_command(lambda: word_command.main(Options, train, "makemore.scratch.skipgram")))
