"""The items of JSON and JSONL files, each with its place, and without halves of characters."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data import packed, reading
from data.errors import UserError

_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # an escape that may be half of a character


def json_items(path: Path, encoding: str, digests: Mapping[Path, bytes] | None = None) -> Iterator[tuple[str, Any]]:
    """Each item of a list in a .json file, or of the lines of a .jsonl file, after what a message calls it.
    `digests` is as of `reading.read_chunks`.

    Raises UserError naming the file, and the line or the item, for what is no JSON or has half of a character."""
    if packed.unpacked_name(path).suffix.lower() == ".jsonl":
        return _lines(path, encoding, digests)
    return _list(path, encoding, digests)


def _lines(path: Path, encoding: str, digests: Mapping[Path, bytes] | None) -> Iterator[tuple[str, Any]]:
    for n, line in reading.numbered_lines(reading.read_chunks([path], encoding, digests)):
        if line.strip():
            where = f"{path} line {n}"
            item = _parse(line, where)
            if _HALF.search(line):
                _check(item, where)
            yield where, item


def _list(path: Path, encoding: str, digests: Mapping[Path, bytes] | None) -> Iterator[tuple[str, Any]]:
    text = reading.read_whole(path, encoding, digests)
    read = _parse(text, str(path))
    if not isinstance(read, list):
        raise UserError(f"{path} is not a list of examples: it holds one {type(read).__name__}")
    may_have_halves = _HALF.search(text) is not None
    for n, item in enumerate(read, 1):
        where = f"{path} example {n}"
        if may_have_halves:
            _check(item, where)
        yield where, item


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}") from error


def _check(item: Any, where: str) -> None:
    """Raise UserError for half of a character in any text of `item`, its keys included."""
    left = [item]
    while left:
        part = left.pop()
        if isinstance(part, str):
            reading.check_characters(part, where)
        elif isinstance(part, dict):
            left += [*part.keys(), *part.values()]
        elif isinstance(part, list):
            left += part
