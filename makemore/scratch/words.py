"""The words of a text as numbers, and which of them are names of speakers: what vectors of words are learned from."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data import reading, sources
from data.errors import UserError, nearest, warn
from makemore.scratch.functions import Array

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")  # letters, with apostrophes inside
SPEAKER = re.compile(rf"({WORD.pattern}):")  # a line of its own, after an empty one, as in a play
FEWEST = 20  # words that there have to be: ten are to be nearer than others


@dataclass
class Words:
    """A text as word numbers `tokens` (N,). Word i is `vocabulary[i]` and occurs `counts[i]` times; the most frequent
    is word 0. Words that are rarer than asked for are left out, as if the text did not have them."""

    vocabulary: list[str]
    counts: Array
    tokens: Array
    speakers: Array  # the numbers of the words that name who speaks

    def __post_init__(self) -> None:
        self._number = {word: i for i, word in enumerate(self.vocabulary)}

    def number(self, word: str) -> int:
        """The number of a word in lower case. Raises UserError where the text has not got it often enough."""
        if (found := self._number.get(word.lower())) is None:
            raise UserError(
                f"'{word}' is not among the {len(self.vocabulary):,} words that are learned: the text has it less "
                f"often than --min-count.{nearest(word.lower(), self.vocabulary)}"
            )
        return found

    def __contains__(self, word: str) -> bool:
        return word in self._number


def read_words(data: Sequence[str], min_count: int, encoding: str = "utf-8") -> Words:
    """The words of the texts that `--data` names, in lower case, that occur at least `min_count` times. Raises
    UserError for a text that cannot be read or has too few of them."""
    if data.count("-") > 1:
        raise UserError("only one text can be standard input, among all of --data")
    number: dict[str, int] = {}
    found, speakers = [], set()
    for name in data:
        for line, speaker in _lines(name, encoding):
            if speaker:
                speakers.add(speaker.lower())
            found.append([number.setdefault(word, len(number)) for word in WORD.findall(line.lower())])
    tokens = np.array([n for line in found for n in line], np.int32)
    counts = np.bincount(tokens, minlength=len(number))
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] >= min_count]
    if len(order) < FEWEST:
        raise UserError(
            f"{' '.join(data)} has {len(order):,} words that occur at least {min_count} times, and {FEWEST} are the "
            f"fewest that vectors can be learned of: give more text, or a smaller --min-count"
        )
    renumbered = np.full(len(number), -1, np.int32)
    renumbered[order] = np.arange(len(order))
    tokens = renumbered[tokens]
    words = list(number)
    vocabulary = [words[i] for i in order]
    named = [i for i, word in enumerate(vocabulary) if word in speakers]
    return Words(vocabulary, counts[order], tokens[tokens >= 0], np.array(named, np.int64))


def _lines(name: str, encoding: str) -> Iterator[tuple[str, str]]:
    """The lines of a text, and the speaker that a line announces, else ''."""
    text = sources.resolve(name)
    try:
        files, skipped = reading.text_files(text, encoding)
        for note in reading.left_out(text, skipped, encoding):
            warn(note)
        before = ""
        for _, line in reading.numbered_lines(reading.read_chunks(files, encoding)):
            announced = None if before.strip() else SPEAKER.fullmatch(line.strip())
            yield line, announced[1] if announced else ""
            before = line
    finally:
        if text.temporary:
            text.files[0].unlink(missing_ok=True)
