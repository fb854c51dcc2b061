"""The settings of sampling, and one draw from logits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.run.arguments import demand, is_number, is_whole
from engine.run.noise import Noise
from kernels.step import draws
from makemore.compiled import draw_compiled

MAX_TEMPERATURE = 1000.0  # nearly uniform
MIN_TEMPERATURE = 1e-30  # greedy, like any lower one, but logits divided by it stay finite


@dataclass(frozen=True)
class Sampling:
    """The settings with which the next token is drawn. Raises UserError for values outside their range."""

    temperature: float = 1.0  # 0: greedy
    top_k: int | None = None  # from the k likeliest tokens
    top_p: float | None = None  # from the likeliest that together reach p (Holtzman et al. 2020)
    min_p: float | None = None  # from those at least min_p times as likely as the likeliest (Nguyen et al. 2024)
    repetition_penalty: float = 1.0  # divides the positive logits of earlier tokens (Keskar et al. 2019)

    def __post_init__(self) -> None:
        demand(
            is_number(self.temperature, 0, MAX_TEMPERATURE),
            "temperature",
            self.temperature,
            f"a number from 0 (the likeliest) to {MAX_TEMPERATURE}",
        )
        k, top, least, penalty = self.top_k, self.top_p, self.min_p, self.repetition_penalty
        demand(k is None or is_whole(k, 1, math.inf), "top_k", k, "a whole number, at least 1")
        demand(top is None or (is_number(top, 0, 1) and top > 0), "top_p", top, "a number above 0 and at most 1")
        demand(least is None or is_number(least, 0, 1), "min_p", least, "a number from 0 to 1")
        demand(
            is_number(penalty, 0.01, 100), "repetition_penalty", penalty, "a number from 0.01 to 100 (1: no penalty)"
        )

    @property
    def compiled(self) -> draws.Sampling:
        """The same for compiled code."""
        temperature = max(self.temperature, MIN_TEMPERATURE) if self.temperature else 0.0
        return draws.settings(temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)


def draw(logits: Tensor, sampling: Sampling, noises: Sequence[Noise], seen: Tensor) -> Tensor:
    """One token a row, (B,), drawn from `logits` (B, V); `seen` (B, V) marks the tokens that the repetition penalty
    applies to. `noises`: the random numbers of the rows, in their order."""
    race = None
    if sampling.temperature != 0:
        race = noises[0].next() if len(noises) == 1 else torch.cat([noise.next() for noise in noises])
    token = draw_compiled(logits, race, sampling.compiled, seen)
    if token is not None:
        return token
    if sampling.repetition_penalty != 1.0:
        penalised = torch.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
        logits = torch.where(seen, penalised, logits)
    if race is None:
        return logits.argmax(-1)  # of several the first
    if sampling.temperature != 1.0:
        logits = logits / max(sampling.temperature, MIN_TEMPERATURE)
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        top = logits.topk(sampling.top_k)  # exactly k, also among equals
        logits = torch.full_like(logits, -math.inf).scatter(-1, top.indices, top.values)
    # One draw a row as in torch.multinomial: p over an exponential random number is the largest with probability p. A
    # number of 0, however rare, would make 0 / 0 for a token that must not be drawn.
    return (_probabilities(logits, sampling) / race.clamp_min_(torch.finfo(race.dtype).tiny)).argmax(-1)


def _probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """softmax(logits) (B, V), with zeros for what `min_p` and `top_p` leave out."""
    probabilities = logits.softmax(-1)
    if sampling.min_p is not None:
        unlikely = probabilities < sampling.min_p * probabilities.amax(-1, keepdim=True)
        probabilities = probabilities.masked_fill(unlikely, 0.0)
    if sampling.top_p is not None:
        ordered, order = probabilities.sort(descending=True)
        enough = ordered.cumsum(-1) - ordered >= sampling.top_p * ordered.sum(-1, keepdim=True)
        enough[:, 0] = False  # however small p is, the likeliest stays
        probabilities = probabilities.masked_fill(enough.gather(-1, order.argsort(-1)), 0.0)
    return probabilities
