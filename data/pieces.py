"""A stream in pieces: chunks of plain text, and documents of tables, each with `<eos>` after it; where it is cut."""

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

MOST_STARTS = 1 << 20  # positions that are held: of more documents only every second, fourth, ... is


class Piece(NamedTuple):
    """Some text of a stream, and whether a document ends with it."""

    text: str
    ends: bool = False

    def cut(self, at: int) -> tuple["Piece", "Piece"]:
        """The parts before and after the first `at` characters, which may be none or all. The end belongs to the part
        with the last character; of a piece without characters that is the first part where `at` is 0."""
        is_before = at >= len(self.text)
        at = max(at, 0)
        return Piece(self.text[:at], self.ends and is_before), Piece(self.text[at:], self.ends and not is_before)


class Starts:
    """The positions at which documents begin, as many as fit into memory, evenly spread."""

    def __init__(self) -> None:
        self._starts, self._stride, self._count, self._last = array("Q"), 1, 0, 0

    def add(self, position: int) -> None:
        """Take the start of the next document."""
        self._last = position
        if self._count % self._stride == 0:
            self._starts.append(position)
            if len(self._starts) == MOST_STARTS:
                del self._starts[1::2]
                self._stride *= 2
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def at_or_after(self, position: int) -> int:
        """The first start that is not before `position`, else the last start; `position` itself where there is but one
        document."""
        if self._count < 2:
            return position
        index = bisect_left(self._starts, position)
        return self._starts[index] if index < len(self._starts) else self._last


def starts_of(pieces: Iterator[Piece]) -> Iterator[tuple[Piece, bool]]:
    """The pieces, each with whether a document begins with it."""
    begins = True
    for piece in pieces:
        yield piece, begins
        begins = piece.ends
