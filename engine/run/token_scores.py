"""A token with its log-probability and the likeliest tokens in its place: as JSON, and as lines of a table; and the
score of a whole text as JSON. Imports no torch."""

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from engine.training.progress import Evaluation


class TokenScore(NamedTuple):
    """A token of a text: its own text (see `Run.token_text`), its negative log-likelihood in nats, how many characters
    it stands for, and the likeliest tokens in its place with their log-probabilities, where these were asked for."""

    text: str
    nll: float
    characters: int
    likeliest: tuple[tuple[str, float], ...] = ()

    @property
    def logprob(self) -> float:
        return -self.nll

    @property
    def bits(self) -> float:
        return self.nll / math.log(2)


def as_json(tokens: Sequence[TokenScore]) -> list[dict[str, Any]]:
    """The tokens with the names of OpenAI's chat interface; `top_logprobs` where the likeliest were asked for."""
    return [
        {"token": token.text, "logprob": token.logprob, "bits": token.bits, "characters": token.characters}
        | ({"top_logprobs": [{"token": text, "logprob": p} for text, p in token.likeliest]} if token.likeliest else {})
        for token in tokens
    ]


def total_as_json(score: Evaluation) -> dict[str, Any]:
    """The score of a text, without that of its tokens."""
    loss = score.loss if score.n_tokens else None
    facts = {"bits_per_char": score.bits_per_char, "nats_per_token": loss, "tokens": score.n_tokens}
    return facts | {"characters": score.n_characters}


def as_table(tokens: Sequence[TokenScore]) -> list[str]:
    """The tokens as lines with aligned columns below a heading; each begins with blanks, as no name does. Tokens are
    quoted as in JSON, so that a blank and a line end show."""
    rows = [[_quoted(token.text), *(f"{_quoted(text)} {math.exp(p):.1%}" for text, p in token.likeliest)]
            for token in tokens]  # fmt: skip
    heading = ["token", "likeliest"] if any(token.likeliest for token in tokens) else ["token"]
    widths = [max(len(cell) for cell in column if cell) for column in _columns([heading, *rows])]
    numbers = [f"{token.logprob:9.4f} {token.bits:8.3f} {math.exp(token.logprob):7.1%}" for token in tokens]
    lines = zip([f"{'logprob':>9} {'bits':>8} {'p':>7}", *numbers], [heading, *rows], strict=True)
    return ["  ".join([first, *map(str.ljust, row, widths)]).rstrip() for first, row in lines]


def _columns(rows: list[list[str]]) -> list[list[str]]:
    """The columns of rows of unequal lengths."""
    return [[row[n] for row in rows if n < len(row)] for n in range(max(map(len, rows)))]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
