"""Cutting text into words by GPT-2's pattern, each of which is tokenized by itself."""

import functools
from collections.abc import Iterable, Iterator

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Characters that begin a word in every text: white space after something else, and an ASCII letter, digit or other
# character after one of another of these kinds (beyond ASCII, the kind depends on the version of Unicode); except for
# a letter after an apostrophe, since both may belong to a word like "'s".
_EDGES = (
    r"(?<=\S)\s",
    r"(?<=[a-zA-Z])[!-~--[a-zA-Z]]",
    r"(?<=[0-9])[!-~--[0-9]]",
    r"(?<=[!-~--[a-zA-Z0-9']])[a-zA-Z0-9]",
)
MAX_PIECE = 1 << 22  # characters: the merging of one word takes up to 160 bytes a character
LONG_BLANK = 1 << 16  # characters: on runs of a million, tiktoken's regular expressions run out of stack


def split(text: str) -> list[str]:
    """The words of `text` by GPT-2's pattern, in order; joined they are the text."""
    return _compiled(GPT2_PATTERN).findall(text)


def whole_words(chunks: Iterable[str]) -> Iterator[str]:
    """The text in pieces of at most MAX_PIECE characters that end at the end of a word of GPT-2's pattern, so that each
    may be encoded by itself. A longer word is cut, at positions that do not depend on the chunks."""
    buffer, length = [], 0
    for chunk in chunks:
        buffer.append(chunk)
        length += len(chunk)
        if length <= MAX_PIECE:
            continue
        text, start = "".join(buffer), 0
        while length - start > MAX_PIECE:
            # The start of a word that is too long is always found as the last edge, wherever the previous piece began.
            edge = _last_edge().search(text[start : start + MAX_PIECE])
            end = start + (edge.start() if edge else MAX_PIECE)
            yield text[start:end]
            start = end
        buffer, length = [text[start:]], length - start
    if length:
        yield "".join(buffer)


def long_blanks(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of every run of at least LONG_BLANK characters of white space. The last character of a run that
    other text follows is left out: it may belong to the next word."""
    for run in _compiled(rf"(?<!\s)\s{{{LONG_BLANK},}}+").finditer(text) if len(text) >= LONG_BLANK else ():
        yield run.start(), run.end() - (run.end() < len(text))


def _last_edge():
    return _compiled(f"(?rV1){'|'.join(_EDGES)}")


@functools.cache
def _compiled(pattern: str):
    import regex

    return regex.compile(pattern)
