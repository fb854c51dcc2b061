"""Decoding, one token at a time from a model's state, whatever the family; and scoring a given text."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.run.arguments import demand, is_number, is_whole
from engine.run.healing import Healing
from engine.runtime import widest
from engine.training.progress import Evaluation
from makemore.base import LanguageModel, State
from makemore.compiled import draw_compiled

MAX_TEMPERATURE = 1000.0  # nearly uniform
SCORED_AT_ONCE = 1 << 20  # tokens of a text
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


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompt: Tensor,
    max_new_tokens: int,
    sampling: Sampling,
    suppressed: list[int],
    eos: int,
    generator: torch.Generator | Sequence[torch.Generator],
    *,
    copies: Sequence[int] | None = None,
    min_new_tokens: int = 0,
    healing: Sequence[Healing | None] | None = None,
) -> Iterator[Tensor]:
    """Yield the next token of each row, (B,), until every row has `max_new_tokens` new ones, or all have ended: after
    `<eos>` a row yields only `<eos>`.

    `prompt` (P, T), T >= 1, is read once and continued in `copies` rows for each prompt (None: one), with a generator
    for each prompt where P are given. The ids `suppressed` are never drawn, nor is `<eos>` among the first
    `min_new_tokens`. `healing`, for each prompt: tokens that only repeat the dropped end of the prompt do not count as
    new."""
    logits, state = model.read_last(prompt)
    counts = torch.tensor(copies or [1] * len(prompt), device=prompt.device)
    logits, state = _copied(logits, counts), {name: _copied(part, counts) for name, part in state.items()}
    step = model.stepper(state)
    generators = [generator] if isinstance(generator, torch.Generator) else generator
    sizes = counts.tolist() if len(generators) > 1 else [len(logits)]
    seen = torch.zeros(len(prompt), model.vocab_size, dtype=torch.bool, device=prompt.device).scatter_(1, prompt, True)
    seen = _copied(seen, counts)
    limits = Limits(len(logits), suppressed, eos, min_new_tokens, model.vocab_size, prompt.device)
    if healing:
        limits.require([each for each, n in zip(healing, counts.tolist(), strict=True) for _ in range(n)])
    ended = torch.zeros(len(logits), dtype=torch.bool, device=prompt.device)
    while True:
        token = draw(logits + limits.bias(), sampling, generators, seen, sizes)
        if eos not in suppressed:
            token = torch.where(ended, eos, token)
            ended = ended | (token == eos)
        limits.count(token)
        yield token
        if limits.fewest_new == max_new_tokens or (eos not in suppressed and bool(ended.all())):
            return
        if sampling.repetition_penalty != 1.0:
            seen.scatter_(1, token[:, None], True)
        logits = step(token)


def _copied(part: Tensor, counts: Tensor) -> Tensor:
    """`part` (P, ...) with each row repeated by `counts` (P,)."""
    return part if bool((counts == 1).all()) else part.repeat_interleave(counts, 0)


class Limits:
    """The tokens that the rows of a batch may not draw, as a bias that is -inf for them."""

    def __init__(self, rows: int, suppressed: list[int], eos: int, min_new_tokens: int, vocab_size: int, device):
        self.eos, self.min_new_tokens = eos, 0 if eos in suppressed else min_new_tokens
        self.banned = torch.zeros(vocab_size, dtype=widest(device), device=device)
        self.banned[suppressed] = -math.inf
        self.healings: list[Healing | None] = []
        self.required = [b""] * rows
        self.repeated = [0] * rows  # tokens that only repeated the dropped end of the prompt
        self.drawn = 0

    def require(self, healings: list[Healing | None]) -> None:
        """Require every row to begin with the bytes dropped from its prompt."""
        self.healings, self.required = healings, [each.dropped if each else b"" for each in healings]

    @property
    def fewest_new(self) -> int:
        return self.drawn - max(self.repeated)

    @property
    def are_open(self) -> bool:
        """Whether more is forbidden now than what is never drawn."""
        return self.drawn - min(self.repeated) < self.min_new_tokens or any(self.required)

    def bias(self) -> Tensor:
        """The bias to add to the logits, (V,), or (B, V) where rows differ."""
        if not self.are_open:
            return self.banned
        bias = self.banned.repeat(len(self.required), 1)
        for i, required in enumerate(self.required):
            if self.drawn - self.repeated[i] < self.min_new_tokens:
                bias[i, self.eos] = -math.inf
            if required:
                healing = self.healings[i]
                assert healing is not None  # it is what requires them
                allowed = torch.from_numpy(healing.allowed(required)).to(bias.device)
                bias[i].masked_fill_(~allowed, -math.inf)
        return bias

    def count(self, token: Tensor) -> None:
        """Update the limits after `token` (B,) was drawn."""
        self.drawn += 1
        if any(self.required):
            for i, id_ in enumerate(token.tolist()):
                healing, required = self.healings[i], self.required[i]
                if healing is not None and required:
                    self.repeated[i] += not healing.is_new(required, id_)
                    self.required[i] = healing.rest(required, id_)


def draw(
    logits: Tensor,
    sampling: Sampling,
    generators: torch.Generator | Sequence[torch.Generator],
    seen: Tensor,
    sizes: Sequence[int] | None = None,
) -> Tensor:
    """One token a row, (B,), drawn from `logits` (B, V); `seen` (B, V) marks the tokens that the repetition penalty
    applies to. Of several generators each draws as many rows as `sizes` says."""
    if sampling.repetition_penalty != 1.0:
        penalised = torch.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
        logits = torch.where(seen, penalised, logits)
    if sampling.temperature == 0:
        return logits.topk(1).indices[:, 0]
    if sampling.temperature != 1.0:
        logits = logits / max(sampling.temperature, MIN_TEMPERATURE)
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        top = logits.topk(sampling.top_k)  # exactly k, also among equals
        logits = torch.full_like(logits, -math.inf).scatter(-1, top.indices, top.values)
    race = _random(logits, generators, sizes)
    if sampling.min_p is None and sampling.top_p is None:
        token = draw_compiled(logits, race)
        if token is not None:
            return token
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


def _random(
    logits: Tensor, generators: torch.Generator | Sequence[torch.Generator], sizes: Sequence[int] | None
) -> Tensor:
    """Exponential random numbers, as many as `logits` (B, V)."""
    race = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    if isinstance(generators, torch.Generator):
        return race.exponential_(generator=generators)
    if len(generators) == 1:
        return race.exponential_(generator=generators[0])
    for rows, generator in zip(race.split(sizes or [len(race)]), generators, strict=True):
        rows.exponential_(generator=generator)
    return race


@torch.inference_mode()
def token_nll(model: LanguageModel, tokens: Tensor, targets: Tensor) -> Tensor:
    """The negative log-likelihood (T,) of each of `targets` (T,) after `tokens` (T,) of any length, read as in
    decoding."""
    state: State | None = None
    parts = []
    for part_tokens, part_targets in zip(tokens.split(SCORED_AT_ONCE), targets.split(SCORED_AT_ONCE), strict=True):
        nll, state = model.token_nll(part_tokens, part_targets, state)
        parts.append(nll)
    return torch.cat(parts)


def score(model: LanguageModel, tokens: Tensor, targets: Tensor, characters: Tensor) -> Evaluation:
    """The sum of `token_nll`. `characters` (V,): the number of characters of each id."""
    nll = float(token_nll(model, tokens, targets).sum())
    return Evaluation(nll, len(targets), int(characters[targets].sum()))
