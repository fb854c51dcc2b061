"""The novelty of samples: whether a line (or document) is in the training text, and the longest copied substring.

Both need the prepared text, from the cache; a run directory has none."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.bpe import BPETokenizer
from data.errors import UserError
from data.program import command
from data.sources import cache_folder
from data.store import Split, Store, open_store
from data.token_file import TokenFile
from data.tokenizers import N_SPECIALS, CharTokenizer, Tokenizer
from engine.run.folder import read_facts
from engine.run.run import Run
from engine.run.samples import Sample

CHUNK = 1 << 17  # ids that are looked at together: their hashes stay in a core's cache
BASE = 0x9E3779B97F4A7C15  # of the polynomial hashes, modulo 2^64; odd
INVERSE = pow(BASE, -1, 1 << 64)
TABLE_BITS = 18  # of the table that rules out most windows of the text
EXTENDED = 64  # equal windows that are extended at a time


class Novelty:
    """The novelty of a run's samples; unknown where its training text is no longer in the cache."""

    def __init__(self, run: Run):
        self.run, self.store = run, prepared_text(run.folder)

    @functools.cached_property
    def lines(self) -> "KnownLines":
        assert self.store is not None  # `check`, or who asks, saw to it
        return KnownLines(self.store.train)

    def check(self) -> None:
        """Raise UserError where it is unknown whether a line or document is new."""
        if not self.run.is_lines:
            raise UserError("--only-new is for runs on lines or documents: a stream has none that could be new")
        if self.run.template is not None:
            raise UserError("--only-new is for runs on lines or documents; this one was trained on conversations")
        if self.store is None:
            raise UserError(
                f"--only-new needs the prepared training text of {self.run.folder}, which the cache has no more; "
                f"prepare it again: {command('prepare')} with the run's --data, --kind and --tokenizer"
            )

    def is_known(self, line: str) -> bool:
        """Whether the training text has this line, or document."""
        return self.lines.has(self.run.tokenizer.encode(line, "mask"))

    def of(self, sample: Sample) -> dict[str, Any]:
        """The novelty of a sample, for its JSON: whether its line is in the training text, or for a stream the length
        of the longest copied substring of its new text; None where unknown."""
        if self.run.is_lines:
            return {"in_train": None if self.store is None else self.is_known(sample.text)}
        return {"longest_copied": None if self.store is None else longest_copied(sample.new, self.store)}


def prepared_text(folder: Path) -> Store | None:
    """The training text of the run in `folder`; None where the cache no longer has it, or has another one."""
    try:
        data: dict[str, Any] = read_facts(folder)["data"]
        path = cache_folder() / "prepared" / data["folder"]
        if not data["folder"] or not (path / "meta.json").is_file():
            return None
        store = open_store(path)
    except UserError:  # GPT-2's folder, or a damaged text
        return None
    return store if store.key == data["key"] else None


class KnownLines:
    """A set of the lines of one side of a prepared text, in 16 bytes each."""

    def __init__(self, split: Split):
        assert split.offsets is not None  # there are lines
        self.split, self.offsets = split, split.offsets
        starts, ends = self.offsets[:-1], self.offsets[1:] - 1  # without <eos>
        hashes = np.empty(len(starts), np.uint64)
        start = 0
        while start < len(starts):
            end = max(start + 1, int(np.searchsorted(ends, starts[start] + CHUNK)))
            ids = split.tokens.slice(starts[start], ends[end - 1])
            hashes[start:end] = _line_hashes(ids, starts[start:end] - starts[start], ends[start:end] - starts[start])
            start = end
        self.order = np.argsort(hashes, kind="stable")
        self.hashes = hashes[self.order]

    def has(self, ids: Sequence[int] | np.ndarray) -> bool:
        """Whether a line has exactly these ids."""
        line = np.asarray(ids, self.split.tokens.dtype)
        (hashed,) = _line_hashes(line, np.zeros(1, np.int64), np.array([len(line)]))
        first, last = np.searchsorted(self.hashes, hashed), np.searchsorted(self.hashes, hashed, "right")
        lines = ((self.offsets[i], self.offsets[i + 1] - 1) for i in self.order[first:last])
        return any(np.array_equal(self.split.tokens.slice(start, end), line) for start, end in lines)


