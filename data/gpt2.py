"""GPT-2's own tokenizer: its 50,257 ids are unchanged, and five of our specials come after them.

Radford et al. 2019. Made from `vocab.bpe`, the list of merges that OpenAI published; its end-of-text is our `<eos>`.
"""

import hashlib
import os
import tempfile
from pathlib import Path

from data.bpe import BPETokenizer
from data.errors import UserError
from data.sources import Remote, remote_file
from data.tokenizers import Special

MERGES = Remote(
    "vocab.bpe",
    "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe",
    456_318,
    "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
)
N_TOKENS = 50_256
VOCAB_SIZE = N_TOKENS + 1  # GPT-2's; ours has the five appended specials besides


# The character that stands for each byte in GPT-2's files: printable bytes as themselves, the others from U+0100 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
WRITTEN = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(0x100 + n) for n, byte in enumerate(_OTHERS)}


class GPT2Tokenizer(BPETokenizer):
    """`bpe` with GPT-2's merges and ids."""

    name = "gpt2"
    first_id = 0
    special = Special(eos=N_TOKENS, pad=N_TOKENS + 1, bos=N_TOKENS + 2, unk=N_TOKENS + 3, user=N_TOKENS + 4,
                      assistant=N_TOKENS + 5)  # fmt: skip

    def __init__(self, tokens: list[bytes], *pattern: str):
        if len(tokens) != N_TOKENS:
            raise UserError(f"not GPT-2's tokenizer: {len(tokens)} tokens instead of {N_TOKENS}")
        super().__init__(tokens, *pattern)


def load(merges: Path | None = None) -> GPT2Tokenizer:
    """GPT-2's tokenizer, from the file `merges` where it exists, else from `$CHARLM_DATA`, tiktoken's cache, this
    project's cache or, once, a download."""
    path = merges if merges and merges.is_file() else remote_file("gpt2-merges", MERGES, _tiktokens_copy())
    try:
        return GPT2Tokenizer(read_merges(path.read_text("utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def read_merges(text: str) -> list[bytes]:
    """The bytes of every token, by rank: the 256 bytes in GPT-2's order, then one token a line of `vocab.bpe`."""
    byte_of = {character: byte for byte, character in WRITTEN.items()}
    merges = [line.split() for line in text.split("\n")[1:] if line]
    try:
        merged = [bytes(byte_of[character] for character in left + right) for left, right in merges]
    except (KeyError, ValueError) as error:
        raise UserError(f"not GPT-2's list of merges: two tokens a line are expected ({error})") from error
    return [bytes([byte]) for byte in (*_PRINTABLE, *_OTHERS)] + merged


def _tiktokens_copy() -> Path | None:
    """The file in tiktoken's cache, under the SHA-1 of its address; None where tiktoken has not downloaded it."""
    names = ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR")
    folder = next((os.environ[name] for name in names if os.environ.get(name)), None)
    path = Path(folder or Path(tempfile.gettempdir(), "data-gym-cache")) / hashlib.sha1(MERGES.url.encode()).hexdigest()
    return path if path.is_file() else None
