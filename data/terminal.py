"""What a terminal is shown of text that a model or a data set made: control characters as their codes.

An ESC begins sequences that move the cursor, rename the window or write into the clipboard; the characters U+0080 to
U+009F begin them too, and those that turn the direction of writing make a text read as another one.
"""

import re
import sys
from typing import Any, TextIO

_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """`text` with every control character but tab and line end as its code: \\u001b, which means the same in JSON."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def for_stream(text: str, stream: TextIO) -> str:
    """`visible` where the stream is a terminal; files and pipes get the text as it is."""
    return visible(text) if stream.isatty() else text


def show(text: str = "", **options: Any) -> None:
    """Print `text` on standard output, for a terminal made visible. Options as of `print`."""
    print(for_stream(text, sys.stdout), **options)
