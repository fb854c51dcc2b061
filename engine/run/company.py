"""Drawing many samples of a run at once, which come and go between two tokens, each with settings of its own.

A sample has its own generator, so that it does not depend on the company in which it is drawn: the same seed gives the
text that it gives alone.
"""

import functools
from collections import defaultdict
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.run.healing import Healing
from engine.run.likeliest import largest
from engine.run.limits import Limits
from engine.run.noise import Noise
from engine.run.run import Run
from engine.run.samples import Request, seeded
from engine.run.sampling import Sampling, draw
from engine.run.writing import Writer
from kernels.step.draws import Draws


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

    def __init__(self, run: Run, request: Request, healing: Healing | None, logprobs: int | None):
        self.sampling, self.logprobs = request.sampling, logprobs
        self.noise = Noise(seeded(request.seed, run.device), 1, run.model.vocab_size)
        self.writer = Writer(run.tokenizer, request.stop, request.max_new_tokens, request.min_new_tokens, healing)
        special = run.tokenizer.special
        self.limits = Limits(1, run.suppressed, special.eos, request.min_new_tokens, run.model.vocab_size, run.device)
        if healing is not None:
            self.limits.require([healing])

    @property
    def end(self) -> str | None:
        return self.writer.end

    @property
    def most(self) -> int:
        """The steps for which this sample can be drawn at once."""
        if self.logprobs is not None or self.limits.are_open:
            return 1
        return min(self.noise.most, self.writer.left)


