"""Conversations as tokens: how a turn is written down, and which tokens are the model's to predict.

A conversation is `<bos>`, then its turns. chatml and alpaca open the user's with `<user>` and the answer with
`<assistant>`, one special token each, which no text can contain; every answer ends with `<eos>`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.batches import IGNORE
from data.conversations import Turn
from data.rows import Row
from data.tokenizers import Tokenizer

TEMPLATES = ("chatml", "alpaca", "plain")


class Template(NamedTuple):
    """One of `TEMPLATES` with the tokenizer it is written in. Unknown characters become `<unk>`."""

    name: str
    tokenizer: Tokenizer

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Ids of turns that end with the user's, up to where the answer begins."""
        return np.concatenate(self._pieces(turns)).tolist()

    def row(self, turns: Sequence[Turn], last_alone: bool = False, prompt_weight: float = 0.0) -> Row:
        """Tokens and targets of turns that end with an answer: the targets are the answers that are learned, or the
        last one alone, and their `<eos>`, known characters only, and IGNORE elsewhere. With a `prompt_weight` the
        characters of the other turns are targets too, of this weight; the markers around them are given, not
        learned."""
        pieces, special = self._pieces(turns), self.tokenizer.special
        ids, lengths = np.concatenate(pieces).astype(np.int64), [len(piece) for piece in pieces]
        answers = [turn.role == "assistant" and not (last_alone and turn is not turns[-1]) for turn in turns]
        learned = np.repeat([True, *(turn.learned for turn in turns)], lengths)
        answered = np.repeat([False, *answers], lengths) & learned
        if not prompt_weight:
            return Row(ids[:-1], np.where(answered & (ids != special.unk), ids, IGNORE)[1:])
        targets = np.where(np.isin(ids, special.never_predicted) | ~learned, IGNORE, ids)
        return Row(ids[:-1], targets[1:], np.where(answered, 1.0, prompt_weight).astype(np.float32)[1:])

    def question(self, turns: Sequence[Turn]) -> Row:
        """The prompt of these turns as a row whose one target, `<eos>`, marks where the answer begins."""
        tokens = np.array(self.prompt(turns), np.int64)
        targets = np.full_like(tokens, IGNORE)
        targets[-1] = self.tokenizer.special.eos
        return Row(tokens, targets)

    def _pieces(self, turns: Sequence[Turn]) -> list[np.ndarray]:
        return [np.array([self.tokenizer.special.bos], np.int64), *map(self._turn, turns)]

    def _turn(self, turn: Turn) -> np.ndarray:
        special, ids = self.tokenizer.special, self.tokenizer.encode(written(turn, self.name), "mask")
        if turn.role == "assistant":
            return np.append(ids, special.eos)
        if turn.role == "system" or self.name == "plain":
            return ids
        return np.concatenate([[special.user], ids, [special.assistant]])


def written(turn: Turn, template: str) -> str:
    """The text of a turn as it stands in a conversation."""
    if template == "alpaca" and turn.role == "user":
        more = f"### Input:\n{turn.input}\n\n" if turn.input else ""
        return f"### Instruction:\n{turn.text}\n\n{more}### Response:\n"
    if template == "alpaca" and turn.role == "system":
        return f"{turn.text}\n\n"
    return turn.whole


def without_oldest(turns: Sequence[Turn]) -> tuple[Turn, ...] | None:
    """The turns without the user's first and what was answered, None where there is only one; a system message
    stays."""
    system, rest = turns[: turns[0].role == "system"], turns[turns[0].role == "system" :]
    return (*system, *rest[2:]) if len(rest) > 2 else None
