"""Tokenizers by their name on the command line, and from the JSON that a run stores."""

from collections.abc import Callable, Iterable
from typing import Any

from data import bpe, gpt2
from data.errors import UserError, nearest, warn
from data.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer

NAMES = ("char", "byte", "gpt2", "bpe:N")


def check_name(name: str) -> None:
    """Raise UserError unless `name` is the name of a tokenizer."""
    if name not in NAMES[:3] and bpe.size_of(name) is None:
        raise UserError(f"unknown tokenizer '{name}'; there are: {', '.join(NAMES)}.{nearest(name, NAMES)}")


def reads_words(name: str) -> bool:
    """Whether the tokenizer `name` is learned from the training text itself, not from its alphabet alone."""
    return bpe.size_of(name) is not None


def make(
    name: str,
    alphabet: str,
    texts: Iterable[str],
    note: Callable[[str], None] = warn,
    each: Callable[..., Iterable[Any]] = map,
) -> Tokenizer:
    """The tokenizer `name` for a training text of these distinct characters; `texts` is the text in pieces, read where
    `reads_words`. `note` is called with each remark for the user; `each` as of `bpe.learn`."""
    if size := bpe.size_of(name):
        return bpe.learn(texts, size, note, each)
    if name == "gpt2":
        return gpt2.load()
    return ByteTokenizer() if name == "byte" else CharTokenizer(alphabet)


def from_json(stored: Any) -> Tokenizer:
    """The tokenizer that `to_json` described. Raises UserError for anything else."""
    kind = stored.get("type") if isinstance(stored, dict) else None
    if kind == "byte":
        return ByteTokenizer()
    if kind == "char" and isinstance(stored.get("characters"), str):
        return CharTokenizer(stored["characters"], in_order=True)  # sorted, but where it was extended
    if kind == "bpe":
        return bpe.BPETokenizer.from_json(stored)
    if kind == "gpt2":
        return gpt2.GPT2Tokenizer.from_json(stored)
    raise UserError(f"not a tokenizer of this project (type {kind!r})")
