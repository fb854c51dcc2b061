"""The items of JSON and JSONL files, each with its file and line, and without lone surrogates."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data import packed, reading
from data.errors import UserError

_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # an escape that may be a lone surrogate, half of a character


def json_items(path: Path, encoding: str, digests: Mapping[Path, bytes] | None = None) -> Iterator[tuple[str, Any]]:
    """The items of the list in a .json file, or of the lines of a .jsonl file, each after its name for messages (file
    and line or number). `digests` as in `reading.read_chunks`.

    Raises UserError, with the file and the line or number, for invalid JSON and for a lone surrogate."""
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
    items = _parse(text, str(path))
    if not isinstance(items, list):
        raise UserError(f"{path} is not a list of examples: it holds one {type(items).__name__}")
    may_have_halves = _HALF.search(text) is not None
    for n, item in enumerate(items, 1):
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
    """Raise UserError for a lone surrogate in any text of `item`, its keys included."""
    pending = [item]
    while pending:
        part = pending.pop()
        if isinstance(part, str):
            reading.check_characters(part, where)
        elif isinstance(part, dict):
            pending += [*part.keys(), *part.values()]
        elif isinstance(part, list):
            pending += part
