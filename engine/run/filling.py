"""Filling the gaps of a text: what a model that reads both ways says of tokens that are hidden.

The surest gap first, then the rest with it in place (after Ghazvininejad et al., "Mask-Predict", 2019): two gaps side
by side are not filled as if neither knew of the other.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from data.errors import UserError
from data.tokenizers import Tokenizer
from engine.run.likeliest import largest
from engine.run.token_scores import TokenScore
from makemore.base import LanguageModel, precise


class Gap(NamedTuple):
    """A gap: the token that was put there, the log-probability that it had then, and the likeliest tokens while all
    gaps were open, with theirs."""

    token: int
    logprob: float
    likeliest: list[tuple[int, float]]


class Filled(NamedTuple):
    """A text with its gaps filled, and what was put into each, as in `Gap`."""

    text: str
    gaps: list[TokenScore]


def with_gaps(tokenizer: Tokenizer, text: str, gap: str, unknown: str, first: list[int]) -> tuple[list[int], list[int]]:
    """The ids of a text after those of `first`, with `<unk>` for each `gap`, and the places of these. Raises UserError
    for a text without one."""
    if gap not in text:
        raise UserError(f"--fill has no gap: put a {gap} where a token is missing, or name another --gap")
    if unknown == "error":  # of the whole text, so that a message counts its characters
        known = tokenizer.decode([len(tokenizer.special)])
        tokenizer.encode(text.replace(gap, known), unknown)
    ids, places = list(first), []
    for part in text.split(gap):
        ids += tokenizer.encode(part, unknown).tolist()
        places.append(len(ids))
        ids.append(tokenizer.special.unk)
    return ids[:-1], places[:-1]  # nothing is missing after the last part


def put_in(tokenizer: Tokenizer, text: str, gap: str, tokens: Sequence[int]) -> str:
    """`text` with the `tokens` in the place of its gaps; what the model does not know stays. Gaps side by side may hold
    the parts of one character, and are decoded together."""
    parts = text.split(gap)
    written, together = [parts[0]], []
    for part, token in zip(parts[1:], tokens, strict=True):
        together.append(token)
        if part:
            written += [tokenizer.decode(together), part]
            together = []
    return "".join(written) + tokenizer.decode(together)


@torch.inference_mode()
def fill(
    model: LanguageModel, tokens: Tensor, places: list[int], count: int, never: list[int]
) -> tuple[list[int], list[Gap]]:
    """The `tokens` (T,) with those at `places`, which are `<unk>`, replaced; and each gap in the order of the places,
    with the `count` likeliest. The ids `never` are not put in."""
    tokens, found = tokens.clone(), {}
    likely: dict[int, list[tuple[int, float]]] = {}
    still_open = list(places)
    while still_open:
        log_p = _read(model, tokens, never)
        likely = likely or {place: largest(log_p[place], count) if count else [] for place in places}
        place = still_open.pop(int(log_p[still_open].amax(-1).argmax()))
        token = int(log_p[place].argmax())
        found[place] = Gap(token, float(log_p[place, token]), likely[place])
        tokens[place] = token
    return tokens.tolist(), [found[place] for place in places]


def _read(model: LanguageModel, tokens: Tensor, never: list[int]) -> Tensor:
    """The log-probabilities (T, V) of what stands at each place of `tokens` (T,)."""
    logits = model(tokens[None]).logits[0].to(precise(tokens.device))
    return logits.index_fill(-1, torch.tensor(never, device=tokens.device), -torch.inf).log_softmax(-1)
