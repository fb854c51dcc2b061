"""Building a token store, in passes over chunks of the text: the first finds the vocabulary, the last writes the ids.

Never more than a chunk of text is held, whatever its size. The vocabulary is that of the training side alone.
"""

import array
import hashlib
import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data import packed, reading, tables, vocabulary
from data.bpe import BPETokenizer, whole_words
from data.documents import occurs, read_documents
from data.errors import UserError
from data.parquet import is_parquet
from data.pieces import Piece, Starts, starts_of
from data.token_file import TokenWriter
from data.tokenizers import AFTER_EOS, Tokenizer

SHOW_PROGRESS = 20 << 20  # bytes of text from which building shows a bar


class Builder:
    """Writes one store of `files` (training text, then perhaps validation text), all but its `meta.json`.

    `digests`: the SHA-256 that each file has to have at every reading. `existing`: a tokenizer to use instead of a new
    one. `val_fraction`: the part of a single text that becomes validation, its end, or rows (lines or documents) by
    their hash. `separator` stands between documents (None: blank lines). Of the `tables` among the files each text of
    `text_column` is a line or document. Where there are any, a stream has `<eos>` after each document, and after each
    other file."""

    def __init__(
        self,
        files: list[list[Path]],
        digests: Mapping[Path, bytes],
        kind: str | None,
        separator: str | None,
        text_column: str | None,
        tokenizer: str,
        encoding: str,
        existing: Tokenizer | None,
        val_fraction: float,
        tables: Collection[Path],
    ):
        assert kind is not None  # known by now
        self.files, self.digests = files, digests
        self.kind, self.separator, self.text_column, self.tables = kind, separator, text_column, tables
        self.tokenizer_name, self.encoding = tokenizer, encoding
        self.existing, self.val_fraction, self.has_val_text = existing, val_fraction, len(files) > 1
        self.notes: list[str] = []
        # For each side: the characters outside the vocabulary with their counts, a hint where their Unicode form is
        # why, and the number of all characters.
        self.unknown: dict[str, dict[str, int]] = {"train": {}, "val": {}}
        self.other_form = {"train": "", "val": ""}
        self.characters = {"train": 0, "val": 0}
        self.c1: set[str] = set()  # control characters that mean another encoding, one of Windows'

    def write(self, folder: Path, name: str) -> dict:
        """Write ids, offsets and tokenizer into `folder`; return their entries of `meta.json`."""
        paths = [path for text in self.files for path in text]
        size = sum(path.stat().st_size for path in paths)
        passes = (2 if self.kind == "stream" else 3) + (
            self.existing is None and vocabulary.reads_words(self.tokenizer_name)
        )
        hidden = size < SHOW_PROGRESS or None
        total = None if any(packed.is_packed(path) or is_parquet(path) for path in paths) else passes * size
        with tqdm(total=total, unit="B", unit_scale=True, desc=f"preparing {name}", disable=hidden) as self.bar:
            meta = self._stream(folder) if self.kind == "stream" else self._rows(folder)
        self._note_unknown()
        self.notes += reading.note_c1(self.c1, "the text", self.encoding)
        return meta | {"notes": self.notes}

    def _stream(self, folder: Path) -> dict:
        first_seen, border = self._survey()
        seen = np.flatnonzero((first_seen >= 0) & (first_seen < border))
        tokenizer = self._make_tokenizer("".join(map(chr, seen)), self._training_text(border))
        counts, position = {"train": 0, "val": 0}, 0
        with TokenWriter(folder, "train") as train, TokenWriter(folder, "val") as val:
            out = {"train": train, "val": val}

            def put(side: str, piece: Piece) -> None:
                ids = self._encode(tokenizer, piece.text, side)
                if piece.ends:
                    ids = np.append(ids, tokenizer.dtype(tokenizer.special.eos))
                counts[side] += len(ids)
                out[side].write(ids)

            for piece in self._words(tokenizer, 0):
                for side, part in zip(("train", "val"), piece.cut(border - position), strict=True):
                    if part.text or part.ends:
                        put(side, part)
                position += len(piece.text)
            for piece in self._words(tokenizer, 1) if self.has_val_text else ():
                put("val", piece)
        for side, split in (("train", "training"), ("val", "validation")):
            if counts[side] < 2 and not (side == "train" and self.val_fraction == 1):
                name = reading.shown(self.files[-1 if side == "val" else 0][0])
                why = f" ({'; '.join(self.notes)})" if self.notes else ""
                raise UserError(
                    f"the {split} text of {name} has {counts[side]} tokens: too short to predict anything{why}"
                )
        return self._finish(folder, tokenizer, counts, self._start(tokenizer, seen))

    def _survey(self) -> tuple[np.ndarray, int]:
        """The position at which each code point first occurs in the training text (-1: nowhere), and the number of
        characters before validation begins: of documents, at the start of one."""
        first_seen, length, blank, starts = np.full(0x110000, -1, np.int64), 0, True, Starts()
        for piece, begins in starts_of(self._pieces(0)):
            if begins:
                starts.add(length)
            codes = np.frombuffer(piece.text.encode("utf-32-le"), np.uint32)
            new = np.flatnonzero(first_seen[codes] < 0)[::-1]
            first_seen[codes[new]] = length + new  # in reverse order, so that the first occurrence is assigned last
            length += len(codes)
            blank = blank and not piece.text.strip()
        if blank:
            raise UserError(f"{reading.shown(self.files[0][0])} {'holds only white space' if length else 'is empty'}")
        border = int(length * (1 - self.val_fraction))
        return first_seen, length if self.has_val_text else starts.at_or_after(border) if self.tables else border

    def _start(self, tokenizer: Tokenizer, seen: np.ndarray) -> str:
        """The text that stands for an empty prompt: a line end where the vocabulary has it, else a character that it
        has. Where documents have ends, an empty prompt stands after one."""
        if self.tables:
            return AFTER_EOS
        for character in ("\n", *map(chr, seen)):
            if (tokenizer.encode(character, "mask") != tokenizer.special.unk).all():
                return character
        return ""

    def _rows(self, folder: Path) -> dict:
        hashes = [_hashes(self._read_rows(index)) for index in range(len(self.files))]
        for text, row_hashes in zip(self.files, hashes, strict=True):
            if not len(row_hashes):
                raise UserError(f"{reading.shown(text[0])} is empty: it has no {self.kind[:-1]} with text")
        is_val = self._split_rows(hashes)
        self._note_repeats(hashes)
        alphabet: set[str] = set()
        for row in self._training_rows(is_val[0]):
            alphabet.update(row)
        tokenizer = self._make_tokenizer("".join(alphabet), (f"{row}\n" for row in self._training_rows(is_val[0])))
        counts = {"train": 0, "val": 0}
        offsets = {"train": array.array("Q", [0]), "val": array.array("Q", [0])}
        with TokenWriter(folder, "train") as train, TokenWriter(folder, "val") as val:
            out = {"train": train, "val": val}
            for index in range(len(self.files)):
                for row, held_out in zip(self._read_rows(index), is_val[index], strict=True):
                    side = "val" if held_out else "train"
                    ids = np.append(self._encode(tokenizer, row, side), tokenizer.dtype(tokenizer.special.eos))
                    out[side].write(ids)
                    counts[side] += len(ids)
                    offsets[side].append(counts[side])
        for side in counts:
            with open(folder / f"{side}.offsets.bin", "wb") as file:
                file.write(offsets[side].tobytes())
        return self._finish(folder, tokenizer, counts, "")

    def _split_rows(self, hashes: list[np.ndarray]) -> list[np.ndarray]:
        """A mask of the validation rows of each text, (rows,) bool."""
        if self.has_val_text:
            return [np.zeros(len(hashes[0]), bool), np.ones(len(hashes[1]), bool)]
        if self.val_fraction == 1:
            return [np.ones(len(hashes[0]), bool)]
        if len(np.unique(hashes[0])) < 2:
            name = reading.shown(self.files[0][0])
            why, way_out = f", and {self.kind} were asked for", "use --kind stream"
            if self.kind == "documents" and self.text_column is None:
                if self.separator is None:
                    way_out += " (or see --separator for what stands between documents)"
                elif not any(occurs(self.separator, self._chunks([path])) for path in self.files[0]):
                    why = f": {self.separator!r} occurs nowhere in it"
            raise UserError(f"{name} has only one distinct {self.kind[:-1]}{why}; {way_out}")
        chosen = hashes[0] < np.uint64(self.val_fraction * 2**64)
        if not chosen.any() or chosen.all():  # a handful of rows: take the one whose hash is smallest
            chosen = hashes[0] == hashes[0].min()
        return [chosen]

    def _read_rows(self, index: int) -> Iterator[str]:
        """The lines or documents of a text; a document ends with its file."""
        return itertools.chain.from_iterable(map(self._rows_of, self.files[index]))

    def _rows_of(self, path: Path) -> Iterator[str]:
        if path in self.tables:
            return self._read_table(path)
        if self.kind == "lines":
            return reading.read_lines(self._chunks([path]))
        return read_documents(self._chunks([path]), self.separator, reading.shown(path))

    def _read_table(self, path: Path) -> Iterator[str]:
        assert self.text_column is not None
        read = tables.read_unstripped if self.kind == "stream" else tables.read_texts
        for n, row in enumerate(read(path, self.text_column, self.encoding, self.digests), 1):
            if self.kind == "lines" and "\n" in row:
                raise UserError(f"text {n:,} of {reading.shown(path)} has several lines; use --kind documents")
            yield row
            self.bar.update(len(row))

    def _chunks(self, files: list[Path]) -> Iterator[str]:
        for chunk in reading.read_chunks(files, self.encoding, self.digests):
            if not chunk.isascii() and reading.may_be_windows(self.encoding):
                self.c1.update(reading.C1.findall(chunk))
            yield chunk
            self.bar.update(len(chunk))

    def _pieces(self, index: int, cut: Callable[[Iterator[str]], Iterator[str]] = iter) -> Iterator[Piece]:
        """A text as pieces of a stream; `cut` cuts what is no document of a table."""
        if not self.tables:
            yield from map(Piece, cut(self._chunks(self.files[index])))
            return
        for path in self.files[index]:
            if path in self.tables:
                yield from (Piece(document, ends=True) for document in self._read_table(path))
            else:
                is_empty = True
                for chunk in cut(self._chunks([path])):
                    is_empty = False
                    yield Piece(chunk)
                if not is_empty:
                    yield Piece("", ends=True)

    def _words(self, tokenizer: Tokenizer, index: int) -> Iterator[Piece]:
        """The pieces of a text; for BPE none ends inside a word."""
        return self._pieces(index, whole_words if isinstance(tokenizer, BPETokenizer) else iter)

    def _training_text(self, border: int) -> Iterator[str]:
        """The characters before `border`, with a line end after each document."""
        position = 0
        for piece in self._pieces(0):
            yield piece.text[: max(border - position, 0)] + "\n" * piece.ends
            position += len(piece.text)

    def _training_rows(self, is_val: np.ndarray) -> Iterator[str]:
        for row, held_out in zip(self._read_rows(0), is_val, strict=True):
            if not held_out:
                yield row

    def _make_tokenizer(self, alphabet: str, training: Iterator[str]) -> Tokenizer:
        """The existing tokenizer, else a new one for the training text."""
        return self.existing or vocabulary.make(self.tokenizer_name, alphabet, training, self.notes.append)

    def _encode(self, tokenizer: Tokenizer, text: str, side: str) -> np.ndarray:
        ids = tokenizer.encode(text, "mask")
        self.characters[side] += len(text)
        if tokenizer.name == "char":
            positions = np.flatnonzero(ids == tokenizer.special.unk)
            for position in positions:
                self.unknown[side][text[position]] = self.unknown[side].get(text[position], 0) + 1
            if self.existing and len(positions) and not self.other_form[side]:
                self.other_form[side] = tokenizer.other_form(text)
        return ids

    def _finish(self, folder: Path, tokenizer: Tokenizer, counts: dict[str, int], start: str) -> dict:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer.to_json()), "utf-8")
        return {"tokens": counts, "start": start}

    def _note_repeats(self, hashes: list[np.ndarray]) -> None:
        repeats = sum(len(rows) - len(np.unique(rows)) for rows in hashes)
        if repeats:
            sides = "" if self.has_val_text or self.val_fraction == 1 else " (all copies on one side of the split)"
            self.notes.append(f"{repeats:,} of {sum(map(len, hashes)):,} {self.kind} are duplicates: kept{sides}")
        if self.has_val_text and (shared := int(np.isin(hashes[1], hashes[0]).sum())):
            self.notes.append(
                f"{shared:,} of {len(hashes[1]):,} validation {self.kind} also stand in the training text"
            )

    def _note_unknown(self) -> None:
        for side, split in (("train", "training"), ("val", "validation")):
            if not (counts := self.unknown[side]):
                continue
            way_out = self.other_form[side] or self._way_out()
            if sum(counts.values()) == self.characters[side]:
                name = reading.shown(self.files[-1 if side == "val" else 0][0])
                raise UserError(f"no character of the {split} text ({name}) is in the vocabulary; {way_out}")
            shown = " ".join(repr(c) for c in sorted(counts)[:8]) + (" ..." if len(counts) > 8 else "")
            problem = "are not in the model's vocabulary" if self.existing else "never occur in the training text"
            self.notes.append(
                f"{sum(counts.values()):,} characters of the {split} text ({len(counts)} distinct: {shown}) {problem}: "
                "not predicted, and not counted in the loss"
                + (f"; {way_out}" if self.other_form[side] or 2 * sum(counts.values()) > self.characters[side] else "")
            )

    def _way_out(self) -> str:
        """The advice for a text of which little is in the vocabulary."""
        if self.existing:
            return "take a text in characters that the model knows, or a model trained with --tokenizer byte"
        return (
            "it is in another script than the training text: give one in the same script with --val-data, or use "
            "--tokenizer byte, which knows every character"
        )


def _hashes(rows: Iterator[str]) -> np.ndarray:
    """A 64-bit hash of each row, (rows,): the same on every machine."""
    hashes = array.array("Q")
    for row in rows:
        digest = hashlib.blake2b(row.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        hashes.append(int.from_bytes(digest, "little"))
    return np.frombuffer(hashes, np.uint64)
