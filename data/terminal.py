"""Showing text of a model or a data set on a terminal: control characters are shown as their codes.

An ESC begins sequences that move the cursor, rename the window or write into the clipboard; so do the characters U+0080
to U+009F, and characters that change the direction of writing make a text read as another one.
"""

import re
import sys
from typing import Any, TextIO

_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """`text` with every control character but tab and line end as its code: \\u001b, as in JSON."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def for_stream(text: str, stream: TextIO) -> str:
    """`text`, made visible where `stream` is a terminal; files and pipes get it unchanged."""
    return visible(text) if stream.isatty() else text


def show(text: str = "", **options: Any) -> None:
    """Print `text` on standard output, made visible on a terminal. Options as in `print`."""
    print(for_stream(text, sys.stdout), **options)
