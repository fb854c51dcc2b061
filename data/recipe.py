"""What a prepared text is made of: its files on both sides, how they are read, and the key that these give it."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from data import corpus, published, reading, sources, store, tables
from data.documents import unescaped
from data.errors import UserError
from data.series.bins import Scale
from data.tokenizers import Tokenizer

VAL_FRACTION = 0.1
KINDS = ("stream", "lines", "documents", "series")


class ReadOptions(NamedTuple):
    """The options with which a text is read, as of `prepare`."""

    kind: str | None
    separator: str | None
    text_column: str | None
    tokenizer: str
    encoding: str
    vocabulary: Tokenizer | None
    val_fraction: float
    bpe_sample: int | None  # characters


class Recipe(NamedTuple):
    """The inputs of a store, and its key."""

    files: list[list[Path]]  # of each side
    tables: frozenset[Path]  # those of them of which a column is read
    digests: dict[Path, bytes]  # the SHA-256 of each file
    options: ReadOptions
    name: str
    key: str  # a hash of the files and options
    notes: list[str]  # on files that are left out
    unit: str  # what its bits are counted by
    series: Scale | None = None  # how numbers became this text


@contextlib.contextmanager
def resolved(
    data: str | Sequence[str], val_data: str | Sequence[str] | None, val_fraction: float
) -> Iterator[list[list[sources.Text]]]:
    """A context with the texts of both sides: validation is `val_data`, else what a data set has for it. Standard input
    is spooled to a file, which is deleted afterwards."""
    names = [[side] if isinstance(side, str) else list(side) for side in (data, val_data) if side is not None]
    if sum(names, []).count("-") > 1:
        raise UserError("only one text can be standard input, among all of --data and --val-data")
    texts: list[list[sources.Text]] = []
    try:
        for side in names:
            texts.append([])
            for name in side:
                texts[-1].append(published.resolve(name))
        first = texts[0][0]
        if len(texts) == len(texts[0]) == 1 and first.val is not None:
            texts = [[first.val]] if val_fraction == 1 else [[first], [first.val]]
        yield texts
    finally:
        for text in sum(texts, []):
            if text.temporary:
                text.files[0].unlink(missing_ok=True)


def kind_of(data: str | Sequence[str]) -> str:
    """The default kind of a text that is named, not read."""
    first = data if isinstance(data, str) else data[0]
    return sources.DATA_SETS.get(sources.data_set(first) or "", "stream")


def tokenizer_of(data: str | Sequence[str]) -> str:
    """The default tokenizer of a text."""
    first = data if isinstance(data, str) else data[0]
    return sources.TOKENIZERS.get(sources.data_set(first) or "", "char")


def _kind_of(texts: list[sources.Text]) -> str:
    """The default kind of `texts`. Raises UserError where they have different ones."""
    if other := [text for text in texts if text.kind != texts[0].kind]:
        raise UserError(
            f"{texts[0].name} is read as {texts[0].kind}, {other[0].name} as {other[0].kind}: say how with --kind"
        )
    return texts[0].kind


def recipe_of(texts: list[list[sources.Text]], options: ReadOptions, series: Scale | None = None) -> Recipe:
    """What the store of these texts is made of; `series`: how numbers became them. Raises UserError where they
    cannot be read so."""
    given, options = options, _with_kind(options, texts)
    chosen = [[corpus.choose(text, options.text_column, options.encoding) for text in side] for side in texts]
    files = [[path for text in side for path in text.files] for side in chosen]
    of_columns = frozenset(path for side in chosen for text in side for path in text.tables)
    notes = [note for side in chosen for text in side for note in text.notes]
    as_it_stands = [path for path in dict.fromkeys(sum(files, [])) if path not in of_columns]
    notes += corpus.note_tables(as_it_stands, options.encoding)
    if of_columns:
        if given.separator is not None and not as_it_stands:
            name = reading.shown(min(of_columns))
            raise UserError(f"each row of {name} is a document: --separator is for plain text, leave it out")
        options = options._replace(text_column=options.text_column or corpus.COLUMN)
    if options.kind is None:
        assert options.text_column is not None  # of other texts it is known
        has_line_ends = tables.has_line_ends(sum(files, []), options.text_column, options.encoding)
        options = options._replace(kind="documents" if has_line_ends else "lines")
    if options.vocabulary:  # nothing is learned
        options = options._replace(bpe_sample=None)
    are_tables = [[path in of_columns for path in side] for side in files] if of_columns and as_it_stands else None
    unit = texts[0][0].unit
    in_words = _in_words(options, unit, are_tables) + ("" if series is None else f" {json.dumps(series.to_json())}")
    key, digests = _key(files, in_words, options.encoding)
    name = texts[0][0].name + (f"-and-{len(texts[0]) - 1}-more" if len(texts[0]) > 1 else "")
    return Recipe(files, of_columns, digests, options, name, key, notes, unit, series)


def _with_kind(options: ReadOptions, texts: list[list[sources.Text]]) -> ReadOptions:
    """The options with the default kind of the texts, except for tables, where it depends on their rows. Raises
    UserError for options that contradict each other."""
    kind, separator = options.kind, options.separator
    if kind is None and options.text_column is None:
        kind = _kind_of(texts[0])
    if kind not in (*KINDS, None):
        raise UserError(f"unknown kind '{kind}'; there are: {', '.join(KINDS)}")
    if separator is not None:
        if options.kind not in ("documents", "stream"):
            raise UserError("--separator is what stands between documents: it goes with --kind documents, or stream")
        if not (separator := unescaped(reading.whole_characters(separator))):
            raise UserError("--separator is empty; leave it out for blank lines")
    elif kind in ("documents", "stream"):
        separator = texts[0][0].separator
    fraction = texts[0][0].val_fraction if options.val_fraction == VAL_FRACTION else None
    return options._replace(kind=kind, separator=separator, val_fraction=fraction or options.val_fraction)


def _in_words(options: ReadOptions, unit: str, are_tables: list[list[bool]] | None) -> str:
    """The options as text, which the key depends on; those that came later only where they are given, so that what was
    prepared before keeps its key. `are_tables`: which files are, where only some of them are."""
    read_as = str(options.kind)
    if options.separator is not None:
        read_as += f" {options.separator!r}"
    if unit != "character":
        read_as += f" by the {unit}"
    if options.text_column is not None:
        read_as += f" column {options.text_column!r}"
    if are_tables is not None:
        read_as += f" of {are_tables}"
    tokenizer = json.dumps(options.vocabulary.to_json()) if options.vocabulary else options.tokenizer
    sample = "" if options.bpe_sample is None else f" sample {options.bpe_sample}"
    return f"{store.FORMAT} {read_as} {tokenizer} {options.encoding} {options.val_fraction}{sample}"


def _key(files: list[list[Path]], options: str, encoding: str) -> tuple[str, dict[Path, bytes]]:
    """A hash of the files of each side and of the `options` in words; and the SHA-256 of each file, which
    every later reading checks."""
    sha, digests = hashlib.sha256(options.encode()), {}
    for text in files:
        sha.update(b"text")
        for path in text:
            digests[path], has_lone_returns = reading.fingerprint(path, encoding)
            sha.update(digests[path])
            sha.update(b"lone returns" if has_lone_returns else b"")
    return sha.hexdigest()[:16], digests
