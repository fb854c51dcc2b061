"""A part of a long text, evenly spread over it and always the same, to learn a tokenizer from; and sizes as text."""

import re
from collections.abc import Iterable, Iterator

from data.errors import UserError

BLOCK = 1 << 16  # characters that are taken or left together, of small samples fewer
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def size_of(text: str) -> int:
    """The number of characters that '500MB' or '1GB' stands for. Raises UserError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]B|)", text, re.ASCII | re.IGNORECASE)
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if size < 1:
        raise UserError(f"--bpe-sample {text}: write how much of the text, as in 500MB or 1GB")
    return size


def sampled(texts: Iterable[str], length: int, size: int) -> Iterator[str]:
    """About `size` of the `length` characters that the texts have together, in blocks; all of them where they are not
    more. A line end stands between blocks, so that no word is joined of two."""
    if length <= size:
        yield from texts
        return
    for n, block in enumerate(_blocks(texts, min(BLOCK, max(1, size // 16)))):
        if (n + 1) * size // length > n * size // length:
            yield block + "\n"


def _blocks(texts: Iterable[str], length: int) -> Iterator[str]:
    buffer = ""
    for text in texts:
        buffer += text
        start = 0
        while len(buffer) - start >= length:
            yield buffer[start : start + length]
            start += length
        buffer = buffer[start:]
    if buffer:
        yield buffer
