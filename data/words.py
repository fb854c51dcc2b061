"""Cutting text into pieces that are tokenized by themselves: at the edges of words as GPT-2's pattern finds them."""

import functools
from collections.abc import Iterable, Iterator

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Characters that begin a word in every text: white space after something else, and of ASCII's letters, digits and other
# characters one of another kind than that before it (beyond ASCII, what a letter is depends on the version of Unicode);
# but not a letter after an apostrophe: both may be of a word like "'s".
_EDGES = (
    r"(?<=\S)\s",
    r"(?<=[a-zA-Z])[!-~--[a-zA-Z]]",
    r"(?<=[0-9])[!-~--[0-9]]",
    r"(?<=[!-~--[a-zA-Z0-9']])[a-zA-Z0-9]",
)
MAX_PIECE = 1 << 22  # characters: the merging of one word takes up to 160 bytes a character
LONG_BLANK = 1 << 16  # characters: on runs of a million, tiktoken's regular expressions run out of stack


def split(text: str) -> list[str]:
    """The words of GPT-2's pattern, in order: together they are the text."""
    return _compiled(GPT2_PATTERN).findall(text)


def whole_words(chunks: Iterable[str]) -> Iterator[str]:
    """The same text in pieces of at most MAX_PIECE characters that no word of GPT-2's pattern crosses, so that each may
    be encoded by itself. A word longer than that is cut, at the same places however the text came in chunks."""
    held, length = [], 0
    for chunk in chunks:
        held.append(chunk)
        length += len(chunk)
        if length <= MAX_PIECE:
            continue
        text, start = "".join(held), 0
        while length - start > MAX_PIECE:
            # The start of a word that is too long is always found as the last edge, wherever the piece before began.
            edge = _last_edge().search(text[start : start + MAX_PIECE])
            end = start + (edge.start() if edge else MAX_PIECE)
            yield text[start:end]
            start = end
        held, length = [text[start:]], length - start
    if length:
        yield "".join(held)


def long_blanks(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of every word that is a run of at least LONG_BLANK characters of white space: of a run that other
    text follows, all but the last character, which may belong to the next word."""
    for run in _compiled(rf"(?<!\s)\s{{{LONG_BLANK},}}+").finditer(text) if len(text) >= LONG_BLANK else ():
        yield run.start(), run.end() - (run.end() < len(text))


def _last_edge():
    return _compiled(f"(?rV1){'|'.join(_EDGES)}")


@functools.cache
def _compiled(pattern: str):
    import regex

    return regex.compile(pattern)
