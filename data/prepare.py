"""Text into a token store, in two passes over chunks: what is in it, then its ids. Also `python -m data.prepare`.

A prepared text is cached under a hash of its bytes and of how it was read, so that it is prepared once.
"""

import argparse
import array
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data import reading, sources, store
from data.errors import UserError, run_command, warn
from data.tokenizers import EOS, N_SPECIALS, UNK, ByteTokenizer, CharTokenizer, Tokenizer, check_name

VAL_FRACTION = 0.1
SHOW_PROGRESS = 20 << 20  # bytes of text from which preparing shows a bar
_KINDS = ("stream", "lines")


def prepare(
    data: str,
    *,
    val_data: str | None = None,
    kind: str | None = None,
    tokenizer: str = "char",
    encoding: str = "utf-8",
    vocabulary: Tokenizer | None = None,
) -> store.Store:
    """The store of a text, from the cache or made now.

    `kind` 'stream' or 'lines' (None: as the source says); `tokenizer` 'char' or 'byte'; `vocabulary` takes an existing
    tokenizer instead of making one (a trained model's). Raises UserError for whatever is wrong with the text.
    """
    check_name(tokenizer)
    reading.check_encoding(encoding)
    texts = [sources.resolve(data)] + ([sources.resolve(val_data)] if val_data is not None else [])
    try:
        return _prepare(texts, kind or texts[0].kind, tokenizer, encoding, vocabulary)
    finally:
        for text in texts:
            if text.temporary:
                text.files[0].unlink(missing_ok=True)


def read_notes(notes: list[str]) -> None:
    """Print what preparing noticed, a warning each."""
    for note in notes:
        warn(note)


def _prepare(
    texts: list[sources.Text], kind: str, tokenizer: str, encoding: str, vocabulary: Tokenizer | None
) -> store.Store:
    if kind not in _KINDS:
        raise UserError(f"unknown kind '{kind}'; there are: {', '.join(_KINDS)}")
    files, notes = [], []
    for text in texts:
        readable, skipped = reading.text_files(text, encoding)
        files.append(readable)
        if skipped and text.folder:
            notes.append(f"{skipped} of the {len(text.files)} files in {text.folder} are not {encoding} text: left out")
    made_by = json.dumps(vocabulary.to_json()) if vocabulary else tokenizer
    key = _key(files, f"{store.FORMAT} {kind} {made_by} {encoding} {VAL_FRACTION}")
    folder = sources.cache_folder() / "prepared" / f"{texts[0].name[:40]}-{key}"
    if not (folder / "meta.json").is_file():
        build = _Builder(files, kind, tokenizer, encoding, vocabulary)
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
        try:
            part.mkdir()
            meta = build.write(part, texts[0].name)
            meta |= {"key": key, "kind": kind, "name": texts[0].name, "notes": notes + meta["notes"]}
            (part / "meta.json").write_text(json.dumps(meta, indent=1), "utf-8")
            if not folder.exists():  # another process may have been faster
                os.replace(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return store.open_store(folder)


def _key(files: list[list[Path]], how: str) -> str:
    """A hash of the bytes of every file, of where texts and files begin, and of how they are read."""
    digest = hashlib.sha256(how.encode())
    for text in files:
        digest.update(b"text")
        for path in text:
            try:
                with open(path, "rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            except OSError as error:
                raise UserError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()[:16]


class _Builder:
    """Writes one store. Both kinds survey the text first: the vocabulary is that of the training side alone."""

    def __init__(self, files: list[list[Path]], kind: str, tokenizer: str, encoding: str, vocabulary: Tokenizer | None):
        self.files, self.kind, self.encoding = files, kind, encoding
        self.make: Callable[[str], Tokenizer] = lambda alphabet: (
            vocabulary or (ByteTokenizer() if tokenizer == "byte" else CharTokenizer(alphabet))
        )
        self.size = sum(path.stat().st_size for text in files for path in text)
        self.notes: list[str] = []
        self.unseen: dict[str, int] = {}  # characters of the validation text outside the vocabulary, with counts

    def write(self, folder: Path, name: str) -> dict:
        """Write all but `meta.json` into `folder`; return what that is to hold."""
        passes = 2 if self.kind == "stream" else 3
        self.bar = tqdm(
            total=passes * self.size, unit="B", unit_scale=True, desc=f"preparing {name}",
            disable=self.size < SHOW_PROGRESS or None,
        )  # fmt: skip
        with self.bar:
            meta = self._stream(folder) if self.kind == "stream" else self._lines(folder)
        if self.unseen:
            shown = " ".join(repr(c) for c in sorted(self.unseen)[:8]) + (" ..." if len(self.unseen) > 8 else "")
            self.notes.append(
                f"{sum(self.unseen.values()):,} characters of the validation text ({len(self.unseen)} distinct: "
                f"{shown}) never occur in the training text: masked in evaluation"
            )
        return meta | {"notes": self.notes}

    def _chunks(self, text: int) -> Iterator[str]:
        for chunk in reading.read_chunks(self.files[text], self.encoding):
            yield chunk
            self.bar.update(len(chunk))

    def _encode(self, tokenizer: Tokenizer, text: str) -> np.ndarray:
        ids = tokenizer.encode(text, "mask")
        if tokenizer.name == "char" and (ids == UNK).any():
            for position in np.flatnonzero(ids == UNK):
                self.unseen[text[position]] = self.unseen.get(text[position], 0) + 1
        return ids

    def _finish(self, folder: Path, tokenizer: Tokenizer, counts: dict[str, int], start: str) -> dict:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer.to_json()), "utf-8")
        return {"tokens": counts, "start": start}

    def _stream(self, folder: Path) -> dict:
        first_seen, length, blank = np.full(0x110000, -1, np.int64), 0, True
        for chunk in self._chunks(0):
            codes = np.frombuffer(chunk.encode("utf-32-le"), np.uint32)
            for code in np.flatnonzero(np.bincount(codes[first_seen[codes] < 0])):
                first_seen[code] = length + int((codes == code).argmax())
            length += len(codes)
            blank = blank and not chunk.strip()
        if blank:
            raise UserError(
                f"{self.files[0][0]} is empty" if not length else f"{self.files[0][0]} holds only white space"
            )
        separate = len(self.files) > 1
        border = length if separate else int(length * (1 - VAL_FRACTION))
        seen = np.flatnonzero((first_seen >= 0) & (first_seen < border))
        tokenizer = self.make("".join(map(chr, seen)))
        counts, position = {"train": 0, "val": 0}, 0
        with open(folder / "train.bin", "wb") as train, open(folder / "val.bin", "wb") as val:
            out = {"train": train, "val": val}

            def put(side: str, text: str) -> None:
                ids = self._encode(tokenizer, text)
                counts[side] += len(ids)
                ids.tofile(out[side])

            for chunk in self._chunks(0):
                cut = min(max(border - position, 0), len(chunk))
                put("train", chunk[:cut])
                put("val", chunk[cut:])
                position += len(chunk)
            for chunk in self._chunks(1) if separate else ():
                put("val", chunk)
        if counts["val"] < 2 or counts["train"] < 2:
            side, name = ("val", "validation") if counts["val"] < 2 else ("train", "training")
            raise UserError(f"the {name} text has {counts[side]} tokens: too short to predict anything")
        return self._finish(folder, tokenizer, counts, "\n" if first_seen[ord("\n")] >= 0 else chr(seen[0]))

    def _lines(self, folder: Path) -> dict:
        separate = len(self.files) > 1
        hashes = [_hashes(reading.read_lines(self._chunks(text))) for text in range(len(self.files))]
        if not len(hashes[0]):
            raise UserError(f"{self.files[0][0]} has no line with text")
        if separate:
            if not len(hashes[1]):
                raise UserError(f"{self.files[1][0]} has no line with text")
            is_val = [np.zeros(len(hashes[0]), bool), np.ones(len(hashes[1]), bool)]
        else:
            if len(np.unique(hashes[0])) < 2:
                raise UserError(
                    f"{self.files[0][0]} has only one distinct line, and lines were asked for; use --kind stream"
                )
            is_val = [_val_rows(hashes[0])]
        self._count_repeats(hashes, separate)
        alphabet: set[str] = set()
        for line, held_out in zip(reading.read_lines(self._chunks(0)), is_val[0], strict=True):
            if not held_out:
                alphabet.update(line)
        tokenizer = self.make("".join(alphabet))
        counts = {"train": 0, "val": 0}
        offsets = {"train": array.array("Q", [0]), "val": array.array("Q", [0])}
        with open(folder / "train.bin", "wb") as train, open(folder / "val.bin", "wb") as val:
            out = {"train": train, "val": val}
            for text in range(len(self.files)):
                for line, held_out in zip(reading.read_lines(self._chunks(text)), is_val[text], strict=True):
                    side = "val" if held_out else "train"
                    row = np.append(self._encode(tokenizer, line), tokenizer.dtype(EOS))
                    out[side].write(row.tobytes())
                    counts[side] += len(row)
                    offsets[side].append(counts[side])
        for side in counts:
            with open(folder / f"{side}.offsets.bin", "wb") as file:
                offsets[side].tofile(file)
        return self._finish(folder, tokenizer, counts, "")

    def _count_repeats(self, hashes: list[np.ndarray], separate: bool) -> None:
        repeats = sum(len(rows) - len(np.unique(rows)) for rows in hashes)
        if repeats:
            both = " (both copies on one side of the split)" if not separate else ""
            self.notes.append(f"{repeats:,} of {sum(map(len, hashes)):,} lines are duplicates: kept{both}")
        if separate and (shared := int(np.isin(hashes[1], hashes[0]).sum())):
            self.notes.append(f"{shared:,} of {len(hashes[1]):,} validation lines also stand in the training text")


