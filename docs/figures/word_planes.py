"""Vectors of words and of letters, seen in the plane in which they vary most: `python -m docs.figures.word_planes
VECTORS RUN`, the file of makemore.scratch.skipgram --out, and a run of train.py on names."""

from typing import Any

import numpy as np

from docs import figures
from engine.run.load import load_run

SPEAKERS = "romeo juliet benvolio tybalt warwick edward hastings menenius sicinius brutus leontes camillo".split()
WORDS = "thou art hast wilt king queen duke night morning moon sun sword blood".split()
WIDE, HIGH = 0.026, 0.05  # a letter, as shares of the plane


def plane(vectors: Any) -> Any:
    """The two coordinates along which the directions of vectors (N, C) vary most, (N, 2): principal components."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    centred = unit - unit.mean(0)
    return centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T


def main(argv: list[str]) -> None:
    (file, folder), out = figures.arguments(__spec__.name, __doc__, argv, runs=2)
    figure = figures.new(8, 4.2)
    left, right = figure.subplots(1, 2)
    with np.load(file) as stored:
        number = {word: i for i, word in enumerate(stored["words"].tolist())}
        shown = [word for word in (*SPEAKERS, *WORDS) if word in number]
        shown = shown if len(shown) > 9 else [*number][:30]  # of another text
        at = plane(stored["vectors"][[number[word] for word in shown]])
    scatter(left, at, shown, ["#b2182b" if word in SPEAKERS else "#2166ac" for word in shown])
    left.set_title("words of Shakespeare, skip-gram", size=10)
    run = load_run(folder, device="cpu")
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    at = plane(run.model.wte.weight.detach().numpy()[run.tokenizer.encode("".join(letters))])
    scatter(right, at, letters, ["#b2182b" if letter in "aeiouy" else "#2166ac" for letter in letters])
    right.set_title("letters of names, MLP", size=10)
    figures.save(figure, out)


def scatter(axes: Any, at: Any, words: list[str], colours: list[str]) -> None:
    """Words at their places; one that would cover another moves up."""
    at = (at - at.min(0)) / (at.max(0) - at.min(0))
    written: list[tuple[float, float, int]] = []
    for i in np.argsort(at[:, 1]):
        (x, y), word = at[i], words[i]
        while any(abs(x - a) < (len(word) + n) * WIDE / 2 and abs(y - b) < HIGH for a, b, n in written):
            y += HIGH / 8
        written.append((x, y, len(word)))
        axes.text(x, y, word, ha="center", va="center", size=9, color=colours[i])
    axes.set(xticks=[], yticks=[], xlim=(-0.1, 1.1), ylim=(-0.1, 1.1))


if __name__ == "__main__":
    figures.run(main)
