"""Byte-level BPE: a tokenizer of words and merges learned from a text, and run by tiktoken.

Sennrich, Haddow & Birch 2016, over bytes as in GPT-2 (Radford et al. 2019): text is split into words by GPT-2's
pattern (words.py), and inside words the most frequent pair of tokens becomes one, again and again (merges.py). The six
specials keep the ids 0..5.
"""

import base64
import codecs
import functools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from data.errors import UserError, warn
from data.merges import N_BYTES, learn_tokens
from data.tokenizers import N_SPECIALS, TextDecoder, Tokenizer
from data.words import GPT2_PATTERN, long_blanks, split, whole_words

MAX_TOKENS = 1 << 20
MAX_DISTINCT = 1 << 24  # characters of distinct words to learn from: learning takes up to 150 bytes for each


class BPETokenizer(Tokenizer):
    """A tokenizer whose tokens are frequent sequences of bytes: `tokens[rank]` are the bytes of the token with the id
    first_id + rank. It knows every character."""

    name = "bpe"
    first_id = N_SPECIALS

    def __init__(self, tokens: list[bytes], pattern: str = GPT2_PATTERN):
        self.tokens, self.pattern = tokens, pattern
        self.vocab_size = N_SPECIALS + len(tokens)
        known = set(tokens)
        if len(known) != len(tokens) or any(bytes([b]) not in known for b in range(N_BYTES)):
            raise UserError("not a tokenizer of this project (damaged BPE): it needs every byte, and every token once")
        self._words = self._encoding(pattern)

    def encode(self, text: str, unknown: str = "error") -> np.ndarray:
        if not text.isascii():  # a lone surrogate, from a shell argument, becomes U+FFFD
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        pieces = [self._ranks(piece) for piece in whole_words([text])] or [np.zeros(0, np.uint32)]
        return (np.concatenate(pieces) + self.first_id).astype(self.dtype)

    def _ranks(self, text: str) -> np.ndarray:
        """The ranks of the tokens of `text`, (tokens,) uint32. It may be as long as tiktoken takes."""
        pieces, start = [], 0
        for blank, end in long_blanks(text):
            pieces.append(self._words.encode_to_numpy(text[start:blank], disallowed_special=()))
            pieces.append(self._one_word.encode_to_numpy(text[blank:end], disallowed_special=()))
            start = end
        pieces.append(self._words.encode_to_numpy(text[start:], disallowed_special=()))
        return np.concatenate(pieces)

    @functools.cached_property
    def _one_word(self):
        """tiktoken for a text that is a single word: without the pattern, which overflows on long runs of blanks."""
        return self._encoding(r"(?s).+")

    def _encoding(self, pattern: str):
        import tiktoken

        ranks = {token: rank for rank, token in enumerate(self.tokens)}
        return tiktoken.Encoding("charlm", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})

    def decoder(self) -> TextDecoder:
        return _BPEDecoder(self.tokens, self.first_id, self.special.unk)

    def characters(self) -> np.ndarray:
        counts = np.ones(self.vocab_size, np.int64)
        counts[self.special.never_predicted] = 0
        # A continuation byte belongs to a character begun before.
        begins = np.frombuffer(b"".join(self.tokens), np.uint8) & 0xC0 != 0x80
        begun = np.append(0, np.cumsum(begins))[np.cumsum([0, *map(len, self.tokens)])]  # before each token
        counts[self.first_id : self.first_id + len(self.tokens)] = np.diff(begun)
        return counts

    def n_bytes(self) -> np.ndarray:
        counts = np.zeros(self.vocab_size, np.int64)
        counts[self.first_id : self.first_id + len(self.tokens)] = [len(token) for token in self.tokens]
        return counts

    def to_json(self) -> dict[str, Any]:
        tokens = [base64.b64encode(token).decode("ascii") for token in self.tokens]
        return {"type": self.name, "pattern": self.pattern, "tokens": tokens}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "BPETokenizer":
        """The tokenizer that `to_json` described. Raises UserError for anything else."""
        tokens, pattern = stored.get("tokens"), stored.get("pattern")
        # Any other pattern would be a stranger's regular expression, run on the user's text.
        if pattern != GPT2_PATTERN or not isinstance(tokens, list) or len(tokens) > MAX_TOKENS:
            raise UserError("not a tokenizer of this project (damaged BPE)")
        try:
            return cls([base64.b64decode(token, validate=True) for token in tokens], pattern)
        except (TypeError, ValueError) as error:
            raise UserError("not a tokenizer of this project (damaged BPE): its tokens are not base64") from error


class _BPEDecoder(TextDecoder):
    def __init__(self, tokens: list[bytes], first_id: int, unk: int):
        self._tokens, self._first_id, self._unk = tokens, first_id, unk
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids: Iterable[int]) -> str:
        pieces = []
        for i in ids:
            if 0 <= i - self._first_id < len(self._tokens):
                pieces.append(self._utf8.decode(self._tokens[i - self._first_id]))
            elif i == self._unk:
                pieces.append(self.flush() + "\ufffd")
        return "".join(pieces)

    def flush(self) -> str:
        return self._utf8.decode(b"", True)


def size_of(name: str) -> int | None:
    """N of the tokenizer name 'bpe:N'; None for another name. Raises UserError for an invalid N."""
    kind, _, number = name.partition(":")
    if kind != "bpe":
        return None
    if not number.isascii() or not number.isdigit() or not N_BYTES <= int(number) <= MAX_TOKENS:
        raise UserError(
            f"--tokenizer {name}: write bpe:N, N being 256 bytes + merges, from {N_BYTES} to {MAX_TOKENS:,}"
        )
    return int(number)


def count_words(text: str) -> dict[str, int]:
    """The number of times that each word occurs in `text`, in the order of their first."""
    return dict(Counter(split(text)))


def learn(
    texts: Iterable[str], size: int, note: Callable[[str], None] = warn, each: Callable[..., Iterable[Any]] = map
) -> BPETokenizer:
    """The tokenizer of `size` tokens (256 bytes + merges) learned from `texts`; of fewer tokens where these make every
    word one token. Words beyond MAX_DISTINCT characters of distinct words are left out. Both are told to `note`.
    `each`: `map`, or one that counts the words of several texts at a time."""
    words: Counter[str] = Counter()
    distinct = left_out = 0  # characters
    for counts in each(count_words, whole_words(texts)):
        for word, count in counts.items():
            if word not in words:
                if distinct + len(word) > MAX_DISTINCT:
                    left_out += count * len(word)
                    continue
                distinct += len(word)
            words[word] += count
    tokens = learn_tokens({word.encode("utf-8", "replace"): n for word, n in words.items()}, size)
    if left_out:
        note(
            f"bpe:{size} learned from the first {distinct:,} characters of distinct words: "
            f"{left_out:,} characters of words that first occur later are left out"
        )
    if len(tokens) < size:
        note(f"bpe:{size} learned {len(tokens):,} tokens: they make every word of the training text one token")
    return BPETokenizer(tokens)
