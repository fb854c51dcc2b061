"""The store of a text: found in the cache, or built now. Also `python -m data.prepare`.

A text is cached under a hash of its bytes and of how it was read, so that it is prepared once.
"""

import argparse
import contextlib
import glob
import hashlib
import json
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data import cache, reading, sources, store, tables
from data.build import Builder
from data.disk import naming, rename, sync_folder
from data.documents import unescaped
from data.errors import UserError, run_command, warn
from data.locks import hold
from data.tokenizers import N_SPECIALS, CharTokenizer, Tokenizer
from data.vocabulary import check_name

VAL_FRACTION = 0.1
KINDS = ("stream", "lines", "documents")


class How(NamedTuple):
    """How a text is read."""

    kind: str | None
    separator: str | None
    text_column: str | None
    tokenizer: str
    encoding: str
    vocabulary: Tokenizer | None
    val_fraction: float


class Recipe(NamedTuple):
    """What a store is made from: the files of each side, the SHA-256 of each file, how they are read, the name, a hash
    of all that, and notes on what was left out."""

    files: list[list[Path]]
    digests: dict[Path, bytes]
    how: How
    name: str
    key: str
    notes: list[str]


def prepare(
    data: str | Sequence[str],
    *,
    val_data: str | Sequence[str] | None = None,
    kind: str | None = None,
    separator: str | None = None,
    text_column: str | None = None,
    tokenizer: str = "char",
    encoding: str = "utf-8",
    vocabulary: Tokenizer | None = None,
    extend: bool = False,
    val_fraction: float = VAL_FRACTION,
) -> store.Store:
    """The store of a text, from the cache or made now. Several `data` are one text, in their order.

    `kind` 'stream', 'lines' or 'documents' (None: as the source says); `separator` what stands between documents (None:
    blank lines); `text_column` makes a line, or a document, of that column of each row of tables; `tokenizer` 'char',
    'byte', 'bpe:N' or 'gpt2'; `vocabulary` takes an existing tokenizer instead of making one (a trained model's), and
    `extend` adds to a character one what the training text has besides; `val_fraction` 1 makes all of it validation
    text.
    Raises UserError for whatever is wrong with the text."""
    check_name(tokenizer)
    reading.check_encoding(encoding)
    how = How(kind, separator, text_column, tokenizer, encoding, vocabulary, val_fraction)
    with _resolved(data, val_data) as texts:
        if extend:  # a store of the text by itself knows the characters of its training side
            plain = _prepare(texts, how._replace(vocabulary=None))
            assert isinstance(vocabulary, CharTokenizer) and isinstance(plain.tokenizer, CharTokenizer)
            how = how._replace(vocabulary=vocabulary.extended(plain.tokenizer.alphabet))
        return _prepare(texts, how)


def key_of(
    data: str | Sequence[str], *, val_data: str | Sequence[str] | None, val_fraction: float = VAL_FRACTION, **how: Any
) -> str:
    """The key that the store of this text has, or would have. Options as of `prepare`, all of them."""
    reading.check_encoding(how["encoding"])
    with _resolved(data, val_data) as texts:
        return _recipe(texts, How(**how, val_fraction=val_fraction)).key


def read_notes(notes: list[str]) -> None:
    """Print what preparing noticed, a warning each."""
    for note in notes:
        warn(note)


@contextlib.contextmanager
def _resolved(data: str | Sequence[str], val_data: str | Sequence[str] | None) -> Iterator[list[list[sources.Text]]]:
    """The texts of both sides, as long as the context lasts: standard input is spooled to a file."""
    names = [[side] if isinstance(side, str) else list(side) for side in (data, val_data) if side is not None]
    if sum(names, []).count("-") > 1:
        raise UserError("only one text can be standard input, among all of --data and --val-data")
    texts: list[list[sources.Text]] = []
    try:
        for side in names:
            texts.append([])
            for name in side:
                texts[-1].append(sources.resolve(name))
        yield texts
    finally:
        for text in sum(texts, []):
            if text.temporary:
                text.files[0].unlink(missing_ok=True)


def _kind_of(texts: list[sources.Text]) -> str:
    """How texts are read when nothing else is said. UserError where they differ in it."""
    if other := [text for text in texts if text.kind != texts[0].kind]:
        raise UserError(
            f"{texts[0].name} is read as {texts[0].kind}, {other[0].name} as {other[0].kind}: say how with --kind"
        )
    return texts[0].kind


