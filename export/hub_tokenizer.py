"""A tokenizer as the `tokenizers` library reads it, in its file tokenizer.json."""

from typing import Any

from data.bpe import BPETokenizer
from data.errors import UserError
from data.gpt2 import WRITTEN
from data.tokenizers import SPECIALS, ByteTokenizer, CharTokenizer, Tokenizer
from export.hub_chat import BORDER, GUARD


def tokenizer_json(tokenizer: Tokenizer, special: dict[str, int], starts: str, chat: bool = False) -> dict[str, Any]:
    """What the `tokenizers` library reads: the same ids for any text, and `special` by name; a text begins with the one
    called `starts` ('' for none). `chat`: for texts of a guarded `hub_chat.chat_template`."""
    added = [
        {"id": id_, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for name, id_ in sorted(special.items(), key=lambda item: item[1])
    ]  # fmt: skip
    found: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "post_processor": None,
    }  # fmt: skip
    if starts:
        pieces = [{"SpecialToken": {"id": starts, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        found["post_processor"] = {
            "type": "TemplateProcessing", "single": pieces,
            "pair": [*pieces, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {starts: {"id": starts, "ids": [special[starts]], "tokens": [starts]}},
        }  # fmt: skip
    if chat:
        found["normalizer"] = {"type": "Replace", "pattern": {"String": GUARD}, "content": ""}
    if isinstance(tokenizer, CharTokenizer):
        vocabulary = special | {c: len(SPECIALS) + n for n, c in enumerate(tokenizer.alphabet)}
        return found | {
            "pre_tokenizer": _split_first(
                {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}, chat
            ),
            "decoder": {"type": "Fuse"},
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
        }  # fmt: skip
    if isinstance(tokenizer, ByteTokenizer):
        tokens, first, regex = [bytes([byte]) for byte in range(256)], len(SPECIALS), False
    elif isinstance(tokenizer, BPETokenizer):
        tokens, first, regex = tokenizer.tokens, tokenizer.first_id, True
    else:
        raise UserError(f"a tokenizer '{tokenizer.name}' has no counterpart on the Hub")
    vocabulary = special | {_written(token): first + rank for rank, token in enumerate(tokens)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": regex}
    return found | {
        "pre_tokenizer": _split_first(byte_level, chat),
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": vocabulary, "merges": [[_written(a), _written(b)] for a, b in merges(tokens)],
        },
    }  # fmt: skip


def _split_first(step: dict[str, Any], chat: bool) -> dict[str, Any]:
    """`step`, or for a chat the texts around each BORDER on their own, then `step`."""
    border = {"type": "Split", "pattern": {"Regex": BORDER}, "behavior": "Removed", "invert": False}
    return {"type": "Sequence", "pretokenizers": [border, step]} if chat else step


def merges(tokens: list[bytes]) -> list[tuple[bytes, bytes]]:
    """The pair that each token of more than one byte is merged from, by rank: what it falls into when only tokens of
    lower rank are known."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    found = []
    for rank, token in enumerate(tokens):
        if len(token) == 1:
            continue
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(a + b, len(tokens)) for a, b in zip(parts, parts[1:], strict=False)]
            i = min(range(len(pairs)), key=pairs.__getitem__)
            if pairs[i] >= rank:
                raise UserError(f"token {rank} of the tokenizer ({token!r}) is no merge of two earlier ones")
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        found.append((parts[0], parts[1]))
    return found


def _written(token: bytes) -> str:
    return "".join(WRITTEN[byte] for byte in token)
