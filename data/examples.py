"""Labelled texts: reading them from a table, JSON or a folder, and splitting them so that no text is on two sides."""

import codecs
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data import packed, reading
from data.errors import UserError, nearest
from data.json_items import line_objects
from data.labelled.example import Columns, Example, Fault, whole_examples
from data.labelled.folders import own_split, read_folder
from data.labelled.items import read_json
from data.labelled.lines import read_lines
from data.labelled.named import NAMED, read_named
from data.labelled.several import separated
from data.labelled.tables import read_parquet, read_table
from data.parquet import is_parquet
from data.sources import DATA_SETS, is_there, path_of, resolve
from data.tables import is_table

SIDES = ("train", "val", "test")
BUNDLED = Path(__file__).parent / "surnames"


def read_examples(
    data: str, columns: Columns, encoding: str = "utf-8", separator: str | None = None
) -> tuple[str, list[Example]]:
    """The short name of `data` and its examples; of a data set that has its own split the test side, or else the
    validation side. The rest as in `read_sides`."""
    name, sides = read_sides(data, columns, encoding, separator)
    return name, next(sides[side] for side in reversed(SIDES) if side in sides)


def read_sides(
    data: str, columns: Columns, encoding: str = "utf-8", separator: str | None = None
) -> tuple[str, dict[str, list[Example]]]:
    """The short name of `data` and its examples by side: all of them as 'train', unless `data` has its own split.
    `data`: 'surnames' (bundled), a data set of `data.labelled.named`, a table, JSON, lines that begin with their label,
    or a folder: of text files, one a class with an example a line; of folders, one a class with an example a file; or
    of files or folders named train, validation (val, valid, dev) and test, each of them any of these. `separator`:
    what stands between the labels of a text that has several.

    Raises UserError, with file and line, where more than a few examples are malformed or incomplete; warns of these."""
    reading.check_encoding(encoding)
    if data in NAMED:
        _refuse_flags_of_files(data, columns, encoding, separator)
        return data, read_named(data)
    if data != "surnames":
        _check_there(data)
    path = BUNDLED if data == "surnames" else path_of(data) or Path(data)
    if path.is_dir() and (parts := own_split(path)):
        examples = {side: _one_side(parts[side], columns, encoding, separator) for side in SIDES if side in parts}
    else:
        examples = _read(path, columns, encoding, data, separator)
    return (data if data == "surnames" else packed.unpacked_name(path.resolve()).stem), examples


def _check_there(data: str) -> None:
    """Raises UserError where `data` names nothing that can be read."""
    by_name = ("surnames", *NAMED)
    if not is_there(data):
        begin = data[:200]
        named = repr(begin) if len(begin.splitlines()) > 1 else f"'{begin}'"
        what = f"{named} has no labels" if data in DATA_SETS else f"no such file, folder or data set: {named}"
        raise UserError(f"{what}; labelled texts by name there are: {', '.join(by_name)}.{nearest(begin, by_name)}")
    if data not in DATA_SETS:
        resolve(data)


def _refuse_flags_of_files(name: str, columns: Columns, encoding: str, separator: str | None) -> None:
    if separator is not None:
        raise UserError(f"--label-separator is for texts with several labels; those of {name} have one")
    for column in Columns._fields:
        if getattr(columns, column) is not None:
            raise UserError(f"--{column}-column is for tables and JSON; {name} has a text and a label")
    if codecs.lookup(encoding).name != "utf-8":
        raise UserError(f"--encoding {encoding} is for files; {name} is read as it was published, in utf-8")


def _one_side(parts: list[Path], columns: Columns, encoding: str, separator: str | None) -> list[Example]:
    """The examples of the files or folders of one side of the split."""
    examples = []
    for part in parts:
        if len(sides := _read(part, columns, encoding, str(part), separator)) > 1:
            raise UserError(f"{part} has a split of its own ({', '.join(sides)}); name it alone, with --data")
        examples += sides["train"]
    return examples


