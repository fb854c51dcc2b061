"""Labelled texts in a folder: a folder a class with a file a text, a file a class with a line a text, or the files of a
data set that has its own split."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from data import packed, reading
from data.errors import UserError, warn
from data.labelled.example import Example
from data.tables import is_table

_NAMES_OF_SIDES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_SHARD = re.compile(r"(.+?)-\d+-of-\d+")  # train-00000-of-00002.parquet
_ABOUT = re.compile(r"(README|LICEN[CS]E)\b", re.IGNORECASE)
UNLABELLED = {"unsup"}  # IMDB's reviews without a label lie beside its classes
NAMED = 3  # entries that a warning names


def side_of(name: str) -> str | None:
    """The side of the split, 'train', 'val' or 'test', that a file, folder or key of this name holds, if it does."""
    shard = _SHARD.fullmatch(name)
    return _NAMES_OF_SIDES.get((shard[1] if shard else name).lower())


def _side_of_file(name: str) -> str | None:
    """The same of a file, whose side is the first or last part of its name: train.ft.txt, TREC.train."""
    parts = name.split(".")
    return side_of(parts[0]) or side_of(parts[-1])


def own_split(folder: Path) -> dict[str, list[Path]]:
    """The files or folders of each side of a data set that is published with its split; nothing for another folder.
    Warns of what else is in it.

    Raises UserError where two files claim one side."""
    sides: dict[str, list[Path]] = defaultdict(list)
    others: list[Path] = []
    for path in _entries(folder):
        side = side_of(path.name) if path.is_dir() else _side_of_file(packed.unpacked_name(path).name)
        (others if side is None else sides[side]).append(path)
    is_split = "train" in sides and (len(sides) > 1 or all(map(is_table, sides["train"])))
    if not is_split:
        return {}
    for side, paths in sides.items():
        kinds = {packed.unpacked_name(path).suffix.lower() for path in paths}
        if len(paths) > 1 and (len(kinds) > 1 or not all(_SHARD.fullmatch(path.name.split(".")[0]) for path in paths)):
            named = " and ".join(path.name for path in paths[:2])
            raise UserError(
                f"{folder} has {named}, both for {side}: which is meant? Name the file with --data, and others with "
                "--val-data and --test-data"
            )
    _tell_left_out(folder, others, "of the train, validation or test side")
    return dict(sides)


def read_folder(folder: Path, encoding: str) -> Iterator[Example]:
    """The examples of a folder of classes. Warns of every entry that is none.

    Raises UserError for a folder of tables alone."""
    entries = _entries(folder)
    folders = [path for path in entries if path.is_dir()]
    files = [path for path in entries if not path.is_dir() and not is_table(path) and not _ABOUT.match(path.name)]
    tables = [path for path in entries if not path.is_dir() and is_table(path)]
    classes = [path for path in folders if _texts_below(path)]
    if len(classes) > 1 or (classes and not files):
        labelled = [path for path in classes if path.name not in UNLABELLED] if len(classes) > 2 else classes
        _tell_left_out(folder, [path for path in entries if path not in labelled], "folders with the texts of a class")
        yield from _texts_of_folders(labelled, encoding)
    elif files:
        _tell_left_out(folder, [path for path in entries if path not in files], "text files with a line a text")
        yield from _lines_of_files(files, encoding)
    elif tables:
        named = ", ".join(path.name for path in tables[:NAMED])
        raise UserError(f"{folder} holds tables ({named}), not a text file a class: name one, as {tables[0]}")
    else:
        raise UserError(f"the folder {folder} holds no files; it needs one text file, or one folder of texts, a class")


def _texts_of_folders(folders: Sequence[Path], encoding: str) -> Iterator[Example]:
    for folder in folders:
        _tell_left_out(folder, [path for path in sorted(folder.iterdir()) if is_table(path)], "texts")
        for file in _texts_below(folder):
            yield Example(reading.read_whole(file, encoding).strip(), folder.name, str(file))


def _lines_of_files(files: Sequence[Path], encoding: str) -> Iterator[Example]:
    names = [packed.unpacked_name(file) for file in files]
    by_suffix = len({name.stem for name in names}) == 1 < len({name.suffix for name in names})  # reviews.pos, .neg
    for file, name in zip(files, names, strict=True):
        empty = True
        for n, line in reading.numbered_lines([reading.read_whole(file, encoding)]):
            if line.strip():
                empty = False
                yield Example(line.strip(), name.suffix[1:] if by_suffix else name.stem, f"{file} line {n}")
        if empty:
            warn(f"{file} is empty: it is no class")


def _entries(folder: Path) -> list[Path]:
    """The files and folders in a folder, sorted, without hidden ones, pipes and devices."""
    return [p for p in sorted(folder.iterdir()) if not p.name.startswith(".") and (p.is_file() or p.is_dir())]


def _texts_below(folder: Path) -> list[Path]:
    """The files at any depth below a folder, sorted, without hidden ones and tables."""
    below = (path for path in folder.rglob("*") if path.is_file() and not is_table(path))
    return sorted(path for path in below if not any(p.startswith(".") for p in path.relative_to(folder).parts))


def _tell_left_out(folder: Path, paths: Sequence[Path], expected: str) -> None:
    if paths:
        named = ", ".join(f"{path.name}/" if path.is_dir() else path.name for path in paths[:NAMED])
        more = f" and {len(paths) - NAMED:,} more" if len(paths) > NAMED else ""
        are = "is" if len(paths) == 1 else "are"
        warn(f"{len(paths):,} of what {folder} holds {are} left out, being not {expected}: {named}{more}")