def _line_hashes(ids: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """A hash of each of the lines from `starts` to `ends` of `ids`, (lines,): a polynomial of its ids."""
    sums = np.zeros(len(ids) + 1, np.uint64)
    np.cumsum((ids.astype(np.uint64) + np.uint64(1)) * _powers(BASE, len(ids)), out=sums[1:])
    return (sums[ends] - sums[starts]) * _powers(INVERSE, len(ids) + 1)[starts]


def _powers(base: int, count: int) -> np.ndarray:
    """The powers base^0, base^1, ... modulo 2^64, (count,)."""
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    return np.cumprod(powers)


def longest_copied(text: str, store: Store) -> int:
    """The number of characters of the longest common substring of `text` and the training text, a stream. Takes linear
    time and memory; a chunk of the training text is held at a time."""
    if isinstance(store.tokenizer, CharTokenizer):
        return _longest_run(store.tokenizer.encode(text, "mask"), _ids(store.train.tokens))[1]
    sample = np.frombuffer(text.encode("utf-8", "replace"), np.uint8)
    first, length = _longest_run(sample, _bytes(store.train.tokens, store.tokenizer))
    return len(sample[first : first + length].tobytes().decode("utf-8", "ignore"))


def _ids(tokens: TokenFile) -> Iterator[np.ndarray]:
    for start in range(0, len(tokens), CHUNK):
        yield tokens.slice(start, start + CHUNK)


def _bytes(tokens: TokenFile, tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """The UTF-8 of the training text, for tokens of one or more bytes."""
    if not isinstance(tokenizer, BPETokenizer):
        yield from ((ids - N_SPECIALS).astype(np.uint8) for ids in _ids(tokens))
        return
    texts = dict(enumerate(tokenizer.tokens, tokenizer.first_id))
    for ids in _ids(tokens):
        # No text has the byte FF: what is copied does not go on after <eos>.
        yield np.frombuffer(b"".join(texts.get(i, b"\xff") for i in ids.tolist()), np.uint8)


def _longest_run(sample: np.ndarray, chunks: Iterable[np.ndarray]) -> tuple[int, int]:
    """The start and length of the longest substring of `sample` that occurs in the concatenated chunks.

    In each chunk only windows longer than the longest match so far are looked up, by their hashes, and matches are
    compared symbol by symbol."""
    first = length = 0
    overlap = sample[:0]
    for chunk in chunks:
        text = np.concatenate([overlap, chunk])
        while length < min(len(sample), len(text)):
            matches = _common(sample, text, length + 1)
            if not matches:
                break
            first, length = max(((q, _run_length(sample[q:], text[p:])) for q, p in matches), key=lambda run: run[1])
        overlap = text[max(0, len(text) - len(sample) + 1) :]
    return first, length


def _common(sample: np.ndarray, text: np.ndarray, length: int) -> list[tuple[int, int]]:
    """Some pairs of positions in `sample` and `text` at which equal windows of `length` begin; empty only if there are
    none."""
    hashes = _window_hashes(sample, length)
    order = np.argsort(hashes, kind="stable")
    table = np.zeros(1 << TABLE_BITS, bool)
    shift = np.uint64(64 - TABLE_BITS)
    table[hashes >> shift] = True
    text_hashes = _window_hashes(text, length)
    candidates = np.flatnonzero(table[text_hashes >> shift])
    nearest = np.searchsorted(hashes[order], text_hashes[candidates]).clip(max=len(order) - 1)
    equal = hashes[order][nearest] == text_hashes[candidates]
    pairs = zip(order[nearest[equal]][:EXTENDED].tolist(), candidates[equal][:EXTENDED].tolist(), strict=True)
    return [(q, p) for q, p in pairs if np.array_equal(sample[q : q + length], text[p : p + length])]


def _window_hashes(symbols: np.ndarray, length: int) -> np.ndarray:
    """A hash of every window of `length` symbols, (len(symbols) - length + 1,), by doubling."""
    symbols = symbols.astype(np.uint64) + np.uint64(1)
    hashes, width = symbols, 1
    for bit in f"{length:b}"[1:]:
        hashes = hashes[:-width] * np.uint64(pow(BASE, width, 1 << 64)) + hashes[width:]
        width *= 2
        if bit == "1":
            hashes = hashes[:-1] * np.uint64(BASE) + symbols[width:]
            width += 1
    return hashes


def _run_length(a: np.ndarray, b: np.ndarray) -> int:
    """The length of the longest common prefix."""
    size = min(len(a), len(b))
    differs = a[:size] != b[:size]
    return int(differs.argmax()) if differs.any() else size
