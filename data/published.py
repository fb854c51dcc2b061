"""Data sets by name that are published elsewhere, or made: their files, their own splits, how their bits are counted.

Where the address, size and checksum of a file are known from two public sources it is downloaded; what is too large, or
not free to take, the user brings into `$CHARLM_DATA`. docs/corpora.md has their licences.
"""

import hashlib
import itertools
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from data import sources
from data.derived import derived
from data.errors import UserError
from data.series import hours
from data.sources import Remote, Text

PARTS = ("train", "val", "test")
CHUNK = 1 << 20  # bytes copied at a time
ENDOFTEXT = "<|endoftext|>"  # what stands between TinyStories


class Archive(NamedTuple):
    """A zip archive of one text, which is cut into parts of so many bytes."""

    remote: Remote
    member: str
    sizes: Mapping[str, int]


class Brought(NamedTuple):
    """A folder of `$CHARLM_DATA` that the user fills: with what, and which part of it is for validation."""

    recipe: str
    val_fraction: float


_MAHONEY = {"train": 90_000_000, "val": 5_000_000, "test": 5_000_000}
ARCHIVES = {
    "text8": Archive(
        Remote(
            "text8.zip",
            "http://mattmahoney.net/dc/text8.zip",
            31_344_016,
            "a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
        ),
        "text8",
        _MAHONEY,
    ),
    "enwik8": Archive(
        Remote(
            "enwik8.zip",
            "http://mattmahoney.net/dc/enwik8.zip",
            36_445_475,
            "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
        ),
        "enwik8",
        _MAHONEY,
    ),
}
_STORIES = "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/f54c09fd23315a6f9c86f9dc80f725de7d8f9c64/"
STORIES = {
    "train": Remote(
        "TinyStoriesV2-GPT4-train.txt",
        f"{_STORIES}TinyStoriesV2-GPT4-train.txt",
        2_227_753_162,
        "6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443",
    ),
    "val": Remote(
        "TinyStoriesV2-GPT4-valid.txt",
        f"{_STORIES}TinyStoriesV2-GPT4-valid.txt",
        22_502_601,
        "6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d",
    ),
}
PTB = {"train": "ptb.char.train.txt", "val": "ptb.char.valid.txt", "test": "ptb.char.test.txt"}
BROUGHT = {
    "openwebtext": Brought(
        "the files plain_text/train-*.parquet of huggingface.co/datasets/Skylion007/openwebtext (about 24 GB)", 0.0005
    ),
    "fineweb-sample": Brought(
        "files sample/10BT/*.parquet of huggingface.co/datasets/HuggingFaceFW/fineweb (about 30 GB; some are enough)",
        0.01,
    ),
}


def resolve(data: str) -> Text:
    """The text that `--data` names: one of these data sets, of which NAME:val and the like is a part, or any other of
    `sources.resolve`. Raises UserError when there is none, with what to bring where."""
    name, colon, part = data.partition(":")
    if data == "hours":
        return _hours()
    if name in BROUGHT and not colon:
        return _brought(name)
    known = {"tinystories": tuple(STORIES), "ptb-char": PARTS}.get(name, PARTS if name in ARCHIVES else ())
    if not known or (colon and sources.is_there(data)):
        return sources.resolve(data)
    if colon and part not in known:
        raise UserError(f"'{name}' has no part '{part[:50]}'; it has: {', '.join(known)}")
    if name == "tinystories":
        texts = {each: _story(each) for each in ([part] if colon else known)}
    else:
        paths = _ptb() if name == "ptb-char" else _cut(name, ARCHIVES[name])
        unit = "byte" if name == "enwik8" else "character"
        texts = {each: Text(f"{name}-{each}", (path,), unit=unit) for each, path in paths.items()}
    return texts[part] if colon else texts["train"].with_val(name, texts["val"])


def _hours() -> Text:
    table = hours.table().encode()
    made = derived("hours", hashlib.sha256(table).hexdigest(), ("all",), [("all", table)], ".csv")
    return Text("hours", (made["all"],), "series")


def _brought(name: str) -> Text:
    folder = sources.data_folder()
    there = None if folder is None else folder / name
    if there is None or not there.is_dir():
        raise UserError(_bring(name, f"put {BROUGHT[name].recipe} into the folder {name}"))
    text = sources.resolve(str(there))
    return Text(name, text.files, folder=there, val_fraction=BROUGHT[name].val_fraction)


def _bring(name: str, what: str) -> str:
    """The message for files that the user has to bring."""
    folder = sources.data_folder()
    where = "a folder that $CHARLM_DATA names" if folder is None else f"{folder} ($CHARLM_DATA)"
    return f"'{name}' is not downloaded: {what} of {where}; docs/corpora.md says more"


def _story(part: str) -> Text:
    path = sources.remote_file(f"tinystories-{part}", STORIES[part])
    return Text(f"tinystories-{part}", (path,), separator=ENDOFTEXT)


def _cut(name: str, archive: Archive) -> dict[str, Path]:
    """The parts of an archive's text, as files in the cache."""
    path = sources.remote_file(name, archive.remote)
    return derived(name, archive.remote.sha256, PARTS, _unpacked(path, archive))


def _unpacked(path: Path, archive: Archive) -> Iterator[tuple[str, bytes]]:
    """The bytes of an archive's text, each piece with its part. Where a part would end inside a character, that
    character belongs to it whole."""
    expected = sum(archive.sizes.values())
    try:
        with zipfile.ZipFile(path) as zipped, zipped.open(archive.member) as text:
            if (size := zipped.getinfo(archive.member).file_size) != expected:
                raise UserError(f"{path} holds a text of {size:,} bytes, not {expected:,}")
            position, held = 0, b""
            for part, border in zip(archive.sizes, itertools.accumulate(archive.sizes.values()), strict=True):
                while position < border and (piece := held or text.read(min(CHUNK, border - position))):
                    yield part, piece
                    position, held = position + len(piece), b""
                # At the end this reads nothing, and lets zipfile compare its checksum.
                while (held := text.read(1)) and held[0] & 0xC0 == 0x80:
                    yield part, held
                    position += 1
    except (zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError, EOFError) as error:
        raise UserError(f"{path} is no zip archive of {archive.member}, or damaged: {error}") from error


def _ptb() -> dict[str, Path]:
    """The Penn Treebank's characters as text. In the published files a blank stands between two characters, and an
    underscore for a blank."""
    folder = sources.data_folder()
    candidates = [] if folder is None else [folder / "ptb-char", folder / "simple-examples" / "data", folder]
    there = next((each for each in candidates if all((each / file).is_file() for file in PTB.values())), None)
    if there is None:
        what = f"put {', '.join(PTB.values())} of T. Mikolov's simple-examples.tgz into the folder ptb-char"
        raise UserError(_bring("ptb-char", what))
    digest = hashlib.sha256()
    for file in PTB.values():
        digest.update(sources.noted_digest_of(there / file).encode())
    return derived("ptb-char", digest.hexdigest(), PARTS, _joined(there))


def _joined(folder: Path) -> Iterator[tuple[str, bytes]]:
    for part, file in PTB.items():
        for n, line in enumerate((folder / file).read_text("utf-8").splitlines(), 1):
            characters = line.split()
            if any(len(character) > 1 for character in characters):
                raise UserError(f"{folder / file} line {n} is not single characters with blanks between them")
            yield part, ("".join(characters).replace("_", " ") + "\n").encode()
