"""Texts without translations as pairs: a text with spans of it hidden, and what was hidden.

Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", 2020 (T5): an
encoder and a decoder learn from text alone, to be trained on the pairs that there are few of afterwards. What is hidden
follows from the seed and the text's number.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data import published, reading
from data.errors import UserError
from data.masking import Masking
from data.packed import unpacked_name
from data.pairs.pair import TextPair
from data.sources import DATA_SETS, data_set
from data.tokenizers import N_SPECIALS, Special

MARK = "_"  # in the source for each hidden span; in the target between two of them
RATE, SPAN = 0.3, 2  # of the characters, and characters a span in the middle
WAYS = 4  # in which each training text is hidden
AT_ONCE = 256  # texts


def read_texts(data: str, encoding: str = "utf-8") -> tuple[str, list[TextPair]]:
    """The short name of a text, and each of its lines as a source without a target. Raises UserError, with file and
    line, for one that has MARK in it, for a text that is not there and for one without lines."""
    reading.check_encoding(encoding)
    named = data_set(data)
    if named and DATA_SETS[named] == "series":
        raise UserError(f"{data} is a series of numbers; --spans takes a text")
    files = [Path(path) for path in published.resolve(data).files] if named else [Path(data)]
    if not files[0].is_file():
        raise UserError(f"no such file: {data}; --spans takes a text, of which each line is one, or one by its name")
    texts = []
    for path in files:
        for n, line in reading.numbered_lines(reading.read_chunks([path], encoding)):
            if not (text := line.strip()):
                continue
            if MARK in text:
                raise UserError(f"{path} line {n} has a '{MARK}', which marks what is hidden: take it out")
            texts.append(TextPair(text, "", f"{path} line {n}"))
    if not texts:
        raise UserError(f"{data} has no lines")
    return named or unpacked_name(files[0].resolve()).stem, texts


def hidden(texts: Sequence[TextPair], seed: int, ways: int = 1) -> list[TextPair]:
    """The pairs of these texts, each hidden in so many ways."""
    masking, pairs = Masking(RATE, SPAN, seed, Special(), rows_end=False), []
    for first in range(0, len(texts), AT_ONCE):
        some = texts[first : first + AT_ONCE]
        tokens = np.full((len(some), max(len(each.text) for each in some)), Special().pad)
        for row, each in zip(tokens, some, strict=True):
            row[: len(each.text)] = N_SPECIALS  # any token that may be hidden
        items = np.arange(first, first + len(some))
        masks = [masking.hidden(tokens, items, way) for way in range(ways)]
        pairs += [_pair(each, mask[n]) for n, each in enumerate(some) for mask in masks]
    return pairs


def _pair(text: TextPair, mask: np.ndarray) -> TextPair:
    """The pair of a text whose characters are hidden where `mask` is true."""
    source, target, before = [], [], False
    for character, is_hidden in zip(text.text, mask.tolist(), strict=False):  # the mask goes on over padding
        if is_hidden and not before:
            source.append(MARK)
            target.append(MARK)
        (target if is_hidden else source).append(character)
        before = is_hidden
    return text._replace(text="".join(source), target="".join(target)[len(MARK) :])
