"""Labelled texts in JSON: objects or pairs, in a list or a line each; columns; and any of these by split."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.errors import UserError, nearest, warn
from data.json_items import is_one_value, json_items, json_value, list_items
from data.labelled.columns import by_content, by_name, tell
from data.labelled.example import Columns, Example, Fault
from data.labelled.folders import side_of
from data.labelled.several import distinct

Items = Iterator[tuple[str, Any]]  # each after its name for messages


def read_json(path: Path, columns: Columns, encoding: str) -> dict[str, Iterator[Example | Fault]]:
    """The examples of a JSON or JSONL file by side: all of them as 'train', unless the file is an object of splits.

    Raises UserError for a file of another shape."""
    if not is_one_value(path, encoding):
        return {"train": _examples(path, json_items(path, encoding), columns)}
    value = json_value(path, encoding)
    if not isinstance(value, dict):
        return {"train": _examples(path, list_items(path, value), columns)}
    splits = {key: side for key in value if (side := side_of(key)) and isinstance(value[key], list | dict)}
    if "train" not in splits.values():
        return {"train": _examples(path, _of_columns(str(path), value), columns)}
    if others := [key for key in value if key not in splits]:
        warn(f"{path}: {', '.join(map(repr, others))[:200]} left out, being neither train nor validation nor test")
    if len(set(splits.values())) < len(splits):
        raise UserError(f"{path} has two keys for one side of the split: {', '.join(splits)}")
    return {side: _examples(path, _of_split(path, key, value[key]), columns) for key, side in splits.items()}


def _of_split(path: Path, key: str, value: Any) -> Items:
    if isinstance(value, dict):
        return _of_columns(f"{path} '{key}'", value)
    return ((f"{path} '{key}' example {n}", item) for n, item in enumerate(value, 1))


def _of_columns(where: str, value: dict[str, Any]) -> Items:
    """The rows of columns that are lists, or objects by row as pandas writes them."""
    columns = list(value.values())
    by_row = bool(columns) and all(isinstance(c, dict) and c.keys() == columns[0].keys() for c in columns)
    if by_row:
        columns = [list(column.values()) for column in columns]
    elif not columns or not all(isinstance(c, list) and len(c) == len(columns[0]) for c in columns):
        raise UserError(f"{where} is not a list of examples: it holds one dict, and neither columns nor splits in it")
    for n, row in enumerate(zip(*columns, strict=True), 1):
        yield f"{where} row {n}", dict(zip(value, row, strict=True))


def _examples(path: Path, items: Items, columns: Columns) -> Iterator[Example | Fault]:
    listed = list(items)
    if not listed:
        return
    if all(isinstance(item, list) and len(item) == 2 for _, item in listed):
        yield from _pairs(path, listed, columns)
        return
    keys = [columns.text or "text", columns.label or "label"]
    of_first = list(map(str, listed[0][1])) if isinstance(listed[0][1], dict) else []
    if len(of_first) == 2 and not set(keys) <= set(of_first):
        if any(columns):
            keys = [of_first[index] for index in by_name(path, of_first, columns)]
        else:
            rows = [[item.get(key, "") for key in of_first] for _, item in listed if isinstance(item, dict)]
            keys = [of_first[index] for index in by_content(rows, label_first=False)]
            tell(path, *keys)
    for where, item in listed:
        yield _example(item, keys, where)


def _pairs(path: Path, listed: list[tuple[str, Any]], columns: Columns) -> Iterator[Example | Fault]:
    if any(columns):
        raise UserError(f"{path} has pairs of a text and a label, without names: leave out {_first_flag(columns)}")
    text, label = by_content([pair for _, pair in listed], label_first=False)
    for where, pair in listed:
        yield _example({"text": pair[text], "label": pair[label]}, ["text", "label"], where)


def _example(item: object, keys: list[str], where: str) -> Example | Fault:
    if not isinstance(item, dict):
        return Fault(f"{where} is not an object with a text and a label")
    values: list[str] = []
    for key in keys:
        if key not in item:
            there = list(map(str, item))
            return Fault(
                f"{where} has no key '{key}'; it has: {', '.join(there)[:200]}.{nearest(key, there)} --text-column and "
                "--label-column say which are meant"
            )
        value = item[key]
        if key == keys[1] and isinstance(value, list):
            if not all(isinstance(label, str | int | float) for label in value):
                return Fault(f"{where}: '{key}' is a list of other things than texts and numbers")
            return Example(values[0], "", where, distinct(map(str, value)))
        if not isinstance(value, str | int | float | None):
            return Fault(f"{where}: '{key}' is neither a text nor a number{'' if key == keys[0] else ' nor a list'}")
        values.append("" if value is None else str(value))
    text, label = values
    return Example(text, label, where)


def _first_flag(columns: Columns) -> str:
    return "--text-column" if columns.text is not None else "--label-column"
