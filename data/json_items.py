"""The items of JSON and JSONL files, each with its file and line, without lone surrogates; and which files hold any."""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data import packed, reading
from data.errors import UserError

FIRST_LINES = 5  # that tell what a file holds
_FIRST_CHUNKS = 4  # of a file, in which these lines are
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # an escape that may be a lone surrogate, half of a character


def json_items(
    path: Path,
    encoding: str,
    digests: Mapping[Path, bytes] | None = None,
    on_bad: Callable[[UserError], None] | None = None,
) -> Iterator[tuple[str, Any]]:
    """The items of the list in a .json file, or of the lines of another file, each after its name for messages (file
    and line or number). A .json file may hold lines, too. `digests` as in `reading.read_chunks`.

    Raises UserError, with the file and the line or number, for invalid JSON and for a lone surrogate; where only one
    item is so, `on_bad` gets the error instead, and the others follow."""
    if is_one_value(path, encoding):
        return list_items(path, *_value(path, encoding, digests), on_bad or _raise)
    return _lines(path, encoding, digests, on_bad or _raise)


def is_one_value(path: Path, encoding: str) -> bool:
    """Whether `path` is a .json file that is read whole, and not a file of JSON lines."""
    return packed.unpacked_name(path).suffix.lower() == ".json" and len(line_objects(path, encoding)) < 2


def line_objects(path: Path, encoding: str) -> list[dict[str, Any]]:
    """The first objects of a file of JSON lines; none where one of its first lines that are not blank is no object."""
    objects: list[dict[str, Any]] = []
    chunks = itertools.islice(reading.read_chunks([path], encoding), _FIRST_CHUNKS)
    try:
        if not (first := next(chunks, "")).lstrip().startswith("{"):
            return []
        for _, line in reading.numbered_lines(itertools.chain([first], chunks)):
            if not line.strip():
                continue
            if not isinstance(item := json.loads(line), dict):
                return []
            objects.append(item)
            if len(objects) == FIRST_LINES:
                break
    except (UserError, ValueError, RecursionError):
        return []
    return objects


def first_of_list(path: Path, encoding: str) -> dict[str, Any] | None:
    """The first item of a file that holds a list of objects, as far as its beginning shows; None for any other file."""
    try:
        beginning = next(reading.read_chunks([path], encoding), "").lstrip()
        if not beginning.startswith("["):
            return None
        item, _ = json.JSONDecoder().raw_decode(beginning[1:].lstrip())
    except (UserError, ValueError, RecursionError):
        return None
    return item if isinstance(item, dict) else None


def _lines(
    path: Path, encoding: str, digests: Mapping[Path, bytes] | None, on_bad: Callable[[UserError], None]
) -> Iterator[tuple[str, Any]]:
    for n, line in reading.numbered_lines(reading.read_chunks([path], encoding, digests)):
        if line.strip():
            where = f"{reading.shown(path)} line {n}"
            try:
                item = _parse(line, where)
                if _HALF.search(line):
                    _check(item, where)
            except UserError as error:
                on_bad(error)
            else:
                yield where, item


def json_value(path: Path, encoding: str, digests: Mapping[Path, bytes] | None = None) -> Any:
    """What a .json file holds. `digests` and errors as of `json_items`."""
    value, may_have_halves = _value(path, encoding, digests)
    if may_have_halves:
        for where, item in list_items(path, value) if isinstance(value, list) else [(str(path), value)]:
            _check(item, where)
    return value


def list_items(
    path: Path, value: Any, may_have_halves: bool = False, on_bad: Callable[[UserError], None] | None = None
) -> Iterator[tuple[str, Any]]:
    """The items of a list, the `value` of the file `path`, each after its name for messages; with `may_have_halves`
    they are checked for lone surrogates. Raises UserError for another value; `on_bad` as of `json_items`."""
    if not isinstance(value, list):
        raise UserError(f"{path} is not a list of examples: it holds one {type(value).__name__}")
    for n, item in enumerate(value, 1):
        where = f"{path} example {n}"
        try:
            if may_have_halves:
                _check(item, where)
        except UserError as error:
            (on_bad or _raise)(error)
        else:
            yield where, item


def _value(path: Path, encoding: str, digests: Mapping[Path, bytes] | None) -> tuple[Any, bool]:
    """What a .json file holds, and whether there may be a lone surrogate in it."""
    text = reading.read_whole(path, encoding, digests)
    return _parse(text, str(path)), _HALF.search(text) is not None


def _raise(error: UserError) -> None:
    raise error


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
