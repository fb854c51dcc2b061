"""Building a token store, in passes over the text: the first finds the vocabulary, the last writes the ids.

Never more than some chunks of text are held, whatever its size. The vocabulary is that of the training side alone.
"""

import contextlib
import itertools
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data import reading, vocabulary
from data.bpe import BPETokenizer, whole_words
from data.documents import occurs
from data.encoded import EncodedText
from data.errors import UserError
from data.journal import EVERY, LARGE, Journal
from data.passes import Passes
from data.pieces import Starts, starts_of
from data.pool import Pool
from data.sampling import sampled
from data.tasks import Encoder, Part, Survey, alphabet, grouped, hashes
from data.tokenizers import AFTER_EOS, Tokenizer


class Builder:
    """Writes one store of `files` (training text, then perhaps validation text), all but its `meta.json`.

    `existing`: a tokenizer to use instead of a new one. `val_fraction`: the part of a single text that becomes
    validation, its end, or rows (lines or documents) by their hash. `bpe_sample`: the characters of the training text
    that BPE is learned from (None: all). The rest as of `Passes`."""

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
        bpe_sample: int | None,
        tables: Collection[Path],
    ):
        assert kind is not None  # known by now
        self.text = Passes(files, digests, kind, separator, text_column, encoding, tables)
        self.files, self.kind, self.separator, self.text_column = files, kind, separator, text_column
        self.tokenizer_name, self.encoding, self.existing = tokenizer, encoding, existing
        self.val_fraction, self.bpe_sample, self.has_val_text = val_fraction, bpe_sample, len(files) > 1
        self.notes: list[str] = []
        self.is_learned = existing is None and vocabulary.reads_words(tokenizer)
        # Whether the characters of the rows are to be found, or counted.
        self.surveys_rows = existing is None and (tokenizer == "char" or bpe_sample is not None)

    def write(self, folder: Path, name: str, pool: Pool) -> dict[str, Any]:
        """Write ids, offsets and tokenizer into `folder`, and return their entries of `meta.json`; where the folder has
        what a preparation left that was killed, go on with that."""
        self.pool, self.journal = pool, Journal(folder, self.text.size >= LARGE)
        passes = 2 + self.is_learned + (self.kind != "stream" and self.surveys_rows)
        if "meta" not in self.journal.noted:
            with self.text.show(name, passes):
                meta = self._stream(folder) if self.kind == "stream" else self._rows(folder)
            self.notes += reading.note_c1(self.text.c1, "the text", self.encoding)
            self.journal.note(meta=meta | {"notes": self.notes})
            return meta | {"notes": self.notes}
        return self.journal.noted["meta"]

    def _stream(self, folder: Path) -> dict[str, Any]:
        if "survey" not in self.journal.noted:
            self.journal.note(survey=self._survey())
        characters, border = self.journal.noted["survey"]
        tokenizer = self._tokenizer(characters, self._training_text(border), border)
        encoded = self._encode(folder, tokenizer, self._stream_parts(tokenizer, border))
        for side, split in (("train", "training"), ("val", "validation")):
            if encoded.ids[side] < 2 and not (side == "train" and self.val_fraction == 1):
                name = reading.shown(self.files[-1 if side == "val" else 0][0])
                why = f" ({'; '.join(self.notes)})" if self.notes else ""
                raise UserError(
                    f"the {split} text of {name} has {encoded.ids[side]} tokens: too short to predict anything{why}"
                )
        self._note_unknown(encoded)
        return {"tokens": encoded.ids, "start": self._start(tokenizer, characters)}

    def _survey(self) -> tuple[str, int]:
        """The distinct characters of the training side, and the number of characters before validation begins: of
        documents, at the start of one."""
        first_seen, length, blank, starts = np.full(0x110000, -1, np.int64), 0, True, Starts()

        def texts() -> Iterator[str]:
            read = 0
            for piece, begins in starts_of(self.text.pieces(0)):
                if begins:
                    starts.add(read)
                read += len(piece.text)
                yield piece.text

        for codes, positions, count, is_blank in self.pool.map(Survey(), grouped(texts(), len)):
            new = first_seen[codes] < 0  # another process may have met it in an earlier group
            first_seen[codes[new]] = length + positions[new]
            length += count
            blank = blank and is_blank
        if blank:
            raise UserError(f"{reading.shown(self.files[0][0])} {'holds only white space' if length else 'is empty'}")
        if self.separator is not None and len(starts) < 2 and self.val_fraction < 1 and not self._separator_occurs():
            name = reading.shown(self.files[0][0])
            raise UserError(f"{self.separator!r} occurs nowhere in {name}; leave out --separator")
        border = int(length * (1 - self.val_fraction))
        border = length if self.has_val_text else starts.at_or_after(border) if self.text.has_ends else border
        return "".join(map(chr, np.flatnonzero((first_seen >= 0) & (first_seen < border)))), border

    def _start(self, tokenizer: Tokenizer, characters: str) -> str:
        """The text that stands for an empty prompt: a line end where the vocabulary has it, else a character that it
        has. Where documents have ends, an empty prompt stands after one."""
        if self.text.has_ends:
            return AFTER_EOS
        for character in ("\n", *characters):
            if (tokenizer.encode(character, "mask") != tokenizer.special.unk).all():
                return character
        return ""

    def _rows(self, folder: Path) -> dict[str, Any]:
        row_hashes = self.journal.arrays("hashes")
        if row_hashes is None:
            row_hashes = [self._hashes(index) for index in range(len(self.files))]
            self.journal.note_arrays("hashes", row_hashes)
        for text, of_text in zip(self.files, row_hashes, strict=True):
            if not len(of_text):
                raise UserError(f"{reading.shown(text[0])} is empty: it has no {self.kind[:-1]} with text")
        is_val = self._split_rows(row_hashes)
        self._note_repeats(row_hashes)
        if "survey" not in self.journal.noted:
            self.journal.note(survey=self._survey_rows(is_val[0]) if self.surveys_rows else ("", 0))
        characters, count = self.journal.noted["survey"]
        lines = (f"{row}\n" for row in self._training_rows(is_val[0]))
        tokenizer = self._tokenizer(characters, lines, count)
        encoded = self._encode(folder, tokenizer, self._row_parts(is_val))
        self._note_unknown(encoded)
        return {"tokens": encoded.ids, "start": ""}

    def _hashes(self, index: int) -> np.ndarray:
        """A hash of each row of a text, (rows,)."""
        found = self.pool.map(hashes, grouped(self.text.rows(index), len))
        return np.concatenate([np.zeros(0, np.uint64), *found])

    def _survey_rows(self, is_val: np.ndarray) -> tuple[str, int]:
        """The distinct characters of the training rows, and their number with a line end after each."""
        distinct: set[str] = set()
        count = 0
        for characters, of_group in self.pool.map(alphabet, grouped(self._training_rows(is_val), len)):
            distinct.update(characters)
            count += of_group
        return "".join(sorted(distinct)), count

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
                elif not self._separator_occurs():
                    why = f": {self.separator!r} occurs nowhere in it"
            raise UserError(f"{name} has only one distinct {self.kind[:-1]}{why}; {way_out}")
        chosen = hashes[0] < np.uint64(self.val_fraction * 2**64)
        if not chosen.any() or chosen.all():  # a handful of rows: take the one whose hash is smallest
            chosen = hashes[0] == hashes[0].min()
        return [chosen]

    def _separator_occurs(self) -> bool:
        """Whether the separator stands in the plain text of the training side, if only at an end of it."""
        assert self.separator is not None
        plain = [path for path in self.files[0] if path not in self.text.tables]
        return any(occurs(self.separator, self.text.chunks([path])) for path in plain)

    def _stream_parts(self, tokenizer: Tokenizer, border: int) -> Iterator[Part]:
        """A stream in parts of one side each; for BPE none ends inside a word."""
        cut = whole_words if isinstance(tokenizer, BPETokenizer) else iter
        position = 0
        for piece in self.text.pieces(0, cut):
            for side, part in zip(("train", "val"), piece.cut(border - position), strict=True):
                if part.text or part.ends:
                    yield part.text, part.ends, side
            position += len(piece.text)
        for piece in self.text.pieces(1, cut) if self.has_val_text else ():
            yield piece.text, piece.ends, "val"

    def _row_parts(self, is_val: list[np.ndarray]) -> Iterator[Part]:
        for index, held_out in enumerate(is_val):
            for row, is_held_out in zip(self.text.rows(index), held_out, strict=True):
                yield row, True, "val" if is_held_out else "train"

    def _training_text(self, border: int) -> Iterator[str]:
        """The characters before `border`, with a line end after each document."""
        position = 0
        for piece in self.text.pieces(0):
            part, _ = piece.cut(border - position)
            yield part.text + "\n" * part.ends
            position += len(piece.text)

    def _training_rows(self, is_val: np.ndarray) -> Iterator[str]:
        for row, held_out in zip(self.text.rows(0), is_val, strict=True):
            if not held_out:
                yield row

    def _tokenizer(self, characters: str, training: Iterator[str], count: int) -> Tokenizer:
        """The existing tokenizer, else a new one for the training text of these distinct `characters`, which is
        `count` long."""
        if "tokenizer" not in self.journal.noted:
            texts = training if self.bpe_sample is None else sampled(training, count, self.bpe_sample)
            new = self.existing or vocabulary.make(
                self.tokenizer_name, characters, texts, self.notes.append, self.pool.map
            )
            self.journal.note(tokenizer=new.to_json(), notes=self.notes)
            return new
        self.notes = self.journal.noted["notes"]
        return vocabulary.from_json(self.journal.noted["tokenizer"])

    def _encode(self, folder: Path, tokenizer: Tokenizer, parts: Iterator[Part]) -> EncodedText:
        """Write the ids of all parts; the files are closed."""
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer.to_json()), "utf-8")
        done, out = self._begun(folder, tokenizer.dtype)
        groups = itertools.islice(grouped(parts, lambda part: len(part[0])), done, None)
        with out:
            noted = sum(out.characters.values())
            for encoded in self.pool.map(Encoder(tokenizer, self.existing is not None), groups):
                out.put(encoded)
                done += 1
                if self.journal.is_kept and sum(out.characters.values()) >= noted + EVERY:
                    self.journal.note(encoded=(done, out.state()))
                    noted = sum(out.characters.values())
        return out

    def _begun(self, folder: Path, dtype: Any) -> tuple[int, EncodedText]:
        """The number of groups that are encoded already, and what there is of them."""
        has_rows = self.kind != "stream"
        if "encoded" in self.journal.noted:
            done, state = self.journal.noted["encoded"]
            with contextlib.suppress(OSError, ValueError):  # its files are not those: from the beginning
                return done, EncodedText(folder, dtype, has_rows, state)
        return 0, EncodedText(folder, dtype, has_rows)

    def _note_repeats(self, hashes: list[np.ndarray]) -> None:
        repeats = sum(len(rows) - len(np.unique(rows)) for rows in hashes)
        if repeats:
            sides = "" if self.has_val_text or self.val_fraction == 1 else " (all copies on one side of the split)"
            self.notes.append(f"{repeats:,} of {sum(map(len, hashes)):,} {self.kind} are duplicates: kept{sides}")
        if self.has_val_text and (shared := int(np.isin(hashes[1], hashes[0]).sum())):
            self.notes.append(
                f"{shared:,} of {len(hashes[1]):,} validation {self.kind} also stand in the training text"
            )

    def _note_unknown(self, text: EncodedText) -> None:
        for side, split in (("train", "training"), ("val", "validation")):
            if not (counts := text.unknown[side]):
                continue
            way_out = text.other_form[side] or self._way_out()
            if sum(counts.values()) == text.characters[side]:
                name = reading.shown(self.files[-1 if side == "val" else 0][0])
                raise UserError(f"no character of the {split} text ({name}) is in the vocabulary; {way_out}")
            shown = " ".join(repr(c) for c in sorted(counts)[:8]) + (" ..." if len(counts) > 8 else "")
            problem = "are not in the model's vocabulary" if self.existing else "never occur in the training text"
            self.notes.append(
                f"{sum(counts.values()):,} characters of the {split} text ({len(counts)} distinct: {shown}) {problem}: "
                "not predicted, and not counted in the loss"
                + (f"; {way_out}" if text.other_form[side] or 2 * sum(counts.values()) > text.characters[side] else "")
            )

    def _way_out(self) -> str:
        """The advice for a text of which little is in the vocabulary."""
        if self.existing:
            return "take a text in characters that the model knows, or a model trained with --tokenizer byte"
        return (
            "it is in another script than the training text: give one in the same script with --val-data, or use "
            "--tokenizer byte, which knows every character"
        )
