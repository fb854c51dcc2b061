"""The log-probabilities of tokens after others, and of the likeliest in their place."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from makemore.base import LOGITS_AT_ONCE, PART, LanguageModel, precise


class Probable(NamedTuple):
    """The log-probability of a token, and the ids of the likeliest tokens in its place with theirs."""

    logprob: float
    likeliest: list[tuple[int, float]]


@torch.inference_mode()
def log_probabilities(
    model: LanguageModel, read: Tensor, ids: Tensor, count: int, suppressed: Sequence[int] = ()
) -> list[Probable]:
    """The log-probability of each of `ids` (N,), N >= 1, after those `read` (T,), T >= 1, and the ids before it, with
    the `count` likeliest in its place. What is `suppressed` has none. They are the model's own, before temperature and
    what else shapes a draw. The logits of a part of a long text are held at a time."""
    never = torch.tensor(suppressed, dtype=torch.int64, device=ids.device)
    logits, state = model.read_last(read[None])
    found = _among(logits, ids[:1], count, never)
    size = max(1, min(PART, LOGITS_AT_ONCE // model.vocab_size))
    for start in range(1, len(ids), size):
        targets = ids[start : start + size]
        out = model.read(ids[None, start - 1 : start - 1 + len(targets)], state)
        assert out.logits is not None  # `read` gives them always
        state = out.state
        found += _among(out.logits[0], targets, count, never)
    return found


def largest(log_p: Tensor, count: int) -> list[tuple[int, float]]:
    """The ids of the `count` largest of `log_p` (V,) with their values; what cannot be, at -inf, is not among them."""
    top = log_p.topk(min(count, len(log_p)))
    return [(i, value) for i, value in zip(top.indices.tolist(), top.values.tolist(), strict=True) if value > -math.inf]


def _among(logits: Tensor, targets: Tensor, count: int, never: Tensor) -> list[Probable]:
    """Those of `targets` (T,) under `logits` (T, V)."""
    log_p = logits.to(precise(logits.device)).index_fill(-1, never, -math.inf).log_softmax(-1)
    own = log_p.gather(-1, targets[:, None])[:, 0].tolist()
    return [Probable(value, largest(row, count) if count else []) for value, row in zip(own, log_p, strict=True)]
