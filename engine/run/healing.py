"""Token healing: the last token of a prompt is dropped, and the first new tokens have to begin with its bytes.

In BPE a blank and the word after it are one token. A prompt that ends in a blank has the blank as a token of its own,
which in training occurs only before more white space; and the last word of a prompt may be the beginning of a longer
token. So the model chooses among all tokens that may follow the token before. Described in the manual of `guidance`
(Lundberg 2023).
"""

from collections.abc import Sequence

import numpy as np

from data.bpe import BPETokenizer
from data.tokenizers import Tokenizer

CONTEXT = 3  # tokens before the dropped one that may have the beginning of its first character, of at most four bytes


class Healing:
    """The healing of the prompt `ids`: `shortened` is the prompt without its last token, or `empty`, the ids of an
    empty prompt, where nothing is left; `dropped` are the bytes of the last token, with which the new tokens have to
    begin.

    A token that begins with the required bytes is allowed. Where they are white space, a token that is only their
    beginning is allowed too, and the next token has to begin with the rest: of several blanks before a word, the last
    one belongs to the token of the word."""

    def __init__(self, tokenizer: BPETokenizer, ids: Sequence[int], empty: Sequence[int]):
        self.tokenizer = tokenizer
        self.shortened, self.dropped = list(ids[:-1] or empty), self._bytes_of(ids[-1])
        self._allowed: dict[bytes, np.ndarray] = {}
        context = self.shortened[-CONTEXT:]
        self.shown = len(tokenizer.decode([*context, ids[-1]])) - len(tokenizer.decoder().feed(context))

    def allowed(self, required: bytes) -> np.ndarray:
        """A mask (V,) of the ids that may be drawn while the bytes `required` are missing."""
        if required not in self._allowed:
            blank = not required.decode("utf-8", "ignore").strip()
            self._allowed[required] = np.zeros(self.tokenizer.vocab_size, bool)
            self._allowed[required][self.tokenizer.first_id :][: len(self.tokenizer.tokens)] = [
                token.startswith(required) or (blank and required.startswith(token)) for token in self.tokenizer.tokens
            ]
        return self._allowed[required]

    def rest(self, required: bytes, id_: int) -> bytes:
        """The bytes that are still required after one more token."""
        return required[len(self._bytes_of(id_)) :]

    def is_new(self, required: bytes, id_: int) -> bool:
        """Whether a token has more bytes than are required."""
        return len(self._bytes_of(id_)) > len(required)

    def _bytes_of(self, id_: int) -> bytes:
        return self.tokenizer.tokens[id_ - self.tokenizer.first_id]


def heal(tokenizer: Tokenizer, ids: Sequence[int], empty: Sequence[int]) -> Healing | None:
    """The healing of the prompt `ids`; None where there is nothing to heal: only BPE has tokens that begin with other
    tokens, and after a special there is no text to continue."""
    if not isinstance(tokenizer, BPETokenizer) or not ids:
        return None
    is_text = 0 <= ids[-1] - tokenizer.first_id < len(tokenizer.tokens)
    return Healing(tokenizer, ids, empty) if is_text else None
