"""Preparing a text: its store, from the cache or built now. Also `python -m data.prepare`.

A text is cached under a hash of its bytes and of the options it was read with, so that it is prepared once.
"""

import argparse
import glob
import secrets
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data import cache, reading, sampling, source_notes, sources, store
from data.build import Builder
from data.disk import naming, rename, sync_folder
from data.errors import UserError, flag, run_command, warn
from data.locks import hold
from data.packed import Changed
from data.pool import MAX_WORKERS, Lost, Pool, cores
from data.program import command
from data.recipe import KINDS, VAL_FRACTION, ReadOptions, Recipe, kind_of, recipe_of, resolved, tokenizer_of
from data.series.bins import LEAST_BINS, MOST_BINS, Scale
from data.series.checks import check_no_series, check_series
from data.series.texts import Spelled, spelled
from data.tokenizers import N_SPECIALS, CharTokenizer, Tokenizer
from data.vocabulary import check_name, reads_words

PARALLEL_FROM = 64 << 20  # bytes of text that are prepared by several processes
MOST_BY_DEFAULT = 8  # processes: each takes 150 MB


def prepare(
    data: str | Sequence[str],
    *,
    val_data: str | Sequence[str] | None = None,
    kind: str | None = None,
    separator: str | None = None,
    text_column: str | None = None,
    column: str | None = None,
    bins: int | None = None,
    tokenizer: str | None = None,
    encoding: str = "utf-8",
    vocabulary: Tokenizer | None = None,
    extend: bool = False,
    val_fraction: float = VAL_FRACTION,
    bpe_sample: str | None = None,
    workers: int | None = None,
) -> store.Store:
    """The store of a text, from the cache or made now. Several `data` are one text, in their order.

    `kind`: 'stream', 'lines', 'documents' or 'series' (None: the default of the source). `separator`: the text between
    documents (None: blank lines). `text_column`: the column of tables of which each row is a line or document, or in a
    stream a document with `<eos>` after it (None: of JSON and Parquet `text`, in a stream). `column`, `bins`: of
    series, which columns and how many values (data/series/). `tokenizer`: 'char', 'byte', 'bpe:N' or 'gpt2' (None: what
    the data set says, else 'char'). `vocabulary`: an existing tokenizer (of a trained model) to use instead, to which
    `extend` adds the new characters of the training text. `val_fraction`: the part of the text for validation, 1 for
    all of it, unless the data set has its own. `bpe_sample`: how much of the training text BPE is learned from, as
    '1GB' (None: all of it). `workers`: the number of processes (None: one, or for a large text as many as there are
    processors), which does not change the result. Raises UserError for a text that cannot be read so."""
    tokenizer = tokenizer or tokenizer_of(data)
    check_name(tokenizer)
    reading.check_encoding(encoding)
    options = ReadOptions(
        kind, separator, text_column, tokenizer, encoding, vocabulary, val_fraction, _sample_of(tokenizer, bpe_sample)
    )
    if (kind or kind_of(data)) == "series":
        check_series(options, bins, val_data is not None, extend)
        with spelled(data, column, bins, encoding, vocabulary, val_fraction) as written:
            store_of_series = _prepare(written.texts, _of_series(options, written), workers, written.scale)
        store_of_series.meta["notes"] = written.notes + store_of_series.meta["notes"]
        return store_of_series
    check_no_series(column, bins)
    with resolved(data, val_data, val_fraction) as texts:
        if extend:  # the text's own store has the alphabet of its training side
            own = _prepare(texts, options._replace(vocabulary=None), workers)
            assert isinstance(vocabulary, CharTokenizer) and isinstance(own.tokenizer, CharTokenizer)
            options = options._replace(vocabulary=vocabulary.extended(own.tokenizer.alphabet))
        return _prepare(texts, options, workers)