class Company:
    """The samples of `run` that are being drawn together: `join`, `step`, `leave`. One thread at a time may use it."""

    def __init__(self, run: Run, hurry: np.ndarray | None = None):
        """While another thread has set `hurry` (1,) to 1, several steps end after the one that is being taken."""
        self.run, self.rows, self.hurry = run, run.model.rows(), hurry
        self.members: list[Member] = []
        self.taken = 0  # steps of the last call of `step`
        self._first: list[tuple[Member, Drawn]] = []  # tokens of those that joined since
        self._last: list[int] = []  # the last token of each member, which is still to be read
        self._seen: Tensor | None = None  # (B, V) bool: what a repetition penalty applies to
        self._draws: Draws | None = None  # for the members as they are

    def __len__(self) -> int:
        """The samples of which there is more to tell."""
        return len(self.members) + sum(member.end is not None for member, _ in self._first)

    @torch.inference_mode()
    def join(
        self, ids: list[int], request: Request, healing: Healing | None = None, logprobs: int | None = None
    ) -> Member:
        """A new sample after the prompt `ids`, which `healing` shortens. Its first token is drawn at once, and told by
        the next `step`."""
        ids = healing.shortened if healing else ids
        member = Member(self.run, request, healing, logprobs)
        prompt = torch.tensor([ids], device=self.run.device)
        logits, state = self.run.model.read_last(prompt)
        seen = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, prompt, True)
        token = draw(logits + member.limits.bias(), member.sampling, [member.noise], seen)
        self._first.append((member, self._written(member, int(token), logits[0])))
        if not member.end:
            self.rows.add(state)
            seen[0, token] = True
            self._seen = seen if self._seen is None else torch.cat([self._seen, seen])
            self._last.append(int(token))
            self.members.append(member)
            self._draws = None
        return member

    @torch.inference_mode()
    def leave(self, member: Member) -> None:
        """The sample is not wanted any more; the last one takes its row."""
        self._first = [each for each in self._first if each[0] is not member]
        if member in self.members:
            self._remove(self.members.index(member))

    @torch.inference_mode()
    def step(self, most: int = 1) -> list[tuple[Member, Drawn]]:
        """Read the last token of each sample and draw the next one; up to `most` times, where that is one call of
        compiled code. Returns what was drawn since the last call, in its order; samples that have ended leave."""
        told, self._first, self.taken = self._first, [], 0
        if not self.members:
            return told
        tokens, logits = self._decode(min(most, *(member.most for member in self.members)))
        self.taken, rows = len(tokens), tokens.tolist()
        for ids in rows:
            for row, (member, id_) in enumerate(zip(self.members, ids, strict=True)):
                if not member.end:
                    told.append((member, self._written(member, id_, logits[row])))
        self._last = rows[-1]
        for row in reversed(range(len(self.members))):
            if self.members[row].end:
                self._remove(row)
        return told

    def _decode(self, steps: int) -> tuple[Tensor, Tensor]:
        """Read the last tokens and draw `steps` times or less: (steps, B), and the logits (B, V) of the last."""
        assert self._seen is not None  # there is a row
        last = torch.tensor(self._last, device=self.run.device)
        if hasattr(self.rows, "decode"):
            draws = self._draws = self._draws or self._new_draws()
            draws.forbid([self._bias(member) for member in self.members])
            draws.race([member.noise.ahead(steps)[:, 0] for member in self.members])
            decoded = self.rows.decode(last, draws, steps)
            if decoded is not None:
                for member in self.members:
                    member.noise.use(len(decoded.tokens))
                draws.ended.zero_()
                return decoded.tokens, decoded.logits
        logits = self.rows.step(last)
        tokens = self._draw(logits)
        self._seen.scatter_(1, tokens[:, None], True)
        return tokens[None], logits

    def _new_draws(self) -> Draws:
        assert self._seen is not None  # there is a row
        special, B = self.run.tokenizer.special, len(self.members)
        eos = None if special.eos in self.run.suppressed else special.eos
        ended = torch.zeros(B, dtype=torch.bool)
        settings = [member.sampling.compiled for member in self.members]
        return Draws(settings, self._seen, ended, eos, ends_with_one=True, hurry=self.hurry)

    def _draw(self, logits: Tensor) -> Tensor:
        """One token of each sample, (B,), from `logits` (B, V); samples with the same settings are drawn together."""
        assert self._seen is not None  # there is a row
        groups: dict[Sampling, list[int]] = defaultdict(list)
        for row, member in enumerate(self.members):
            groups[member.sampling].append(row)
        logits = logits + torch.stack([self._bias(member) for member in self.members])
        tokens = torch.empty(len(self.members), dtype=torch.int64, device=logits.device)
        for sampling, rows in groups.items():
            noises, at = [self.members[row].noise for row in rows], torch.tensor(rows, device=logits.device)
            tokens[at] = draw(logits[at], sampling, noises, self._seen[at])
        return tokens

    def _bias(self, member: Member) -> Tensor:
        """What this sample may not draw now, (V,)."""
        return member.limits.bias()[0] if member.limits.are_open else self._banned

    @functools.cached_property
    def _banned(self) -> Tensor:
        """What is never drawn, (V,)."""
        special, V = self.run.tokenizer.special, self.run.model.vocab_size
        return Limits(1, self.run.suppressed, special.eos, 0, V, self.run.device).bias()

    def _written(self, member: Member, id_: int, logits: Tensor) -> Drawn:
        """What this token, drawn from `logits` (V,), adds to the text."""
        if member.limits.are_open:
            member.limits.count(torch.tensor([id_]))
        text = member.writer.write(id_)
        if member.logprobs is None:
            return Drawn(id_, text)
        log_p = (logits + self._banned).log_softmax(-1)
        return Drawn(id_, text, float(log_p[id_]), tuple(largest(log_p, member.logprobs)))

    def _remove(self, row: int) -> None:
        """The sample in `row` leaves; the last one takes its place."""
        last = len(self.members) - 1
        self.rows.remove(row)
        assert self._seen is not None  # there is a row
        self._seen[row] = self._seen[last]
        self._seen = self._seen[:last] if last else None
        self.members[row], self._last[row] = self.members[last], self._last[last]
        self.members.pop()
        self._last.pop()
        self._draws = None
