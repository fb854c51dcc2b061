"""Text to token ids and back: the six specials, the character and the byte tokenizer.

Ids 0..5 are the specials in every vocabulary made here, so that fine-tuning needs no new ids. Text never encodes to a
special: only the loaders insert `<bos>` and `<eos>`.
"""

import codecs
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from data.errors import UserError

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<assistant>")
N_SPECIALS = len(SPECIALS)


class Special(NamedTuple):
    """The ids of the six specials: 0..5, except in GPT-2's vocabulary."""

    pad: int = 0
    bos: int = 1
    eos: int = 2
    unk: int = 3
    user: int = 4
    assistant: int = 5

    @property
    def never_predicted(self) -> list[int]:
        """The ids of all specials but `<eos>`."""
        return [i for i in self if i != self.eos]


PAD, BOS, EOS, UNK, USER, ASSISTANT = Special()
NEVER_PREDICTED = Special().never_predicted
# In the place of a stream's start text: its documents end in <eos>, and an empty prompt stands after one.
AFTER_EOS = SPECIALS[EOS]
_CODE_POINTS = 0x110000
# Where accents stand in each Unicode form.
_FORMS: dict[Literal["NFC", "NFD"], str] = {"NFC": "part of their letters", "NFD": "apart from their letters"}


class Tokenizer:
    """The interface of every tokenizer: `vocab_size`, `encode`, `decode`, `decoder`, `characters`, `to_json`."""

    name: str
    vocab_size: int
    special = Special()

    @property
    def specials(self) -> dict[str, int]:
        """The id of each special, by name."""
        return dict(zip(SPECIALS, self.special, strict=True))

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """The narrower of uint16 and uint32 that holds every id."""
        return np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

    def encode(self, text: str, unknown: str = "error") -> np.ndarray:
        """The ids of `text`, (tokens,). A character outside the vocabulary raises UserError ('error'), is left out
        ('skip') or becomes `<unk>` ('mask'), as `unknown` says."""
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; specials give nothing, except `<unk>`, which gives U+FFFD."""
        decoder = self.decoder()
        return decoder.feed(ids) + decoder.flush()

    def decoder(self) -> "TextDecoder":
        """A new incremental decoder, which never returns part of a character."""
        raise NotImplementedError

    def token_text(self, id_: int) -> str:
        """The text of one token: of a special its name, of one with only a part of a character `token:ID`."""
        for name, special in self.specials.items():
            if id_ == special:
                return name
        text = self.decode([id_])
        return f"token:{id_}" if "\ufffd" in text or not text else text

    def start_ids(self, start: str) -> list[int]:
        """The ids of an empty prompt of a stream: those of its start text, or `<eos>` for AFTER_EOS."""
        return [self.special.eos] if start == AFTER_EOS else self.encode(start).tolist()

    def characters(self) -> np.ndarray:
        """The number of characters of each id, (vocab_size,), by which bits per character are computed. `<eos>` counts
        as one (the line end), the other specials as none."""
        raise NotImplementedError

    def n_bytes(self) -> np.ndarray:
        """The number of UTF-8 bytes of each id, (vocab_size,), by which bits per byte are computed. The specials count
        as none."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """The tokenizer as JSON, for `vocabulary.from_json`."""
        raise NotImplementedError

    def other_form(self, text: str) -> str:
        """Advice where characters of `text` are unknown because of its Unicode form: an accented letter may be one
        character (NFC) or two (NFD), and both look the same. Empty where the form is not the reason."""
        return ""


class TextDecoder:
    """An incremental decoder: ids in, text out, a few at a time."""

    def feed(self, ids: Iterable[int]) -> str:
        """The text of these ids, up to the last complete character."""
        raise NotImplementedError

    def flush(self) -> str:
        """The rest at the end (U+FFFD for an incomplete character)."""
        return ""


class CharTokenizer(Tokenizer):
    """A tokenizer of one token a Unicode character. Ids follow the order of code points, or with `in_order` that of
    `characters`."""

    name = "char"

    def __init__(self, characters: Iterable[str], in_order: bool = False):
        self.alphabet = "".join(dict.fromkeys(characters) if in_order else sorted(set(characters)))
        if any("\ud800" <= character <= "\udfff" for character in self.alphabet):
            # Two of them in a row in JSON are read as one character, which would shift every later id.
            raise UserError("not a tokenizer of this project: its alphabet has halves of characters (surrogates)")
        self.vocab_size = N_SPECIALS + len(self.alphabet)
        codes = _code_points(self.alphabet)
        # A flat table over all of Unicode, 4.4 MB: one gather encodes 59 million characters a second.
        self._ids = np.full(_CODE_POINTS, UNK, np.uint32)
        self._ids[codes] = np.arange(N_SPECIALS, self.vocab_size, dtype=np.uint32)
        self._text = [""] * N_SPECIALS + list(self.alphabet)
        self._text[UNK] = "\ufffd"

    def extended(self, characters: Iterable[str]) -> "CharTokenizer":
        """A tokenizer with the same ids, followed by those of the new ones among `characters`."""
        return CharTokenizer(self.alphabet + "".join(sorted(set(characters) - set(self.alphabet))), in_order=True)

    def encode(self, text: str, unknown: str = "error") -> np.ndarray:
        ids = self._ids[_code_points(text)].astype(self.dtype)
        if unknown == "mask":
            return ids
        foreign = ids == UNK
        if not foreign.any():
            return ids
        if unknown == "skip":
            return ids[~foreign]
        position = int(foreign.argmax())
        problem = f"character {text[position]!r} (position {position}) is not in this model's vocabulary of"
        problem, hint = f"{problem} {len(self.alphabet)}", self.other_form(text)
        raise UserError(
            f"{problem}; {hint + ', or ' if hint else ''}use --unknown skip",
            neutral=f"{problem}{'; ' + hint if hint else ''}",
            field="prompt",
        )

    def other_form(self, text: str) -> str:
        for form, placement in _FORMS.items():
            other = unicodedata.normalize(form, text)
            if other != text and self._count_unknown(other) < self._count_unknown(text):
                return f"it was trained on accents {placement} ({form}), so write the text in that form"
        return ""

    def _count_unknown(self, text: str) -> int:
        return int((self._ids[_code_points(text)] == UNK).sum())

    def decoder(self) -> "TextDecoder":
        return _CharDecoder(self._text)

    def characters(self) -> np.ndarray:
        counts = np.ones(self.vocab_size, np.int64)
        counts[NEVER_PREDICTED] = 0
        return counts

    def n_bytes(self) -> np.ndarray:
        return np.array([0] * N_SPECIALS + [len(character.encode("utf-8")) for character in self.alphabet])

    def to_json(self) -> dict[str, Any]:
        return {"type": self.name, "characters": self.alphabet}


class ByteTokenizer(Tokenizer):
    """A tokenizer of one token a UTF-8 byte: 256 of them after the specials. It knows every character."""

    name = "byte"
    vocab_size = N_SPECIALS + 256

    def encode(self, text: str, unknown: str = "error") -> np.ndarray:
        raw = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
        return raw.astype(self.dtype) + self.dtype(N_SPECIALS)

    def decoder(self) -> "TextDecoder":
        return _ByteDecoder()

    def characters(self) -> np.ndarray:
        counts = np.ones(self.vocab_size, np.int64)
        counts[NEVER_PREDICTED] = 0
        counts[N_SPECIALS + 0x80 : N_SPECIALS + 0xC0] = 0  # continuation bytes belong to a character begun before
        return counts

    def n_bytes(self) -> np.ndarray:
        return np.array([0] * N_SPECIALS + [1] * 256)

    def to_json(self) -> dict[str, Any]:
        return {"type": self.name}


class _CharDecoder(TextDecoder):
    def __init__(self, text: Sequence[str]):
        self._text = text

    def feed(self, ids: Iterable[int]) -> str:
        return "".join(self._text[i] for i in ids)


class _ByteDecoder(TextDecoder):
    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids: Iterable[int]) -> str:
        pieces = []
        for i in ids:
            if i >= N_SPECIALS:
                pieces.append(self._utf8.decode(bytes([i - N_SPECIALS])))
            elif i == UNK:
                pieces.append(self.flush() + "\ufffd")
        return "".join(pieces)

    def flush(self) -> str:
        return self._utf8.decode(b"", True)


def _code_points(text: str) -> np.ndarray:
    """The code points of `text`, (characters,) uint32; a lone surrogate (of a shell argument) is kept."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
