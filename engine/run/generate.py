"""Decoding, one token at a time from a model's state, whatever the family; and scoring a given text."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.run.healing import Healing
from engine.run.limits import Limits
from engine.run.noise import Noise
from engine.run.sampling import Sampling, draw
from engine.training.progress import Evaluation
from kernels.step.draws import Draws
from makemore.base import LanguageModel, State

SCORED_AT_ONCE = 1 << 20  # tokens of a text


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
    with torch.inference_mode():
        logits, state = model.read_last(prompt)
        counts = torch.tensor(copies or [1] * len(prompt), device=prompt.device)
        logits, state = _copied(logits, counts), {name: _copied(part, counts) for name, part in state.items()}
        generators = [generator] if isinstance(generator, torch.Generator) else generator
        sizes = counts.tolist() if len(generators) > 1 else [len(logits)]
        seen = torch.zeros(len(prompt), model.vocab_size, dtype=torch.bool, device=prompt.device)
        seen = _copied(seen.scatter_(1, prompt, True), counts)
        limits = Limits(len(logits), suppressed, eos, min_new_tokens, model.vocab_size, prompt.device)
        if healing:
            limits.require([each for each, n in zip(healing, counts.tolist(), strict=True) for _ in range(n)])
        noises = [Noise(each, n, model.vocab_size) for each, n in zip(generators, sizes, strict=True)]
        rows = _Rows(model.stepper(state), sampling, limits, noises, seen, eos not in suppressed)
        drawn = rows.draw(logits)[None].unbind()
    while True:
        for token in drawn:
            limits.count(token)
            yield token
        left = max_new_tokens - limits.fewest_new
        if not left or rows.have_ended:
            return
        with torch.inference_mode():  # entering it costs a microsecond: so not for each token
            drawn = rows.decode(drawn[-1], left).unbind()


class _Rows:
    """Rows that are drawn together, with the same settings."""

    def __init__(self, step: Any, sampling: Sampling, limits: Limits, noises: list[Noise], seen: Tensor, has_end: bool):
        self.step, self.sampling, self.limits, self.noises, self.seen = step, sampling, limits, noises, seen
        self.eos = limits.eos if has_end else None
        self.ended = torch.zeros(len(seen), dtype=torch.bool, device=seen.device)
        self.draws: Draws | None = None
        if hasattr(step, "decode"):
            self.draws = Draws([sampling.compiled] * len(seen), seen, self.ended, self.eos, ends_with_one=False)
            self.draws.forbid([limits.banned] * len(seen))

    @property
    def have_ended(self) -> bool:
        return self.eos is not None and bool(self.ended.all())

    def draw(self, logits: Tensor) -> Tensor:
        """One token of each row, (B,); of one that has ended `<eos>`."""
        token = draw(logits + self.limits.bias(), self.sampling, self.noises, self.seen)
        if self.eos is not None:
            token = torch.where(self.ended, self.eos, token)
            self.ended |= token == self.eos
        if self.sampling.repetition_penalty != 1.0:
            self.seen.scatter_(1, token[:, None], True)
        return token

    def decode(self, token: Tensor, most: int) -> Tensor:
        """Read `token` (B,) and draw the next ones: at least one of each row and up to `most`, (steps, B)."""
        if self.draws is None or self.limits.are_open:
            return self.draw(self.step(token))[None]
        steps = min(most, self.noises[0].most)
        self.draws.race([row for noise in self.noises for row in noise.ahead(steps).unbind(1)])
        decoded = self.step.decode(token, self.draws, steps)
        if decoded is None:
            self.draws = None
            return self.decode(token, most)
        for noise in self.noises:
            noise.use(len(decoded.tokens))
        return decoded.tokens


def _copied(part: Tensor, counts: Tensor) -> Tensor:
    """`part` (P, ...) with each row repeated by `counts` (P,)."""
    return part if bool((counts == 1).all()) else part.repeat_interleave(counts, 0)


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
