"""The store of a text: found in the cache, or built now. Also `python -m data.prepare`.

A text is cached under a hash of its bytes and of how it was read, so that it is prepared once.
"""

import argparse
import hashlib
import json
import os
import secrets
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from data import cache, reading, sources, store
from data.build import Builder
from data.disk import sync_folder
from data.errors import UserError, run_command, warn
from data.locks import hold
from data.tokenizers import N_SPECIALS, Tokenizer
from data.vocabulary import check_name

VAL_FRACTION = 0.1
KINDS = ("stream", "lines")


def prepare(
    data: str,
    *,
    val_data: str | None = None,
    kind: str | None = None,
    tokenizer: str = "char",
    encoding: str = "utf-8",
    vocabulary: Tokenizer | None = None,
    extend: bool = False,
    val_fraction: float = VAL_FRACTION,
) -> store.Store:
    """The store of a text, from the cache or made now.

    `kind` 'stream' or 'lines' (None: as the source says); `tokenizer` 'char', 'byte', 'bpe:N' or 'gpt2'; `vocabulary`
    takes an existing tokenizer instead of making one (a trained model's), and `extend` adds to a character one what the
    training text has besides; `val_fraction` 1 makes all of it validation text.
    Raises UserError for whatever is wrong with the text."""
    check_name(tokenizer)
    reading.check_encoding(encoding)
    if data == val_data == "-":
        raise UserError("--data and --val-data cannot both be standard input")
    texts: list[sources.Text] = []
    try:
        for name in (data,) if val_data is None else (data, val_data):
            texts.append(sources.resolve(name))
        how = (kind or texts[0].kind, tokenizer, encoding)
        if extend:  # a store of the text by itself knows the characters of its training side
            vocabulary = vocabulary.extended(_prepare(texts, *how, None, val_fraction).tokenizer.alphabet)
        return _prepare(texts, *how, vocabulary, val_fraction)
    finally:
        for text in texts:
            if text.temporary:
                text.files[0].unlink(missing_ok=True)


def read_notes(notes: list[str]) -> None:
    """Print what preparing noticed, a warning each."""
    for note in notes:
        warn(note)


def key_of(
    data: str, *, val_data: str | None, kind: str, tokenizer: str, encoding: str, vocabulary: Tokenizer | None
) -> str:
    """The key that the store of this text has, or would have."""
    texts = [sources.resolve(name) for name in (data, val_data) if name is not None]
    return _recipe(texts, kind, tokenizer, encoding, vocabulary, VAL_FRACTION).key


class Recipe(NamedTuple):
    """What a store is made from, and its name: the files of each text, the SHA-256 of each file, a hash of all that and
    of how it is read, and notes on what was left out of a folder."""

    files: list[list[Path]]
    digests: dict[Path, bytes]
    key: str
    left_out: list[str]


def _recipe(
    texts: list[sources.Text],
    kind: str,
    tokenizer: str,
    encoding: str,
    vocabulary: Tokenizer | None,
    val_fraction: float,
) -> Recipe:
    if kind not in KINDS:
        raise UserError(f"unknown kind '{kind}'; there are: {', '.join(KINDS)}")
    files, left_out = [], []
    for text in texts:
        readable, skipped = reading.text_files(text, encoding)
        files.append(readable)
        left_out += reading.left_out(text, skipped, encoding)
    made_by = json.dumps(vocabulary.to_json()) if vocabulary else tokenizer
    key, digests = _key(files, f"{store.FORMAT} {kind} {made_by} {encoding} {val_fraction}", encoding)
    return Recipe(files, digests, key, left_out)


def _prepare(
    texts: list[sources.Text],
    kind: str,
    tokenizer: str,
    encoding: str,
    vocabulary: Tokenizer | None,
    val_fraction: float,
) -> store.Store:
    files, digests, key, left_out = _recipe(texts, kind, tokenizer, encoding, vocabulary, val_fraction)
    name = texts[0].name
    folder = sources.cache_folder() / "prepared" / f"{name[:40]}-{key}"
    found = open_or_discard(folder)
    if found is None:
        lock = sources.cache_subfolder("prepared") / f"{folder.name}.lock"
        with hold(lock, f"the prepared text {folder}", wait=True):
            if not (folder / "meta.json").is_file():  # another process may have been faster
                _build(folder, Builder(files, digests, kind, tokenizer, encoding, vocabulary, val_fraction), key, name)
        found = store.open_store(folder)
    # What was left out of a folder is no part of the text, so neither of what is cached.
    found.meta["notes"] = left_out + found.meta["notes"]
    return found


def open_or_discard(folder: Path) -> store.Store | None:
    """The store in `folder`; None where there is none. One that is damaged is removed, with a warning."""
    if not (folder / "meta.json").is_file():
        return None
    try:
        return store.open_store(folder)
    except store.Damaged as damage:
        aside = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.part")
        try:
            os.replace(folder, aside)
        except OSError:  # not ours to remove
            raise damage from None
        shutil.rmtree(aside, ignore_errors=True)
        warn(f"the prepared text in {folder} is damaged ({damage.__cause__}); preparing it again")
        return None


def _build(folder: Path, builder: Builder, key: str, name: str) -> None:
    """Build beside `folder` and move there once whole."""
    part = sources.cache_subfolder("prepared") / f"{folder.name}.{secrets.token_hex(4)}.part"
    part.mkdir()
    try:
        meta = builder.write(part, name) | {"key": key, "kind": builder.kind, "name": name}
        store.seal(part, meta)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _key(files: list[list[Path]], how: str, encoding: str) -> tuple[str, dict[Path, bytes]]:
    """A hash of the bytes of every file, of where texts and files begin, and of how they are read; and the SHA-256 of
    every file, which is to stay the same in all that is read of it."""
    sha, digests = hashlib.sha256(how.encode()), {}
    for text in files:
        sha.update(b"text")
        for path in text:
            digests[path], has_lone_returns = reading.fingerprint(path, encoding)
            sha.update(digests[path])
            sha.update(b"lone returns" if has_lone_returns else b"")
    return sha.hexdigest()[:16], digests


def _cleared(names: list[str]) -> str:
    """Free the cache; what there is to say of it."""
    removed, left = cache.clear(names)
    for entry in left:
        warn(f"{entry.path} was written to within a day and may still be: left")
    return f"freed {cache.in_words(sum(entry.size for entry in removed))} ({len(removed):,} removed)"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m data.prepare", description="Prepare a text ahead of training.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", help="a data set by name, a text file, a folder, or -")
    what.add_argument("--list", action="store_true", help="show what is prepared and downloaded")
    what.add_argument("--clear", nargs="*", metavar="NAME", help="free it all, or what has these names")
    parser.add_argument("--val-data", help="the validation text (default: a tenth of --data)")
    parser.add_argument("--kind", choices=KINDS, help="default: as the source says, else stream")
    parser.add_argument("--tokenizer", default="char", help="char, byte, bpe:N or gpt2")
    parser.add_argument("--encoding", default="utf-8")
    options = vars(parser.parse_args())
    show, names = options.pop("list"), options.pop("clear")
    if show or names is not None:
        if given := [name for name, value in options.items() if value != parser.get_default(name)]:
            parser.error(f"--{given[0].replace('_', '-')} goes with --data")
        print(cache.listing() if show else _cleared(names))
        return 0
    made = prepare(**options)
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