def _read(path: Path, columns: Columns, encoding: str, name: str, separator: str | None) -> dict[str, list[Example]]:
    """The examples of one file, or of a folder of classes, by side. `name`: what messages call it."""
    suffix = packed.unpacked_name(path).suffix.lower()
    found: dict[str, Iterator[Example | Fault]]
    if path.is_dir():
        if flags := [f"--{column}-column" for column in Columns._fields if getattr(columns, column) is not None]:
            raise UserError(f"{flags[0]} is for tables and JSON; {name} is a folder: its names are the labels")
        if separator is not None:
            raise UserError(f"--label-separator is for files; {name} is a folder: its names are the labels, one a text")
        found = {"train": read_folder(path, encoding)}
    elif suffix in (".json", ".jsonl") or (not is_table(path) and line_objects(path, encoding)):
        found = read_json(path, columns, encoding)
    elif is_parquet(path):
        found = {"train": read_parquet(path, columns)}
    else:
        read = read_table if suffix in (".tsv", ".csv") else read_lines
        found = {"train": read(path, columns, encoding)}
    of_side = "{} '{}'" if len(found) > 1 else "{}"
    return {
        side: whole_examples(separated(found[side], separator), of_side.format(name, side))
        for side in SIDES
        if side in found
    }


def labels_of(examples: list[Example], name: str, to_split: bool = True, way_out: str = "") -> list[str]:
    """The distinct labels, sorted. Raises UserError, with this way out, for fewer than two, or, of examples `to_split`,
    for a class of one example."""
    counts = Counter(example.label for example in examples)
    if len(counts) < 2:
        raise UserError(
            f"all {len(examples)} texts of {name} have the label '{examples[0].label}': nothing to learn{way_out}"
        )
    if to_split and (singletons := [label for label, count in counts.items() if count == 1]):
        label = singletons[0]
        raise UserError(
            f"class '{label}' of {name} has a single example; a class needs one to learn from and one to test "
            f"on{way_out}"
        )
    return sorted(counts)


def drop_duplicates(examples: Sequence[Example]) -> list[Example]:
    """The examples without later copies of the same text and label, or labels."""
    seen: set[tuple[str, ...]] = set()
    distinct = []
    for example in examples:
        if (key := (normalised(example.text), example.label, *sorted(example.labels or ()))) not in seen:
            seen.add(key)
            distinct.append(example)
    return distinct


def split_examples(examples: Sequence[Any], seed: int, fractions: tuple[float, float] = (0.1, 0.1)) -> dict[str, list]:
    """The examples, each with a `text` and a `label`, by side: 'train', 'val' and 'test', the last two being
    `fractions` of each class. All examples with one text, whatever their labels, are on one side, which follows from
    the text and `seed` alone, on every machine."""
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        groups[normalised(example.text)].append(example)
    of_class: dict[str, list[tuple[bytes, list[Example]]]] = defaultdict(list)
    for text, group in groups.items():
        key = hashlib.blake2b(f"{seed} {text}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        of_class[min(example.label for example in group)].append((key, group))
    sides: dict[str, list[Example]] = {side: [] for side in SIDES}
    remaining: list[list[list[Example]]] = []  # of each class, the groups that are not held out
    for label in sorted(of_class):
        ordered = [group for _, group in sorted(of_class[label], key=lambda item: item[0])]
        n_val, n_test = (round(fraction * len(ordered)) for fraction in fractions)
        sides["val"] += sum(ordered[:n_val], [])
        sides["test"] += sum(ordered[n_val : n_val + n_test], [])
        remaining.append(ordered[n_val + n_test :])
    for side, fraction in zip(("val", "test"), fractions, strict=True):
        if fraction and not sides[side]:  # a tenth of every class rounds to nothing: take a text of the largest class
            largest = max(remaining, key=len)
            if len(largest) < 2:
                raise UserError(f"{len(groups)} different texts are too few to hold out two; bring more")
            sides[side] += largest.pop()
    sides["train"] = [example for ordered in remaining for group in ordered for example in group]
    return sides


def keep_labels_in_training(sides: dict[str, list[Example]], held_out: Sequence[str]) -> dict[str, list[Example]]:
    """The sides of examples with several labels each, where those that were `held_out` give training a text of each
    label that it lacks, with all its copies; at most half of their texts."""
    sides, there = dict(sides), {label for example in sides["train"] for label in example.labels or ()}
    for side in held_out:
        groups: dict[str, list[Example]] = defaultdict(list)
        for example in sides[side]:
            groups[normalised(example.text)].append(example)
        spare, kept = len(groups) // 2, []
        for group in groups.values():
            lacking = {label for example in group for label in example.labels or ()} - there
            if lacking and spare:
                spare -= 1
                there |= lacking
                sides["train"] = sides["train"] + group
            else:
                kept += group
        sides[side] = kept
    return sides


def normalised(text: str) -> str:
    """`text` case-folded and with single spaces: texts that are equal so count as copies."""
    return " ".join(text.casefold().split())
