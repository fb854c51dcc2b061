"""Byte-level BPE: learning the merges, and the tokenizer that tiktoken runs with them.

Sennrich, Haddow & Birch 2016, over bytes as in GPT-2 (Radford et al. 2019): text is split into words by GPT-2's
pattern, and inside words the most frequent pair of tokens becomes one, again and again. The six specials keep the ids
0..5.
"""

import base64
import codecs
import functools
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from data.errors import UserError
from data.tokenizers import N_SPECIALS, Decoder, Tokenizer

N_BYTES = 256
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
MAX_TOKENS = 1 << 20


class BPETokenizer(Tokenizer):
    """One token a frequent run of bytes: `tokens[rank]` are its bytes, and its id is first_id + rank. No character is
    ever unknown."""

    name = "bpe"
    first_id = N_SPECIALS

    def __init__(self, tokens: list[bytes], pattern: str = GPT2_PATTERN):
        import tiktoken

        self.tokens, self.pattern = tokens, pattern
        self.vocab_size = N_SPECIALS + len(tokens)
        ranks = {token: rank for rank, token in enumerate(tokens)}
        if len(ranks) != len(tokens) or any(bytes([b]) not in ranks for b in range(N_BYTES)):
            raise UserError("not a tokenizer of this project (damaged BPE): it needs every byte, and every token once")
        self._encoding = tiktoken.Encoding("charlm", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})

    def encode(self, text: str, unknown: str = "error") -> np.ndarray:
        if not text.isascii():  # a lone surrogate, from a shell argument, becomes U+FFFD
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        ranks = self._encoding.encode_to_numpy(text, disallowed_special=())
        return (ranks + self.first_id).astype(self.dtype)

    def decoder(self) -> Decoder:
        return _BPEDecoder(self.tokens, self.first_id, self.special.unk)

    def characters(self) -> np.ndarray:
        counts = np.ones(self.vocab_size, np.int64)
        counts[self.special.never_predicted] = 0
        # A continuation byte belongs to a character begun before.
        counts[self.first_id : self.first_id + len(self.tokens)] = [
            sum(byte & 0xC0 != 0x80 for byte in token) for token in self.tokens
        ]
        return counts

    def to_json(self) -> dict[str, Any]:
        tokens = [base64.b64encode(token).decode("ascii") for token in self.tokens]
        return {"type": self.name, "pattern": self.pattern, "tokens": tokens}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "BPETokenizer":
        """What `to_json` wrote. Raises UserError for anything else."""
        tokens, pattern = stored.get("tokens"), stored.get("pattern")
        # Any other pattern would be a stranger's regular expression, run on the user's text.
        if pattern != GPT2_PATTERN or not isinstance(tokens, list) or len(tokens) > MAX_TOKENS:
            raise UserError("not a tokenizer of this project (damaged BPE)")
        try:
            return cls([base64.b64decode(token, validate=True) for token in tokens], pattern)
        except (TypeError, ValueError) as error:
            raise UserError("not a tokenizer of this project (damaged BPE): its tokens are not base64") from error


class _BPEDecoder(Decoder):
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
    """N of the tokenizer name 'bpe:N'; None for another name. Raises UserError for an N that cannot be."""
    kind, _, number = name.partition(":")
    if kind != "bpe":
        return None
    if not number.isascii() or not number.isdigit() or not N_BYTES <= int(number) <= MAX_TOKENS:
        raise UserError(
            f"--tokenizer {name}: write bpe:N, N being 256 bytes + merges, from {N_BYTES} to {MAX_TOKENS:,}"
        )
    return int(number)


def learn(texts: Iterable[str], size: int) -> BPETokenizer:
    """The tokenizer of `size` tokens (256 bytes + merges, fewer when every word is one token) learned from `texts`."""
    words: Counter[str] = Counter()
    for text in whole_words(texts):
        words.update(_splitter().findall(text))
    return BPETokenizer(learn_tokens({word.encode("utf-8", "replace"): n for word, n in words.items()}, size))


def learn_tokens(words: Mapping[bytes, int], size: int) -> list[bytes]:
    """The 256 bytes, then merges until there are `size` tokens, by how often their pair occurs in the counted words (of
    equally frequent pairs the one made of earlier tokens)."""
    tokens = [bytes([b]) for b in range(N_BYTES)]
    known = {token: i for i, token in enumerate(tokens)}
    parts, counts = [list(word) for word in words], list(words.values())
    pairs: Counter[tuple[int, int]] = Counter()
    where: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    for w, part in enumerate(parts):
        for pair in zip(part, part[1:], strict=False):
            pairs[pair] += counts[w]
            where[pair].add(w)
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    while heap and len(tokens) < size:
        count, pair = heapq.heappop(heap)
        if -count != pairs[pair]:  # it has changed since it was pushed
            if pairs[pair] > 0:
                heapq.heappush(heap, (-pairs[pair], pair))
            continue
        merged = tokens[pair[0]] + tokens[pair[1]]
        new = known.setdefault(merged, len(tokens))  # other pieces may have made the same bytes before
        if new == len(tokens):
            tokens.append(merged)
        changed = set()
        for w in where.pop(pair):
            changed |= _merge(parts[w], pair, new, counts[w], pairs, where, w)
        del pairs[pair]
        for other in changed - {pair}:
            heapq.heappush(heap, (-pairs[other], other))
    return tokens


def _merge(part: list[int], pair: tuple[int, int], new: int, count: int, pairs: Counter, where: dict, word: int) -> set:
    """Put `new` for `pair` throughout a word, and keep the pairs' counts; the pairs that grew."""
    before = list(zip(part, part[1:], strict=False))
    i = 0
    while i < len(part) - 1:
        if (part[i], part[i + 1]) == pair:
            part[i : i + 2] = [new]
        i += 1
    after = list(zip(part, part[1:], strict=False))
    for old in before:
        pairs[old] -= count
    for now in after:
        pairs[now] += count
        where[now].add(word)
    return {now for now in after if new in now}


def whole_words(chunks: Iterable[str]) -> Iterator[str]:
    """The same text in chunks that no word of GPT-2's pattern crosses, so that each may be encoded by itself."""
    held = ""
    for chunk in chunks:
        held += chunk
        cut = next((i for i in range(len(held) - 1, 0, -1) if held[i].isspace() and not held[i - 1].isspace()), 0)
        if cut:
            yield held[:cut]
            held = held[cut:]
    if held:
        yield held


@functools.cache
def _splitter():
    import regex

    return regex.compile(GPT2_PATTERN)
