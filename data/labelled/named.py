"""Labelled data sets by name: downloaded once or brought, and read on the sides that were published."""

import functools
import gzip
import json
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from data import reading
from data.derived import derived
from data.errors import UserError, note, warn
from data.labelled.example import Example, Fault, whole_examples
from data.sources import Remote, data_folder, remote_file
from data.table_rows import tab_separated

MAX_BYTES = 1 << 28  # that are unpacked of an archive


class Named(NamedTuple):
    """A data set: its archive, the folder in it, and which of its files are read."""

    remote: Remote
    folder: str
    files: re.Pattern  # of names in the folder, with the groups `side` and, where a file is one text, `label`
    sides: Mapping[str, str]  # by what `side` matches
    sizes: Mapping[str, int]  # examples of each side
    labels: Mapping[str, str]  # what they are called here, by what is published
    note: str = ""


# Two public sources each have the sizes and checksums of the archives: tensorflow/datasets (in
# tensorflow_datasets/url_checksums/glue.txt and datasets/imdb_reviews/checksums.tsv) and huggingface/datasets (in
# datasets/sst2/dataset_infos.json and datasets/imdb/dataset_infos.json), which has the numbers of examples too.
NAMED = {
    "sst2": Named(
        Remote(
            "SST-2.zip",
            "https://dl.fbaipublicfiles.com/glue/data/SST-2.zip",
            7_439_277,
            "d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa",
        ),
        "SST-2",
        re.compile(r"(?P<side>train|dev)\.tsv"),
        {"train": "train", "dev": "test"},
        {"train": 67_349, "test": 872},
        {"0": "negative", "1": "positive"},
        "sst2: the labels of its test.tsv are not published, so dev.tsv is the test side here",
    ),
    "imdb": Named(
        Remote(
            "aclImdb_v1.tar.gz",
            "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
            84_125_825,
            "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe",
        ),
        "aclImdb",
        re.compile(r"(?P<side>train|test)/(?P<label>neg|pos)/\d+_\d+\.txt"),
        {"train": "train", "test": "test"},
        {"train": 25_000, "test": 25_000},
        {"neg": "negative", "pos": "positive"},
    ),
}


class _Item(NamedTuple):
    """A text with its label as it was published, and the file and line that it comes from."""

    text: str
    label: str
    where: str


def read_named(name: str) -> dict[str, list[Example]]:
    """The examples of a data set by side, 'train' and 'test', from the folder or the archive in `$CHARLM_DATA`, or from
    the archive in the cache, which is downloaded where it is missing.

    Raises UserError where it cannot be had, or is another; warns where a folder is not whole."""
    data_set = NAMED[name]
    brought = data_folder()
    if brought and (brought / data_set.folder).is_dir() and not (brought / data_set.remote.file).is_file():
        folder = brought / data_set.folder
        items = _by_side(_in_folder(folder, data_set), data_set, folder)
        for side, size in data_set.sizes.items():
            if len(items[side]) != size:
                warn(f"{folder} has {len(items[side]):,} {side} texts; {size:,} were published")
    else:
        items = _of_archive(name, data_set)
    if data_set.note:
        note(data_set.note)
    return {side: whole_examples(_labelled(found, data_set), f"{name} '{side}'") for side, found in items.items()}


def _labelled(items: Iterable[_Item], data_set: Named) -> Iterator[Example | Fault]:
    for item in items:
        if label := data_set.labels.get(item.label):
            yield Example(item.text.strip(), label, item.where)
        else:
            yield Fault(f"{item.where} has the label '{item.label[:50]}', not {' or '.join(data_set.labels)}")


def _of_archive(name: str, data_set: Named) -> dict[str, list[_Item]]:
    """The items of the archive by side, from files in the cache, since to unpack many small ones takes seconds."""
    archive = remote_file(name, data_set.remote)

    def lines() -> Iterator[tuple[str, bytes]]:
        for side, items in _by_side(_unpacked(archive, data_set), data_set, archive).items():
            for item in items:
                yield side, json.dumps(item).encode() + b"\n"

    paths = derived(name, data_set.remote.sha256, tuple(data_set.sizes), lines(), suffix=".jsonl")
    return {side: [_Item(*json.loads(line)) for line in path.open("rb")] for side, path in paths.items()}


def _by_side(texts: Iterable[tuple[str, str, str]], data_set: Named, source: Path) -> dict[str, list[_Item]]:
    """The items of files, each with its name in the folder, what messages call it, and its text. By name, so that a
    folder and the archive have one order."""
    items: dict[str, list[_Item]] = {side: [] for side in data_set.sizes}
    for name, shown, text in sorted(texts):
        found = data_set.files.fullmatch(name)
        assert found is not None
        side = items[data_set.sides[found["side"]]]
        if label := found.groupdict().get("label"):
            side.append(_Item(text, label, shown))
        else:
            side += _rows(text, shown)
    if missing := [side for side, found in items.items() if not found]:
        raise UserError(f"{source} has no {missing[0]} texts: it is not {data_set.folder} as it was published")
    return items


def _rows(text: str, shown: str) -> Iterator[_Item]:
    """The rows of a table with the columns sentence and label, in which quotes are data."""
    rows = tab_separated(reading.numbered_lines([text]))
    if next(rows, (0, []))[1] != ["sentence", "label"]:
        raise UserError(f"{shown} line 1 does not name the columns 'sentence' and 'label'")
    for n, row in rows:
        yield _Item(row[0], row[1].strip() if len(row) > 1 else "", f"{shown} line {n}")


def _in_folder(folder: Path, data_set: Named) -> Iterator[tuple[str, str, str]]:
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if data_set.files.fullmatch(name) and path.is_file():
            yield name, str(path), reading.read_whole(path, "utf-8")


def _unpacked(archive: Path, data_set: Named) -> Iterator[tuple[str, str, str]]:
    """The texts of an archive; nothing is written, and links and whatever else it holds are passed over."""
    is_zip = archive.suffix == ".zip"
    left = MAX_BYTES
    try:
        for member, size, read in (_of_zip if is_zip else _of_tar)(archive):
            name = member.removeprefix(f"{data_set.folder}/")
            if name == member or not data_set.files.fullmatch(name):
                continue
            left -= size
            if left < 0:
                raise UserError(f"{archive} unpacks to more than {MAX_BYTES:,} bytes: it is not {data_set.remote.url}")
            yield name, member, read().decode("utf-8")
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{archive} is no archive of {data_set.folder}, or damaged: {error}") from error


# The files of an archive: the name of each, its size, and what reads it.
Files = Iterator[tuple[str, int, Callable[[], bytes]]]


def _of_zip(archive: Path) -> Files:
    with zipfile.ZipFile(archive) as zipped:
        for each in zipped.infolist():
            yield each.filename, each.file_size, functools.partial(zipped.read, each)


def _of_tar(archive: Path) -> Files:
    with tarfile.open(archive, "r|gz") as packed:
        for each in packed:
            if each.isreg() and (file := packed.extractfile(each)):
                yield each.name, each.size, file.read
