"""Random letters, to be written backwards: what one vector of fixed size cannot hold when there are many.

A string is on one side of the split by its hash. The pairs are counted by length.
"""

import hashlib
import random
import string

from data.pairs.pair import TextPair

MIN_LENGTH, MAX_LENGTH = 3, 24
SIZES = {"train": 20_000, "val": 500, "test": 500}
GROUPS = ((8, "3 to 8 letters"), (14, "9 to 14 letters"), (19, "15 to 19 letters"), (MAX_LENGTH, "20 to 24 letters"))


def make(seed: int) -> dict[str, list[TextPair]]:
    """The pairs of each side. The same for the same seed, on every machine."""
    return {side: _of_side(side, size, random.Random(f"{seed} {side}")) for side, size in SIZES.items()}


def _of_side(side: str, size: int, rng: random.Random) -> list[TextPair]:
    pairs: list[TextPair] = []
    while len(pairs) < size:
        text = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(MIN_LENGTH, MAX_LENGTH)))
        if _side_of(text) == side:
            group = next(name for longest, name in GROUPS if len(text) <= longest)
            pairs.append(TextPair(text, text[::-1], f"{side} {len(pairs)}", group))
    return pairs


def _side_of(text: str) -> str:
    """One string in 20 each for validation and test; of a string and its reverse both on one side."""
    number = hashlib.blake2b(min(text, text[::-1]).encode(), digest_size=8).digest()[0] % 20
    return {0: "val", 1: "test"}.get(number, "train")