def _hashes(lines: Iterator[str]) -> np.ndarray:
    """A 64-bit hash of each line, shape (lines,): equal lines, equal hashes, on every machine."""
    found = array.array("Q")
    for line in lines:
        digest = hashlib.blake2b(line.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        found.append(int.from_bytes(digest, "little"))
    return np.frombuffer(found, np.uint64)


def _val_rows(hashes: np.ndarray) -> np.ndarray:
    """Which rows are validation: a tenth of all hashes, and the largest one where a small text has none in it."""
    chosen = hashes % np.uint64(10) == 0
    if not chosen.any() or chosen.all():
        chosen = hashes == hashes.max()
    return chosen


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m data.prepare", description="Prepare a text ahead of training.")
    parser.add_argument("--data", required=True, help="a data set by name, a text file, a folder, or -")
    parser.add_argument("--val-data", help="the validation text (default: a tenth of --data)")
    parser.add_argument("--kind", choices=_KINDS, help="default: as the source says, else stream")
    parser.add_argument("--tokenizer", default="char", help="char or byte")
    parser.add_argument("--encoding", default="utf-8")
    args = parser.parse_args()
    made = prepare(**vars(args))
    read_notes(made.meta["notes"])
    for side in ("train", "val"):
        split = getattr(made, side)
        rows = "" if split.offsets is None else f" in {len(split.offsets) - 1:,} lines"
        print(f"{side}: {len(split.tokens):,} tokens{rows}")
    print(f"vocabulary: {made.tokenizer.vocab_size - N_SPECIALS:,} and {N_SPECIALS} specials")
    print(f"prepared in {made.folder}; train.py finds it there by the text's content")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
