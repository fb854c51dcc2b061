"""Texts one character away from a text: replaced, left out, put in."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Change(NamedTuple):
    """One character: `new` instead of the `old` at `place`, each perhaps empty; and the `text` that it gives."""

    place: int
    old: str
    new: str
    text: str

    def __str__(self) -> str:
        if not self.old:
            return f"{self.new!r} put in at {self.place}"
        return f"{self.old!r} at {self.place} " + (f"to {self.new!r}" if self.new else "left out")


def left_out(text: str) -> Iterator[Change]:
    """Each character left out, of equal neighbours the first."""
    for place, old in enumerate(text):
        if not place or text[place - 1] != old:
            yield Change(place, old, "", text[:place] + text[place + 1 :])


def changes_at(text: str, places: Sequence[int], alphabet: Sequence[str]) -> Iterator[Change]:
    """Each character of `alphabet` instead of the one at each of `places`, and before it; a place at the end of the
    text has only the latter."""
    for place in places:
        old, before, after = text[place : place + 1], text[:place], text[place + 1 :]
        for new in alphabet:
            if old and new != old:
                yield Change(place, old, new, before + new + after)
            yield Change(place, "", new, before + new + old + after)
