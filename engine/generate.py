"""Decoding: one token at a time from a model's state, whatever the family; and scoring a given text."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from data.errors import UserError
from engine.evaluate import Evaluation
from engine.runtime import widest
from makemore.base import LanguageModel, State

MAX_TEMPERATURE = 1000.0  # all but uniform
COLDEST = 1e-30  # takes the likeliest as any lower one does, and logits divided by it are no infinity


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Raises UserError for values outside their range."""

    temperature: float = 1.0  # 0: the likeliest
    top_k: int | None = None  # of the k likeliest only
    top_p: float | None = None  # of the likeliest that together reach p (Holtzman et al. 2020)
    min_p: float | None = None  # of those at least min_p times as likely as the likeliest (Nguyen et al. 2024)
    repetition_penalty: float = 1.0  # divides what occurred before (Keskar et al. 2019)

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise UserError(
                f"--temperature is {self.temperature}; it has to be from 0 (the likeliest) to {MAX_TEMPERATURE}"
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"--top-k is {self.top_k}; it has to be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"--top-p is {self.top_p}; it has to be above 0 and at most 1")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise UserError(f"--min-p is {self.min_p}; it has to be between 0 and 1")
        if not 0.01 <= self.repetition_penalty <= 100:
            raise UserError(
                f"--repetition-penalty is {self.repetition_penalty}; it has to be from 0.01 to 100 (1: none)"
            )


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompt: Tensor,
    max_new_tokens: int,
    sampling: Sampling,
    never: list[int],
    eos: int,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """Yield the next token of each row, (B,), up to `max_new_tokens` times; a row that has drawn `<eos>` draws
    only that.

    `prompt` (B, T) with T >= 1; `never` are ids that are not drawn. The prefix is read once: every further token costs
    one token. Stops early when all rows have ended."""
    out = model.read(prompt)
    logits, read_on = out.logits[:, -1], model.decoder(out.state)
    banned = torch.zeros(model.vocab_size, dtype=widest(prompt.device), device=prompt.device)
    banned[never] = -math.inf
    seen = torch.zeros(len(prompt), model.vocab_size, dtype=torch.bool, device=prompt.device).scatter_(1, prompt, True)
    ended = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    for n in range(max_new_tokens):
        token = draw(logits + banned, sampling, generator, seen)
        if eos not in never:
            token = torch.where(ended, eos, token)
            ended = ended | (token == eos)
        yield token
        if n + 1 == max_new_tokens or (eos not in never and bool(ended.all())):
            return
        if sampling.repetition_penalty != 1.0:
            seen.scatter_(1, token[:, None], True)
        logits = read_on(token)


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator, seen: Tensor) -> Tensor:
    """One token a row, (B,), from `logits` (B, V); `seen` (B, V) marks tokens that the penalty applies to."""
    if sampling.repetition_penalty != 1.0:
        penalised = torch.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
        logits = torch.where(seen, penalised, logits)
    if sampling.temperature == 0:
        return logits.topk(1).indices[:, 0]
    logits = logits / max(sampling.temperature, COLDEST)
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        kept = logits.topk(sampling.top_k)  # exactly k, also among equals
        logits = torch.full_like(logits, -math.inf).scatter(-1, kept.indices, kept.values)
    probabilities = logits.softmax(-1)
    if sampling.min_p is not None:
        unlikely = probabilities < sampling.min_p * probabilities.amax(-1, keepdim=True)
        probabilities = probabilities.masked_fill(unlikely, 0.0)
    if sampling.top_p is not None:
        ordered, order = probabilities.sort(descending=True)
        enough = ordered.cumsum(-1) - ordered >= sampling.top_p * ordered.sum(-1, keepdim=True)
        enough[:, 0] = False  # however small p is, the likeliest stays
        probabilities = probabilities.masked_fill(enough.gather(-1, order.argsort(-1)), 0.0)
    # As torch.multinomial draws one of each row: p over an exponential number is the largest with probability p. A
    # number of 0, however rare, would make 0 / 0 of what is not to be drawn.
    race = torch.empty_like(probabilities).exponential_(generator=generator)
    return (probabilities / race.clamp_min_(torch.finfo(race.dtype).tiny)).argmax(-1)


@torch.inference_mode()
def score(model: LanguageModel, tokens: Tensor, targets: Tensor, characters: Tensor, chunk: int = 4096) -> Evaluation:
    """The likelihood of `targets` (T,) after `tokens` (T,), read as decoding reads them, any length."""
    state: State | None = None
    nll = 0.0
    for some, wanted in zip(tokens.split(chunk), targets.split(chunk), strict=True):
        out = model.read(some[None], state)
        state = out.state
        nll += float(-out.logits[0].to(widest(tokens.device)).log_softmax(-1).gather(-1, wanted[:, None]).sum())
    return Evaluation(nll, len(targets), int(characters[targets].sum()))
