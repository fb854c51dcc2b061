"""What is done to each part of a text while it is prepared, in this process or in those of a pool.

Each is called with a group of texts of a few million characters, and is pickled once for each process.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from data import vocabulary
from data.tokenizers import Tokenizer

GROUP = 1 << 18  # characters from which a group is complete ...
MANY = 1 << 16  # ... and texts
Text = TypeVar("Text")


def grouped(texts: Iterable[Text], length: Callable[[Text], int]) -> Iterator[list[Text]]:
    """The texts in groups, each of GROUP characters or a little more, or of MANY texts."""
    group: list[Text] = []
    size = 0
    for text in texts:
        group.append(text)
        size += length(text)
        if size >= GROUP or len(group) == MANY:
            yield group
            group, size = [], 0
    if group:
        yield group


class Survey:
    """Finds the code points of a text that earlier groups did not have, as far as they came to this object."""

    def __init__(self) -> None:
        self._seen: np.ndarray | None = None

    def __call__(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray, int, bool]:
        """The new code points, the position in the joined texts at which each first occurs, the number of characters,
        and whether all of them are white space."""
        if self._seen is None:
            self._seen = np.zeros(0x110000, bool)
        text = texts[0] if len(texts) == 1 else "".join(texts)
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        new = np.flatnonzero(~self._seen[codes])
        found, first = np.unique(codes[new], return_index=True)
        self._seen[found] = True
        return found, new[first], len(text), not text.strip()


def hashes(rows: list[str]) -> np.ndarray:
    """A 64-bit hash of each row, (rows,): the same on every machine."""
    digests = (hashlib.blake2b(row.encode("utf-8", "surrogatepass"), digest_size=8).digest() for row in rows)
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def alphabet(rows: list[str]) -> tuple[str, int]:
    """The distinct characters of the rows, and the number of all with a line end after each row."""
    text = "".join(rows)
    return "".join(set(text)), len(text) + len(rows)


Part = tuple[str, bool, str]  # a text to encode, whether `<eos>` follows it, and its side of the split


class Encoded(NamedTuple):
    """The ids of the parts of one side, laid end to end. `lengths` (parts,): ids of each. `unknown`: the characters
    outside the vocabulary with their counts; `other_form`: a hint where their Unicode form is why."""

    ids: np.ndarray
    lengths: np.ndarray
    characters: int
    unknown: dict[str, int]
    other_form: str


@dataclass
class Encoder:
    """Encodes parts with `tokenizer`. `is_existing`: it was not made for this text, so that its Unicode form may be
    why characters are unknown."""

    tokenizer: Tokenizer
    is_existing: bool

    def __reduce__(self) -> tuple[Any, ...]:
        return _encoder, (self.tokenizer.to_json(), self.is_existing)

    def __call__(self, parts: list[Part]) -> dict[str, Encoded]:
        """What there is of each side."""
        sides: dict[str, list[Part]] = {}
        for part in parts:
            sides.setdefault(part[2], []).append(part)
        return {side: self._encode(of_side) for side, of_side in sides.items()}

    def _encode(self, parts: list[Part]) -> Encoded:
        unknown: dict[str, int] = {}
        other_form, pieces, characters = "", [], 0
        end = np.full(1, self.tokenizer.special.eos, self.tokenizer.dtype)
        for text, ends, _ in parts:
            ids = self.tokenizer.encode(text, "mask")
            characters += len(text)
            if self.tokenizer.name == "char":
                positions = np.flatnonzero(ids == self.tokenizer.special.unk)
                for position in positions:
                    unknown[text[position]] = unknown.get(text[position], 0) + 1
                if self.is_existing and len(positions) and not other_form:
                    other_form = self.tokenizer.other_form(text)
            pieces.append(np.append(ids, end) if ends else ids)
        lengths = np.array([len(piece) for piece in pieces], np.int64)
        return Encoded(np.concatenate(pieces), lengths, characters, unknown, other_form)


def _encoder(tokenizer: Any, is_existing: bool) -> Encoder:
    return Encoder(vocabulary.from_json(tokenizer), is_existing)
