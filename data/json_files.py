"""Reading untrusted JSON: checked against a schema, with one message for any fault.

A schema is a type (`float` takes whole numbers too), `None`, a `Whole`, a tuple of schemas of which one has to fit, a
list of one schema for every item, or a dict of schemas by key; a key that ends in "?" may be missing, and other keys
are allowed. Numbers are finite.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError

MAX_BYTES = 256 << 20  # a tokenizer of a million tokens takes 30 MB
SHOWN = 60  # characters of a wrong value in a message


@dataclass(frozen=True)
class Whole:
    """A whole number from `minimum` to `maximum`."""

    minimum: int = 0
    maximum: int = 2**63 - 1


def read_json(path: Path, schema: Any = None) -> Any:
    """The content of the JSON file `path`. Raises UserError with the file, and the key where the schema does not
    fit."""
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise UserError(f"{path} is damaged: {size:,} bytes are too many for what it should hold")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return parse_json(content, path, schema)


def parse_json(content: bytes | str, path: Path | str, schema: Any = None) -> Any:
    """The value of the JSON text `content` of the file `path`. Raises UserError as `read_json` does."""
    try:
        value = json.loads(content, parse_constant=_no_constant)
    except RecursionError as error:
        raise UserError(f"{path} is damaged: it is nested too deeply") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: it is not JSON ({error})") from error
    if schema is not None:
        check_schema(value, schema, str(path))
    return value


def as_stored(value: Any) -> Any:
    """`value` as it comes back from a JSON file: tuples are lists."""
    return json.loads(json.dumps(value))


def content_key(value: Any) -> str:
    """A short name for what `value` says: the first 16 hexadecimal digits of the SHA-256 of its JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def check_schema(value: Any, schema: Any, path: str, key: str = "") -> None:
    """Raise UserError, with `path` and the key, unless `value` fits `schema`."""
    where = f"{path} is damaged: {key or 'what it holds'}"
    if not _is(value, schema):
        raise UserError(f"{where} is {_shown(value)}; it has to be {_expected(schema)}")
    if isinstance(schema, tuple):
        fitting = next(part for part in schema if _is(value, part))
        check_schema(value, fitting, path, key)
    elif isinstance(schema, list):
        for n, item in enumerate(value):
            check_schema(item, schema[0], path, f"{key}[{n}]")
    elif isinstance(schema, dict):
        for pattern, part in schema.items():
            name = pattern.removesuffix("?")
            full_key = f"{key}.{name}" if key else name
            if name in value:
                check_schema(value[name], part, path, full_key)
            elif not pattern.endswith("?"):
                raise UserError(f"{path} is damaged: {full_key} is missing")


def _is(value: Any, schema: Any) -> bool:
    """Whether `value` fits the outermost part of `schema`."""
    if isinstance(schema, tuple):
        return any(_is(value, part) for part in schema)
    if isinstance(schema, Whole):
        return type(value) is int and schema.minimum <= value <= schema.maximum
    if schema is None or schema is Any:
        return value is None or schema is Any
    if schema is float:
        return type(value) in (int, float) and is_finite(value)
    return type(value) is (schema if isinstance(schema, type) else type(schema))


def is_finite(value: float) -> bool:
    """Whether `value` is finite as a float."""
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def _expected(schema: Any) -> str:
    if isinstance(schema, tuple):
        return " or ".join(map(_expected, schema))
    if isinstance(schema, Whole):
        if schema.maximum == Whole().maximum:
            return f"a whole number, at least {schema.minimum:,}"
        return f"a whole number from {schema.minimum:,} to {schema.maximum:,}"
    if schema is None:
        return "null"
    kind = schema if isinstance(schema, type) else type(schema)
    return {float: "a finite number", int: "a whole number", str: "a text", dict: "an object", list: "a list",
            bool: "true or false"}[kind]  # fmt: skip


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return _expected(type(value))
    text = "null" if value is None else repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + " ..."


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number that JSON has")
