"""Turning drawn ids into text: the text that is final so far, its end, and the reason for its end."""

import sys
from collections.abc import Sequence

from data.tokenizers import Tokenizer
from engine.run.healing import CONTEXT, Healing


class Writer:
    """Turns the ids of one sample into the text that is final so far: no incomplete character, nothing that may become
    a stop text, and not the end of a healed prompt, which is shown already.

    `end` is None while the sample goes on, then 'eos', 'stop' or 'length'; `ids` are those so far, an `<eos>` too. In
    the first `min_new_tokens` stop texts are ignored."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: str | Sequence[str] | None = None,
        max_new_tokens: int | None = None,
        min_new_tokens: int = 0,
        healing: Healing | None = None,
    ):
        self.decoder, self.eos = tokenizer.decoder(), tokenizer.special.eos
        self.stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
        self.min_new_tokens, self.max_new_tokens, self.n_new = min_new_tokens, max_new_tokens, 0
        self.end: str | None = None
        self.ids: list[int] = []
        self._pending = ""  # what may be the beginning of a stop text
        self._healing, self._required, self._hidden = healing, b"", 0
        if healing is not None:
            self._required, self._hidden = healing.dropped, healing.shown
            self.decoder.feed(healing.shortened[-CONTEXT:])

    @property
    def left(self) -> int:
        """How many more tokens there may be."""
        return sys.maxsize if self.max_new_tokens is None else self.max_new_tokens - self.n_new

    def write(self, id_: int) -> str:
        """The text that one more id makes final; empty after the end."""
        if self.end:
            return ""
        self.ids.append(id_)
        if id_ == self.eos:
            return self.close("eos")
        self.n_new += self._count(id_)
        text = self._show(self.decoder.feed([id_]))
        if not self.end and self.n_new == self.max_new_tokens:
            text += self.close("length")
        return text

    def close(self, reason: str = "length") -> str:
        """The rest of the text, after the last id."""
        if self.end:
            return ""
        text = self._show(self.decoder.flush())
        self.end = self.end or reason
        pending, self._pending = self._pending, ""
        return text + pending

    def _count(self, id_: int) -> bool:
        if self._healing is None or not self._required:
            return True
        is_new = self._healing.is_new(self._required, id_)
        self._required = self._healing.rest(self._required, id_)
        return is_new

    def _show(self, text: str) -> str:
        hidden = min(self._hidden, len(text))
        self._hidden -= hidden
        text = self._pending + text[hidden:]
        if not self.stops or self.n_new <= self.min_new_tokens:
            return text
        if found := [text.index(stop) for stop in self.stops if stop in text]:
            self.end, self._pending = "stop", ""
            return text[: min(found)]
        n_pending = max(_overlap(text, stop) for stop in self.stops)
        self._pending = text[len(text) - n_pending :]
        return text[: len(text) - n_pending]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if stop.startswith(text[-n:])), 0)


def until_end(row: list[int], eos: int) -> list[int]:
    """The ids before the first `<eos>`."""
    return row[: row.index(eos)] if eos in row else row