def _recipe(texts: list[list[sources.Text]], how: How) -> Recipe:
    how = _settled(how, texts)
    files: list[list[Path]] = []
    notes: list[str] = []
    for side in texts:
        files.append([])
        for text in side:
            readable, skipped = reading.text_files(text, how.encoding)
            notes += reading.left_out(text, skipped, how.encoding)
            if how.text_column is not None:
                readable, others = tables.only_tables(text.folder, readable)
                notes += reading.left_out(text, others, "tables")
            files[-1] += readable
    if how.text_column is None:
        notes += tables.note_tables(list(dict.fromkeys(sum(files, []))), how.encoding)
    if how.kind is None:
        assert how.text_column is not None
        several = tables.has_line_ends(sum(files, []), how.text_column, how.encoding)
        how = how._replace(kind="documents" if several else "lines")
    assert how.kind is not None
    made_by = json.dumps(how.vocabulary.to_json()) if how.vocabulary else how.tokenizer
    read_as = how.kind if how.separator is None else f"{how.kind} {how.separator!r}"
    read_as += "" if how.text_column is None else f" column {how.text_column!r}"
    words = f"{store.FORMAT} {read_as} {made_by} {how.encoding} {how.val_fraction}"
    key, digests = _key(files, words, how.encoding)
    name = texts[0][0].name + (f"-and-{len(texts[0]) - 1}-more" if len(texts[0]) > 1 else "")
    return Recipe(files, digests, how, name, key, notes)


def _settled(how: How, texts: list[list[sources.Text]]) -> How:
    """With the kind that the texts have by themselves, but where only the rows of a table tell. Raises UserError for
    what does not go together."""
    kind, separator = how.kind, how.separator
    if kind is None and how.text_column is None:
        kind = _kind_of(texts[0])
    if kind not in (*KINDS, None):
        raise UserError(f"unknown kind '{kind}'; there are: {', '.join(KINDS)}")
    if how.text_column is not None and (kind == "stream" or separator is not None):
        wrong = "--kind stream" if kind == "stream" else "--separator"
        raise UserError(f"--text-column makes each row of a table a line or a document: leave out {wrong}")
    if separator is not None:
        if kind != "documents":
            raise UserError("--separator is what stands between documents: it goes with --kind documents")
        if not (separator := unescaped(reading.whole_characters(separator))):
            raise UserError("--separator is empty; leave it out for blank lines")
    return how._replace(kind=kind, separator=separator)


def _prepare(texts: list[list[sources.Text]], how: How) -> store.Store:
    recipe = _recipe(texts, how)
    folder = sources.cache_folder() / "prepared" / f"{recipe.name[:40]}-{recipe.key}"
    found = open_or_discard(folder)
    if found is None:
        lock = sources.cache_subfolder("prepared") / f"{folder.name}.lock"
        with hold(lock, f"the prepared text {folder}", wait=True):
            if not (folder / "meta.json").is_file():  # another process may have been faster
                _build(folder, Builder(recipe.files, recipe.digests, *recipe.how), recipe.key, recipe.name)
        found = store.open_store(folder)
    # What was left out of a folder, and how a file is called, is no part of the text, so neither of what is cached.
    found.meta["notes"] = recipe.notes + found.meta["notes"]
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
            rename(folder, aside)
        except OSError:  # not ours to remove
            raise damage from None
        shutil.rmtree(aside, ignore_errors=True)
        warn(f"the prepared text in {folder} is damaged ({damage.__cause__}); preparing it again")
        return None


def _build(folder: Path, builder: Builder, key: str, name: str) -> None:
    """Build beside `folder`, whose lock is held, and move there once whole."""
    for stale in folder.parent.glob(f"{glob.escape(folder.name)}.*.part"):  # of a preparation that was killed
        shutil.rmtree(stale, ignore_errors=True)
    part = sources.cache_subfolder("prepared") / f"{folder.name}.{secrets.token_hex(4)}.part"
    part.mkdir()
    try:
        with naming(part):
            meta = builder.write(part, name) | {"key": key, "kind": builder.kind, "name": name}
            store.seal(part, meta)
        shutil.rmtree(folder, ignore_errors=True)
        rename(part, folder)
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
    what.add_argument("--data", nargs="+", help="a data set by name, a text file, a folder, or -; several are one text")
    what.add_argument("--list", action="store_true", help="show what is prepared and downloaded")
    what.add_argument("--clear", nargs="*", metavar="NAME", help="free it all, or what has these names")
    parser.add_argument("--val-data", nargs="+", help="the validation text (default: a tenth of --data)")
    parser.add_argument("--kind", choices=KINDS, help="default: as the source says, else stream")
    parser.add_argument("--separator", help="what stands between documents (default: blank lines)")
    parser.add_argument("--text-column", help="of tables: the column, or key, whose texts are lines or documents")
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
        rows = "" if split.offsets is None else f" in {len(split.offsets) - 1:,} {made.kind}"
        print(f"{side}: {len(split.tokens):,} tokens{rows}")
    print(f"vocabulary: {made.tokenizer.vocab_size - N_SPECIALS:,} and {N_SPECIALS} specials")
    print(f"prepared in {made.folder}; train.py finds it there by the text's content")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
