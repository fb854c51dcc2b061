"""What of a sample is new: which lines (or documents) training has, and the longest run of characters copied from it.

Both need the prepared text, from the cache; a run directory alone has none."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.bpe import BPETokenizer
from data.errors import UserError
from data.sources import cache_folder
from data.store import Split, Store, TokenFile, open_store
from data.tokenizers import N_SPECIALS, CharTokenizer, Tokenizer
from engine.run.folder import read_facts
from engine.run.run import Run
from engine.run.samples import Sample

CHUNK = 1 << 17  # ids that are looked at together: their hashes stay in a core's cache
BASE = 0x9E3779B97F4A7C15  # of the polynomial hashes, modulo 2^64; odd
INVERSE = pow(BASE, -1, 1 << 64)
TABLE_BITS = 18  # of the table that tells most windows which the sample does not have
EXTENDED = 64  # equal windows that are followed to their ends at a time


class Novelty:
    """What of a run's samples stands in its training text; unknown where the cache has that no more."""

    def __init__(self, run: Run):
        self.run, self.store = run, prepared_text(run.folder)

    @functools.cached_property
    def lines(self) -> "KnownLines":
        return KnownLines(self.store.train)

    def check(self) -> None:
        """Raise UserError where a line or a document cannot be told to be new."""
        if not self.run.is_lines:
            raise UserError("--only-new is for runs on lines or documents: a stream has none that could be new")
        if self.run.template is not None:
            raise UserError("--only-new is for runs on lines or documents; this one was trained on conversations")
        if self.store is None:
            raise UserError(
                f"--only-new needs the prepared training text of {self.run.folder}, which the cache has no more; "
                f"prepare it again: python -m data.prepare with the run's --data, --kind and --tokenizer"
            )

    def is_known(self, line: str) -> bool:
        """Whether the training text has that line, or that document."""
        return self.lines.has(self.run.tokenizer.encode(line, "mask"))

    def of(self, sample: Sample) -> dict[str, Any]:
        """What JSON says of a sample, None for what is unknown: whether its line is known, or of a stream the longest
        run of new characters that was copied."""
        if self.run.is_lines:
            return {"in_train": None if self.store is None else self.is_known(sample.text)}
        return {"longest_copied": None if self.store is None else longest_copied(sample.new, self.store)}


def prepared_text(folder: Path) -> Store | None:
    """The training text of the run in `folder`, where the cache has it still, and the same."""
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
    """The lines of one side of a prepared text, to be asked for: 16 bytes each."""

    def __init__(self, split: Split):
        self.split = split
        starts, ends = split.offsets[:-1], split.offsets[1:] - 1  # without <eos>
        hashes = np.empty(len(starts), np.uint64)
        first = 0
        while first < len(starts):
            last = max(first + 1, int(np.searchsorted(ends, starts[first] + CHUNK)))
            ids = split.tokens.array()[starts[first] : ends[last - 1]]
            hashes[first:last] = _line_hashes(ids, starts[first:last] - starts[first], ends[first:last] - starts[first])
            first = last
        self.order = np.argsort(hashes, kind="stable")
        self.hashes = hashes[self.order]

    def has(self, ids: Sequence[int]) -> bool:
        """Whether a line has exactly these ids."""
        wanted = np.asarray(ids, self.split.tokens.dtype)
        (hashed,) = _line_hashes(wanted, np.zeros(1, np.int64), np.array([len(wanted)]))
        first, last = np.searchsorted(self.hashes, hashed), np.searchsorted(self.hashes, hashed, "right")
        text = self.split.tokens.array()
        lines = ((self.split.offsets[i], self.split.offsets[i + 1] - 1) for i in self.order[first:last])
        return any(np.array_equal(text[start:end], wanted) for start, end in lines)


def _line_hashes(ids: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """A hash of each of the lines that begin and end there, (lines,): the polynomial of its ids."""
    sums = np.zeros(len(ids) + 1, np.uint64)
    np.cumsum((ids.astype(np.uint64) + np.uint64(1)) * _powers(BASE, len(ids)), out=sums[1:])
    return (sums[ends] - sums[starts]) * _powers(INVERSE, len(ids) + 1)[starts]


def _powers(base: int, count: int) -> np.ndarray:
    """base^0, base^1, ..., modulo 2^64."""
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    return np.cumprod(powers)


def longest_copied(text: str, store: Store) -> int:
    """How many characters the longest run has that stands both in `text` and in the training text, a stream. Time and
    memory are linear in both; of the training text a chunk at a time is held."""
    if isinstance(store.tokenizer, CharTokenizer):
        return _longest_run(store.tokenizer.encode(text, "mask"), _ids(store.train.tokens))[1]
    sample = np.frombuffer(text.encode("utf-8", "replace"), np.uint8)
    first, length = _longest_run(sample, _bytes(store.train.tokens, store.tokenizer))
    return len(sample[first : first + length].tobytes().decode("utf-8", "ignore"))


def _ids(tokens: TokenFile) -> Iterator[np.ndarray]:
    for start in range(0, len(tokens), CHUNK):
        yield tokens.array()[start : start + CHUNK]


def _bytes(tokens: TokenFile, tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """The training text's UTF-8, of tokens that are bytes or runs of them."""
    if not isinstance(tokenizer, BPETokenizer):
        yield from ((ids - N_SPECIALS).astype(np.uint8) for ids in _ids(tokens))
        return
    texts = dict(enumerate(tokenizer.tokens, tokenizer.first_id))
    for ids in _ids(tokens):
        yield np.frombuffer(b"".join(texts.get(i, b"") for i in ids.tolist()), np.uint8)


def _longest_run(sample: np.ndarray, chunks: Iterable[np.ndarray]) -> tuple[int, int]:
    """Where in `sample` its longest run begins that stands in the chunks laid end to end, and how long it is.

    Of each chunk only windows longer than the longest run so far are looked up, by their hashes, and what is found is
    compared symbol by symbol."""
    first = length = 0
    before = sample[:0]
    for chunk in chunks:
        text = np.concatenate([before, chunk])
        while length < min(len(sample), len(text)):
            found = _common(sample, text, length + 1)
            if not found:
                break
            first, length = max(((q, _run_length(sample[q:], text[p:])) for q, p in found), key=lambda run: run[1])
        before = text[max(0, len(text) - len(sample) + 1) :]
    return first, length


def _common(sample: np.ndarray, text: np.ndarray, length: int) -> list[tuple[int, int]]:
    """Some places in `sample` and `text` where the same window of that length begins; none only if there are none."""
    hashes = _window_hashes(sample, length)
    order = np.argsort(hashes, kind="stable")
    table = np.zeros(1 << TABLE_BITS, bool)
    shift = np.uint64(64 - TABLE_BITS)
    table[hashes >> shift] = True
    wanted = _window_hashes(text, length)
    places = np.flatnonzero(table[wanted >> shift])
    nearest = np.searchsorted(hashes[order], wanted[places]).clip(max=len(order) - 1)
    known = hashes[order][nearest] == wanted[places]
    found = zip(order[nearest[known]][:EXTENDED].tolist(), places[known][:EXTENDED].tolist(), strict=True)
    return [(q, p) for q, p in found if np.array_equal(sample[q : q + length], text[p : p + length])]


def _window_hashes(symbols: np.ndarray, length: int) -> np.ndarray:
    """A hash of every window of that length, by doubling: (len(symbols) - length + 1,)."""
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
    """How many symbols both begin with alike."""
    size = min(len(a), len(b))
    differs = a[:size] != b[:size]
    return int(differs.argmax()) if differs.any() else size