def key_of(
    data: str | Sequence[str],
    *,
    val_data: str | Sequence[str] | None,
    val_fraction: float = VAL_FRACTION,
    bpe_sample: str | None = None,
    column: str | None = None,
    bins: int | None = None,
    **other: Any,
) -> str:
    """The key of the store of this text, which need not exist. All options of `prepare` have to be given, but for
    `workers`."""
    reading.check_encoding(other["encoding"])
    if (other["kind"] or kind_of(data)) == "series":
        options = ReadOptions(**other, val_fraction=val_fraction, bpe_sample=None)
        with spelled(data, column, bins, options.encoding, options.vocabulary, val_fraction) as written:
            return recipe_of(written.texts, _of_series(options, written), written.scale).key
    sample = _sample_of(other["tokenizer"], bpe_sample)
    with resolved(data, val_data, val_fraction) as texts:
        return recipe_of(texts, ReadOptions(**other, val_fraction=val_fraction, bpe_sample=sample)).key


def _sample_of(tokenizer: str, bpe_sample: str | None) -> int | None:
    """The characters that `bpe_sample` stands for. Raises UserError where it does not go with the tokenizer."""
    if bpe_sample is None:
        return None
    if not reads_words(tokenizer):
        raise UserError(f"--bpe-sample goes with --tokenizer bpe:N; --tokenizer {tokenizer} learns nothing of the text")
    return sampling.size_of(bpe_sample)


def print_notes(notes: list[str]) -> None:
    """Print the notes that were made while a text was prepared, each as a warning."""
    for note in notes:
        warn(note)


def _of_series(options: ReadOptions, written: Spelled) -> ReadOptions:
    """The options with which series are read, once they are text."""
    return options._replace(kind="stream", encoding="utf-8", vocabulary=written.tokenizer)


def _prepare(
    texts: list[list[sources.Text]], options: ReadOptions, workers: int | None, series: Scale | None = None
) -> store.Store:
    recipe = recipe_of(texts, options, series)
    folder = sources.cache_folder() / "prepared" / f"{recipe.name[:40]}-{recipe.key}"
    prepared = open_or_discard(folder)
    if prepared is None:
        lock = sources.cache_subfolder("prepared") / f"{folder.name}.lock"
        with hold(lock, f"the prepared text {folder}", wait=True):
            if not (folder / "meta.json").is_file():  # another process may have been faster
                builder = Builder(recipe.files, recipe.digests, *recipe.options, recipe.tables)
                try:
                    with Pool(workers or _default_workers(builder)) as pool:
                        _build(folder, builder, pool, _facts(recipe))
                except Changed:  # should a file not be what its note says, that does not last
                    source_notes.forget(sources.cache_folder(), recipe.digests)
                    raise
        prepared = store.open_store(folder)
    # The cached store does not depend on names of files and on files left out of a folder, so its notes do not either.
    prepared.meta["notes"] = recipe.notes + prepared.meta["notes"]
    return prepared


def _facts(recipe: Recipe) -> dict[str, Any]:
    """The entries of a store's `meta.json` that its recipe says."""
    facts: dict[str, Any] = {"key": recipe.key, "name": recipe.name, "unit": recipe.unit, "kind": recipe.options.kind}
    return facts if recipe.series is None else facts | {"kind": "series", "series": recipe.series.to_json()}


def open_or_discard(folder: Path) -> store.Store | None:
    """The store in `folder`; None where there is none. A damaged one is removed, with a warning."""
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


def _default_workers(builder: Builder) -> int:
    """The number of processes for a text: one where it is small, and for the characters of a stream, which are encoded
    as fast as they are handed to another process."""
    if builder.text.size < PARALLEL_FROM or (builder.kind == "stream" and builder.tokenizer_name == "char"):
        return 1
    return min(cores(), MOST_BY_DEFAULT)


