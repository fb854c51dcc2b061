"""Token healing: the last token of a prompt is dropped, and the first drawn tokens have to give its bytes again.

In BPE a blank and the word after it are one token. A prompt that ends in a blank has the blank as a token of its own,
which training has seen before more white space alone; and a word that a prompt ends in may be the beginning of a longer
token. So the model chooses among all tokens that go on from the token before. Described in the manual of `guidance`
(Lundberg 2023).
"""

from collections.abc import Sequence

import numpy as np

from data.bpe import BPETokenizer
from data.tokenizers import Tokenizer

CONTEXT = 3  # tokens before the dropped one that may hold the beginning of its first character: of four bytes at most


class Healing:
    """What the first tokens after `kept`, which is `ids` without its last one, are held to: the bytes of the last one,
    `dropped`. Where nothing would be kept, `empty` is: what an empty prompt has.

    Allowed is a token that begins with these bytes. Where they are white space, one that is only their beginning is
    allowed too, and holds the next token to the rest: before a word the last blank of several belongs to the word."""

    def __init__(self, tokenizer: BPETokenizer, ids: Sequence[int], empty: Sequence[int]):
        self.tokenizer = tokenizer
        self.kept, self.dropped = list(ids[:-1] or empty), self._bytes_of(ids[-1])
        self._allowed: dict[bytes, np.ndarray] = {}
        before = self.kept[-CONTEXT:]
        self.shown = len(tokenizer.decode([*before, ids[-1]])) - len(tokenizer.decoder().feed(before))

    def allowed(self, held: bytes) -> np.ndarray:
        """Which ids may be drawn where `held` are the bytes still to be given, shape (V,)."""
        if held not in self._allowed:
            blank = not held.decode("utf-8", "ignore").strip()
            self._allowed[held] = np.zeros(self.tokenizer.vocab_size, bool)
            self._allowed[held][self.tokenizer.first_id :][: len(self.tokenizer.tokens)] = [
                token.startswith(held) or (blank and held.startswith(token)) for token in self.tokenizer.tokens
            ]
        return self._allowed[held]

    def after(self, held: bytes, id_: int) -> bytes:
        """What is still to be given after one more token."""
        return held[len(self._bytes_of(id_)) :]

    def is_new(self, held: bytes, id_: int) -> bool:
        """Whether a token gives more than what is held."""
        return len(self._bytes_of(id_)) > len(held)

    def _bytes_of(self, id_: int) -> bytes:
        return self.tokenizer.tokens[id_ - self.tokenizer.first_id]


def heal(tokenizer: Tokenizer, ids: Sequence[int], empty: Sequence[int]) -> Healing | None:
    """The healing of a prompt of these ids; None where nothing is to be healed: characters and bytes are no parts of
    longer tokens, and no text goes on from a special."""
    if not isinstance(tokenizer, BPETokenizer) or not ids:
        return None
    is_text = 0 <= ids[-1] - tokenizer.first_id < len(tokenizer.tokens)
    return Healing(tokenizer, ids, empty) if is_text else None
