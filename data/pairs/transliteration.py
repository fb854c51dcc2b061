"""Made-up words in Latin letters, to be written in Cyrillic: rules that look at more than one letter.

Several letters make one (`shch`: щ), and what stands before decides others: `e` begins a word as э and is е elsewhere,
`y` after a vowel is й and elsewhere ы. A word is on one side of the split by its hash.
"""

import hashlib
import random

from data.pairs.pair import TextPair

SIZES = {"train": 20_000, "val": 500, "test": 500}
MOST_SYLLABLES = 5
BEGINNINGS = (
    "", "b", "v", "g", "d", "zh", "z", "k", "l", "m", "n", "p", "r", "s", "t", "f", "kh", "ts", "ch", "sh", "shch",
    "st", "tr", "kr", "pl",
)  # fmt: skip
VOWELS = ("a", "e", "i", "o", "u", "y", "ya", "yu", "yo")
ENDS = ("", "", "", "n", "r", "s", "t", "k", "l", "m", "y")
RULES = {
    "shch": "щ", "zh": "ж", "kh": "х", "ts": "ц", "ch": "ч", "sh": "ш", "ya": "я", "yu": "ю", "yo": "ё",
    "a": "а", "b": "б", "v": "в", "g": "г", "d": "д", "e": "е", "z": "з", "i": "и", "k": "к", "l": "л", "m": "м",
    "n": "н", "o": "о", "p": "п", "r": "р", "s": "с", "t": "т", "u": "у", "f": "ф", "h": "х", "y": "ы",
}  # fmt: skip


def make(seed: int) -> dict[str, list[TextPair]]:
    """The pairs of each side. The same for the same seed, on every machine."""
    return {side: _of_side(side, size, random.Random(f"{seed} {side}")) for side, size in SIZES.items()}


def transliterated(word: str) -> str:
    """The word in Cyrillic: at each place the longest of the RULES that fits."""
    written, place = "", 0
    while place < len(word):
        part = next(word[place : place + n] for n in (4, 2, 1) if word[place : place + n] in RULES)
        letter = RULES[part]
        if part == "e" and not place:
            letter = "э"
        elif part == "y" and word[place - 1 : place] in tuple("aeiou"):
            letter = "й"
        written, place = written + letter, place + len(part)
    return written


def _of_side(side: str, size: int, rng: random.Random) -> list[TextPair]:
    pairs: list[TextPair] = []
    while len(pairs) < size:
        syllables = rng.randint(1, MOST_SYLLABLES)
        word = "".join(rng.choice(part) for _ in range(syllables) for part in (BEGINNINGS, VOWELS, ENDS))
        if _side_of(word) == side:
            pairs.append(TextPair(word, transliterated(word), f"{side} {len(pairs)}"))
    return pairs


def _side_of(word: str) -> str:
    """One word in 20 each for validation and test."""
    number = hashlib.blake2b(word.encode(), digest_size=8).digest()[0] % 20
    return {0: "val", 1: "test"}.get(number, "train")
