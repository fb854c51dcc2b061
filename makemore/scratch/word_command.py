"""What skip-gram and GloVe share as commands: flags, the nearest of some words, the score, the file of vectors."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data import program
from data.errors import UserError
from makemore.scratch.commands import check_positive, write_arrays
from makemore.scratch.functions import Array
from makemore.scratch.words import Words, read_words

SHOWN = 5  # nearest words that are printed
SCORED = 10  # nearest words that are scored
USUAL = ("romeo", "king", "night", "thou")


@dataclass
class Options:
    data: tuple[str, ...] = ("shakespeare",)
    """A data set by name, a text file, a folder, or -; several are one text."""
    encoding: str = "utf-8"
    """The encoding of the text."""
    min_count: int = 5
    """Words that occur fewer times are left out."""
    n_embd: int = 64
    """Numbers a vector has."""
    words: tuple[str, ...] = ()
    """Print the nearest of these (default: romeo king night thou, or four of the text where it lacks them)."""
    out: Path | None = None
    """Write the words, their counts, their vectors and which are speakers into this file (.npz)."""
    seed: int = 1
    """Same seed, same vectors."""


def main(kind: type[Any], train: Callable[..., Array], module: str) -> int:
    """Parse the flags, a `kind` of Options, train, and tell what came of it."""
    import tyro

    options = tyro.cli(kind, prog=f"python -m {program.module(module)}")
    check_positive(options, "min_count", "n_embd", "window", "negatives", "epochs", "lr", "most")
    words = read_words(options.data, options.min_count, options.encoding)
    shown = [words.number(word) for word in options.words or usual(words)]  # before the time is spent
    print(f"{len(words.tokens):,} words, {len(words.vocabulary):,} different ones")
    start = time.perf_counter()

    def report(epoch: int, loss: float) -> None:
        if not np.isfinite(loss):
            raise UserError(f"the loss is {loss} after epoch {epoch + 1}: the steps are too long, lower --lr")
        print(f"epoch {epoch + 1} of {options.epochs}: loss {loss:.4f} ({time.perf_counter() - start:.1f} s)")

    with np.errstate(over="ignore", invalid="ignore"):
        vectors = train(words, options, report)
    for i in shown:
        near = [words.vocabulary[j] for j in nearest_words(vectors, np.array([i]), SHOWN)[0]]
        print(f"{words.vocabulary[i]} -> {' '.join(near)}")
    if len(words.speakers) > 1:
        score, chance = speakers_score(vectors, words.speakers)
        print(f"speakers among the {SCORED} nearest of a speaker: {score:.3f} (by chance {chance:.3f})")
    if options.out:
        is_speaker = np.isin(np.arange(len(vectors)), words.speakers)
        named = {"words": np.array(words.vocabulary), "counts": words.counts, "speakers": is_speaker}
        write_arrays(options.out, named | {"vectors": vectors})
    return 0


def usual(words: Words) -> list[str]:
    """The words whose nearest are printed where none are named."""
    known = [word for word in USUAL if word in words]
    return known or [words.vocabulary[len(words.vocabulary) >> n] for n in (4, 3, 2, 1)]


def nearest_words(vectors: Array, of: Array, k: int) -> Array:
    """For each of the words `of` (N,) the k others whose vectors have the smallest angle with its own, (N, k), the
    nearest first."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
    cosines = unit[of] @ unit.T  # (N, V)
    cosines[np.arange(len(of)), of] = -np.inf
    return np.argsort(-cosines, 1, kind="stable")[:, :k]


def speakers_score(vectors: Array, speakers: Array) -> tuple[float, float]:
    """The share of speakers among the ten nearest words of a speaker, as a mean over all of them, and what that is for
    vectors that say nothing."""
    near = nearest_words(vectors, speakers, SCORED)
    return float(np.isin(near, speakers).mean()), (len(speakers) - 1) / (len(vectors) - 1)
