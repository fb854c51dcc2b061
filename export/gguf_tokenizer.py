"""A tokenizer as llama.cpp reads it: byte pairs, with merges that build what this project's tokenizers have.

llama.cpp has no tokenizer of characters. One of byte pairs is one, if the bytes of each character are merged, from the
first on, and nothing else is: what is in between need not be a token. A character outside the vocabulary is left out
there, where ours has `<unk>`.
"""

from typing import Any

from data.bpe import BPETokenizer
from data.errors import UserError
from data.gpt2 import WRITTEN
from data.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer
from export.hub_tokenizer import merges

# A merge of bytes that no text has, since llama.cpp refuses an empty list.
UNREACHED = f"{WRITTEN[0xFF]} {WRITTEN[0xFF]}"


def vocabulary(tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """The tokens by id, specials by their names, and the merges by rank, bytes as GPT-2's files write them."""
    tokens = {id_: name for name, id_ in tokenizer.specials.items()}
    if isinstance(tokenizer, CharTokenizer):
        texts = [character.encode() for character in tokenizer.alphabet]
        first, pairs = tokenizer.vocab_size - len(texts), _pairs_of(texts)
    elif isinstance(tokenizer, ByteTokenizer):
        texts, pairs = [bytes([byte]) for byte in range(256)], []
        first = tokenizer.vocab_size - len(texts)
    elif isinstance(tokenizer, BPETokenizer):
        texts, first = tokenizer.tokens, tokenizer.first_id
        pairs = merges(texts)
    else:
        raise UserError(f"a tokenizer '{tokenizer.name}' has no counterpart in llama.cpp")
    tokens |= {first + rank: _written(text) for rank, text in enumerate(texts)}
    return [tokens[id_] for id_ in range(tokenizer.vocab_size)], [f"{_written(a)} {_written(b)}" for a, b in pairs] or [
        UNREACHED
    ]


def add(writer: Any, tokenizer: Tokenizer, n_ids: int, starts: str, template: str | None) -> None:
    """Write the first `n_ids` ids of the tokenizer into a GGUFWriter. `starts`: the special that a text begins with, or
    ''; `template`: of a chat, in Jinja."""
    import gguf

    tokens, pairs = vocabulary(tokenizer)
    special = tokenizer.special
    kinds = [gguf.TokenType.CONTROL if id_ in special else gguf.TokenType.NORMAL for id_ in range(n_ids)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens[:n_ids])
    writer.add_token_types(kinds)
    writer.add_token_merges(pairs)
    first = tokenizer.specials[starts or "<bos>"]
    for put, id_ in (
        (writer.add_bos_token_id, first if first < n_ids else special.eos), (writer.add_eos_token_id, special.eos),
        (writer.add_pad_token_id, special.pad), (writer.add_unk_token_id, special.unk),
    ):  # fmt: skip
        if id_ < n_ids:
            put(id_)
    writer.add_add_bos_token(bool(starts))
    writer.add_add_eos_token(False)
    if template:
        writer.add_chat_template(template)


def _pairs_of(texts: list[bytes]) -> list[tuple[bytes, bytes]]:
    """What builds each text from its bytes, from the first on."""
    found = {(text[:end], text[end : end + 1]): None for text in texts for end in range(1, len(text))}
    return list(found)


def _written(token: bytes) -> str:
    return "".join(WRITTEN[byte] for byte in token)