def _build(folder: Path, builder: Builder, pool: Pool, facts: dict[str, Any]) -> None:
    """Build a store beside `folder`, whose lock is held, and rename it when complete. `facts` become entries of its
    `meta.json`. What was built of a large text stays where it is stopped or killed, and the next call goes on with
    it."""
    part = sources.cache_subfolder("prepared") / f"{folder.name}.begun.part"
    for stale in folder.parent.glob(f"{glob.escape(folder.name)}.*.part"):  # of an earlier version that was killed
        if stale != part:
            shutil.rmtree(stale, ignore_errors=True)
    part.mkdir(exist_ok=True)
    goes_on = False
    try:
        with naming(part):
            meta = builder.write(part, facts["name"], pool) | facts
            store.seal(part, meta)
            builder.journal.close()
        shutil.rmtree(folder, ignore_errors=True)
        rename(part, folder)
        sync_folder(folder.parent)
    except (KeyboardInterrupt, Lost):
        goes_on = builder.journal.is_kept
        raise
    finally:
        if not goes_on:
            shutil.rmtree(part, ignore_errors=True)


def _cleared(names: list[str]) -> str:
    """Free the cache, and return a message that says how much was freed."""
    removed, busy = cache.clear(names)
    for entry in busy:
        warn(f"{entry.path} was written to within a day and may still be: left")
    return f"freed {cache.in_words(sum(entry.size for entry in removed))} ({len(removed):,} removed)"


def _count(number: str) -> int:
    """A number of processes, for argparse."""
    if not number.isdecimal() or not 1 <= int(number) <= MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"from 1 to {MAX_WORKERS}")
    return int(number)


def main() -> int:
    parser = argparse.ArgumentParser(prog=command("prepare"), description="Prepare a text ahead of training.")
    one = parser.add_mutually_exclusive_group(required=True)
    one.add_argument(
        "--data", nargs="+", help="a data set by name, a file, a folder, a pattern, or -; several are one text"
    )
    one.add_argument("--list", action="store_true", help="list the prepared texts and the downloads")
    one.add_argument("--clear", nargs="*", metavar="NAME", help="remove them all, or those with these names")
    parser.add_argument("--val-data", nargs="+", help="the validation text (default: a tenth of --data)")
    parser.add_argument("--kind", choices=KINDS, help="default: as the source says, else stream")
    parser.add_argument("--separator", help="what stands between documents (default: blank lines)")
    parser.add_argument("--text-column", help="of tables: the column, or key, of the texts (default: text)")
    parser.add_argument("--column", help="of series: names of columns, with commas between them (default: all numbers)")
    parser.add_argument("--bins", type=int, help=f"of series: tokens, {LEAST_BINS} to {MOST_BINS} (default: 64)")
    parser.add_argument("--tokenizer", help="char, byte, bpe:N or gpt2 (default: char, of enwik8 byte)")
    parser.add_argument("--encoding", default="utf-8")
    parser.add_argument(
        "--bpe-sample", metavar="SIZE", help="learn BPE from so much of the text, as 1GB (default: all)"
    )
    parser.add_argument(
        "--workers",
        type=_count,
        metavar="N",
        help="processes (default: all processors, up to 8; of a stream of characters one)",
    )
    options = vars(parser.parse_args())
    show, names = options.pop("list"), options.pop("clear")
    if show or names is not None:
        if others := [name for name, value in options.items() if value != parser.get_default(name)]:
            parser.error(f"{flag(others[0])} goes with --data")
        print(cache.listing() if show else _cleared(names))
        return 0
    prepared = prepare(**options)
    print_notes(prepared.meta["notes"])
    for side in ("train", "val"):
        split = getattr(prepared, side)
        rows = "" if split.offsets is None else f" in {len(split.offsets) - 1:,} {prepared.kind}"
        print(f"{side}: {len(split.tokens):,} tokens{rows}")
    print(f"vocabulary: {prepared.tokenizer.vocab_size - N_SPECIALS:,} and {N_SPECIALS} specials")
    print(f"prepared in {prepared.folder}; {command('train')} finds it there by the text's content")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
