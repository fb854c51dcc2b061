"""Drawing many samples of a run at once, which come and go between two tokens, each with settings of its own.

A sample has its own generator, so that it does not depend on the company in which it is drawn: the same seed gives the
text that it gives alone.
"""

import functools
from collections import defaultdict
from typing import NamedTuple

import torch
from torch import Tensor

from engine.run.generate import Limits, Sampling, draw
from engine.run.healing import Healing
from engine.run.likeliest import largest
from engine.run.run import Run
from engine.run.samples import Request, seeded
from engine.run.writing import Writer


class Drawn(NamedTuple):
    """One token of a sample: its id, the text that it makes final, the logarithm of its probability and the likeliest
    tokens with theirs, where these were asked for."""

    id: int
    text: str
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


class Member:
    """A sample that is being drawn. `end` says why it ended: 'eos', 'stop' or 'length'; None while it goes on.

    `logprobs`: how many of the likeliest tokens are told with each; None: no probabilities at all."""

    def __init__(self, company: "Company", request: Request, healing: Healing | None, logprobs: int | None):
        run = company.run
        self.sampling, self.logprobs = request.sampling, logprobs
        self.generator = seeded(request.seed, run.device)
        self.writer = Writer(run.tokenizer, request.stop, request.max_new_tokens, request.min_new_tokens, healing)
        special = run.tokenizer.special
        self.limits = Limits(1, run.suppressed, special.eos, request.min_new_tokens, run.model.vocab_size, run.device)
        if healing is not None:
            self.limits.require([healing])

    @property
    def end(self) -> str | None:
        return self.writer.end


class Company:
    """The samples of `run` that are being drawn together: `join`, `step`, `leave`. One thread at a time may use it."""

    def __init__(self, run: Run):
        self.run, self.rows = run, run.model.rows()
        self.members: list[Member] = []
        self._logits: Tensor | None = None  # (B, V), after all that was drawn
        self._seen: Tensor | None = None  # (B, V) bool: what a repetition penalty applies to

    def __len__(self) -> int:
        return len(self.members)

    @torch.inference_mode()
    def join(
        self, ids: list[int], request: Request, healing: Healing | None = None, logprobs: int | None = None
    ) -> Member:
        """A new sample after the prompt `ids`, which `healing` shortens."""
        ids = healing.shortened if healing else ids
        prompt = torch.tensor([ids], device=self.run.device)
        logits, state = self.run.model.read_last(prompt)
        self.rows.add(state)
        seen = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, prompt, True)
        self._logits = logits if self._logits is None else torch.cat([self._logits, logits])
        self._seen = seen if self._seen is None else torch.cat([self._seen, seen])
        self.members.append(Member(self, request, healing, logprobs))
        return self.members[-1]

    @torch.inference_mode()
    def leave(self, member: Member) -> None:
        """The sample is not wanted any more; the last one takes its row."""
        row, last = self.members.index(member), len(self) - 1
        self.rows.remove(row)
        assert self._logits is not None and self._seen is not None  # there is a row
        for table in (self._logits, self._seen):
            table[row] = table[last]
        self._logits, self._seen = (table[:last] if last else None for table in (self._logits, self._seen))
        self.members[row] = self.members[last]
        self.members.pop()

    @torch.inference_mode()
    def step(self) -> list[tuple[Member, Drawn]]:
        """Draw one token of each sample. Those that have ended leave, and the others are read on."""
        tokens = self._draw()
        drawn = self._written(tokens)
        if ended := [member for member in self.members if member.end]:
            at = {id(member): n for n, member in enumerate(self.members)}
            for member in ended:
                self.leave(member)
            tokens = tokens[torch.tensor([at[id(member)] for member in self.members], dtype=torch.int64)]
        if self.members:
            assert self._seen is not None  # there is a row
            if any(member.sampling.repetition_penalty != 1.0 for member in self.members):
                self._seen.scatter_(1, tokens[:, None], True)
            self._logits = self.rows.step(tokens)
        return drawn

    @functools.cached_property
    def _banned(self) -> Tensor:
        """What is never drawn, as a bias (V,)."""
        special, V = self.run.tokenizer.special, self.run.model.vocab_size
        return Limits(1, self.run.suppressed, special.eos, 0, V, self.run.device).bias()

    def _draw(self) -> Tensor:
        """One token of each sample, (B,); samples with the same settings are drawn together."""
        assert self._logits is not None and self._seen is not None  # there is a row
        logits = self._logits + self._banned
        for row, member in enumerate(self.members):
            if member.limits.are_open:
                logits[row] = self._logits[row] + member.limits.bias()
        groups: dict[Sampling, list[int]] = defaultdict(list)
        for row, member in enumerate(self.members):
            groups[member.sampling].append(row)
        tokens = torch.empty(len(self), dtype=torch.int64, device=logits.device)
        for sampling, rows in groups.items():
            generators = [self.members[row].generator for row in rows]
            if len(groups) == 1:
                tokens = draw(logits, sampling, generators, self._seen, [1] * len(rows))
            else:
                at = torch.tensor(rows, device=logits.device)
                tokens[at] = draw(logits[at], sampling, generators, self._seen[at], [1] * len(rows))
        return tokens

    def _written(self, tokens: Tensor) -> list[tuple[Member, Drawn]]:
        """What these tokens (B,) add to each text."""
        log_p = None
        if any(member.logprobs is not None for member in self.members):
            assert self._logits is not None  # there is a row
            log_p = (self._logits + self._banned).log_softmax(-1)
        drawn = []
        for row, (member, id_) in enumerate(zip(self.members, tokens.tolist(), strict=True)):
            if member.limits.are_open:
                member.limits.count(tokens[row : row + 1])
            text = member.writer.write(id_)
            if log_p is None or member.logprobs is None:
                drawn.append((member, Drawn(id_, text)))
                continue
            likeliest = tuple(largest(log_p[row], member.logprobs))
            drawn.append((member, Drawn(id_, text, float(log_p[row, id_]), likeliest)))
        return drawn
