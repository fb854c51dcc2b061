"""How close translations are to the wanted ones: exact match, character error rate, chrF."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

NGRAMS = 6  # of characters, in chrF
BETA = 2  # how much more recall counts there than precision


def scores(answers: Sequence[str], wanted: Sequence[str]) -> dict[str, Any]:
    """`exact_match`, `character_error_rate` and `chrf` of all of them together, and how many `examples` there are."""
    right = sum(answer == target for answer, target in zip(answers, wanted, strict=True))
    return {
        "exact_match": right / max(1, len(wanted)),
        "character_error_rate": character_error_rate(answers, wanted),
        "chrf": chrf(answers, wanted),
        "examples": len(wanted),
    }


def character_error_rate(answers: Sequence[str], wanted: Sequence[str]) -> float:
    """The characters to insert, delete and replace, by the number of wanted ones. It may be above 1."""
    edits = sum(edit_distance(answer, target) for answer, target in zip(answers, wanted, strict=True))
    return edits / max(1, sum(map(len, wanted)))


def edit_distance(one: str, other: str) -> int:
    """The fewest characters to insert, delete and replace that make `other` of `one` (Levenshtein 1966)."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def chrf(answers: Sequence[str], wanted: Sequence[str]) -> float:
    """The chrF of a corpus, 0 to 100 (Popovic, "chrF: character n-gram F-score for automatic MT evaluation", 2015):
    the F-score, recall counted twice, of the 1- to 6-grams of characters without white space; the mean over the orders
    that both sides have. It is sacrebleu's, with its defaults and one reference each."""
    total = [Counter[str]() for _ in range(NGRAMS)]
    for answer, target in zip(answers, wanted, strict=True):
        for n, counts in enumerate(total, 1):
            said, there = _ngrams(answer, n), _ngrams(target, n)
            counts["said"] += (
                said.total() if there else 0
            )  # as sacrebleu: a short reference says nothing of long n-grams
            counts["there"] += there.total()
            counts["both"] += (said & there).total()
    found = [counts for counts in total if counts["said"] and counts["there"]]
    if not found:
        return 0.0
    precision = sum(counts["both"] / counts["said"] for counts in found) / len(found)
    recall = sum(counts["both"] / counts["there"] for counts in found) / len(found)
    if not precision + recall:
        return 0.0
    return 100 * (1 + BETA**2) * precision * recall / (BETA**2 * precision + recall)


def _ngrams(text: str, n: int) -> Counter[str]:
    text = "".join(text.split())
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))
