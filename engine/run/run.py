"""A trained run in memory: model, tokenizer and configuration, to generate and to score with."""

import dataclasses
import functools
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.errors import UserError
from data.series.bins import BETWEEN
from data.store import ROWS
from data.tokenizers import AFTER_EOS, Tokenizer
from engine.config.sections import Config
from engine.run.arguments import check_logprobs, check_names, check_num, check_text, demand
from engine.run.filling import Filled, fill, put_in, with_gaps
from engine.run.generate import generate, score, token_nll
from engine.run.healing import Healing, heal
from engine.run.likeliest import log_probabilities
from engine.run.samples import Drawing, Prompt, Request, Sample, seeded
from engine.run.sampling import Sampling
from engine.run.token_scores import TokenScore
from engine.training.progress import Evaluation
from makemore.base import LanguageModel

STREAM_TOKENS, DOCUMENT_TOKENS = 500, 2000  # of a sample by default
NOTHING = "there is nothing to score: the text is empty, or nothing of it is in the vocabulary"
OPTIONS = {field.name for cls in (Request, Sampling) for field in dataclasses.fields(cls)}  # of `Run.request`


@dataclass(repr=False)
class Run:
    """A trained model with its tokenizer, for sampling, scoring and fine-tuning."""

    folder: Path
    model: LanguageModel
    tokenizer: Tokenizer
    config: Config
    start: str  # the text that stands for an empty prompt of a stream, or AFTER_EOS
    facts: dict[str, Any]  # of the checkpoint: step, val_loss
    device: torch.device
    template: str | None = None  # of conversations, for a run that was trained on them

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {self.config.model}, step {self.facts['step']:,})"

    @property
    def is_lines(self) -> bool:
        """Whether the run's texts are rows, each with an end: lines or documents."""
        return self.config.text.kind in ROWS

    @property
    def has_ends(self) -> bool:
        """Whether a text may end: rows do, and the documents of a stream that has `<eos>` after each."""
        return self.is_lines or self.start == AFTER_EOS

    @property
    def is_series(self) -> bool:
        """Whether the run's texts are numbers, written as data/series/bins.py says."""
        return self.config.text.kind == "series"

    @property
    def is_documents(self) -> bool:
        return self.config.text.kind == "documents"

    @property
    def is_single_lines(self) -> bool:
        """Whether no text of the run has several lines."""
        return self.config.text.kind == "lines" and self.template is None

    @property
    def suppressed(self) -> list[int]:
        """The ids that are never drawn: all specials but `<eos>`, and `<eos>` too for a stream that has no ends; of a
        series what is no value."""
        special = self.tokenizer.special
        between = self.tokenizer.encode(BETWEEN).tolist() if self.is_series else []
        return special.never_predicted + ([] if self.has_ends else [special.eos]) + between

    @property
    def longest(self) -> int:
        """The default limit of new tokens of a sample: the context for lines, which are not longer, 500 for a stream,
        2,000 (or the context, if that is more) for documents, most of which end before."""
        if self.is_documents:
            return max(DOCUMENT_TOKENS, self.config.net.context)
        return self.config.net.context if self.is_lines else STREAM_TOKENS

    @property
    def fills(self) -> bool:
        """Whether the run fills gaps, and writes no text."""
        return not self.model.causal

    def check_writes(self) -> None:
        """Raise UserError for a run that fills gaps."""
        if self.fills:
            raise UserError(
                f"{self.folder} learned to fill gaps (--objective masked): it neither writes texts nor says how "
                "likely one is; --fill takes a text with gaps"
            )

    def prompt_ids(self, prompt: str = "", unknown: str = "error") -> list[int]:
        """The ids of a prompt: for lines and documents after `<bos>`, for the documents of a stream after `<eos>`; for
        an empty one of another stream the start text's."""
        check_text("prompt", prompt, unknown)
        ids = self.tokenizer.encode(prompt, unknown).tolist()
        if self.is_lines:
            return [self.tokenizer.special.bos, *ids]
        start = self.tokenizer.start_ids(self.start)
        return [*start, *ids] if self.has_ends else ids or start

    def generate_ids(
        self, prompt: str = "", num: int = 1, max_new_tokens: int | None = None, seed: int | None = None,
        sampling: Sampling | None = None, unknown: str = "error",
    ) -> Iterator[Tensor]:  # fmt: skip
        """Yield the next token of `num` samples, (num,), one at a time, after the ids of `prompt`, which is not healed.
        `max_new_tokens` None: `longest`."""
        check_num(num)
        request = self.request(max_new_tokens=max_new_tokens, seed=seed, sampling=sampling)
        ids = torch.tensor([self.prompt_ids(prompt, unknown)], device=self.device)
        length, eos, generator = request.max_new_tokens, self.tokenizer.special.eos, seeded(seed, self.device)
        return generate(self.model, ids, length, request.sampling, self.suppressed, eos, generator, copies=[num])

    def generate(self, prompt: str | Iterable[str] = "", num: int = 1, **options: Any) -> list[str]:
        """The texts of `samples`, which begin with their prompts."""
        check_names(options, OPTIONS | {"prompt", "num", "unknown", "accept"})
        return [sample.text for sample in self.samples(prompt, num, **options)]

    def samples(
        self,
        prompt: str | Iterable[str] = "",
        num: int = 1,
        *,
        unknown: str = "error",
        accept: Callable[[Sample], bool] | None = None,
        logprobs: int | None = None,
        **options: Any,
    ) -> Iterator[Sample]:
        """`num` samples that continue `prompt`, or each of several prompts in order. The samples of a prompt are the
        same alone and among others. They are drawn in batches that fit into memory.

        `unknown`: as in `Tokenizer.encode`, for characters outside the vocabulary. `accept`: as in `Drawing`.
        `logprobs`: each sample has its `tokens`, with this many of the likeliest in the place of each (at most 20) and
        the model's own probabilities, before temperature, penalty and cuts. Other options as in `request`."""
        check_names(options, OPTIONS | {"prompt", "num", "unknown", "accept", "logprobs"})
        check_num(num)
        demand(isinstance(prompt, Iterable), "prompt", prompt, "a text, or several")
        drawing = self._drawing(self.request(**options), accept, logprobs)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        return drawing.draw(self._prompt(drawing, text, unknown, num) for text in prompts)

    def pieces(self, prompt: str = "", *, unknown: str = "error", **options: Any) -> Iterator[str]:
        """Yield the text of one sample after `prompt` in pieces, as soon as each is final: no incomplete character,
        nothing of the stop text. Options as in `request`."""
        check_names(options, OPTIONS | {"prompt", "unknown"})
        drawing = self._drawing(self.request(**options))
        return drawing.pieces(self._prompt(drawing, prompt, unknown, 1))

    def answer(
        self, ids: list[int], request: Request, healing: Healing | None = None, logprobs: int | None = None
    ) -> Generator[str, None, Sample]:
        """Yield the text of one sample after `ids` in pieces. Returns the sample; `logprobs`: as in `samples`."""
        drawing = self._drawing(request, logprobs=logprobs)
        return drawing.pieces(drawing.prompt("", ids, 1, healing))

    def request(
        self,
        *,
        max_new_tokens: int | None = None,
        min_new_tokens: int = 0,
        stop: str | tuple[str, ...] | None = None,
        seed: int | None = None,
        heal: bool = True,
        sampling: Sampling | None = None,
        **knobs: Any,
    ) -> Request:
        """A request for samples. A sample ends with its line, before the text `stop` (or one of several), or after
        `max_new_tokens` (None: `longest`); the first two not within `min_new_tokens`. The same `seed` gives the same
        samples; None: different ones each time. `heal`: see engine/run/healing.py. `knobs`: fields of `Sampling`, as in
        `temperature=0.5`.

        Raises UserError for an invalid value, TypeError for an unknown name."""
        check_names(knobs, OPTIONS)
        self.check_writes()
        if min_new_tokens and not self.has_ends and stop is None:
            raise UserError("--min-new-tokens goes with lines, or with --stop: a stream does not end by itself")
        sampling = Sampling() if sampling is None else sampling
        demand(isinstance(sampling, Sampling), "sampling", sampling, "a Sampling")
        sampling = dataclasses.replace(sampling, **knobs)
        length = self.longest if max_new_tokens is None else max_new_tokens
        return Request(length, sampling, seed, stop, min_new_tokens, heal)

    def _drawing(
        self, request: Request, accept: Callable[[Sample], bool] | None = None, logprobs: int | None = None
    ) -> Drawing:
        check_logprobs(logprobs)
        tell = None if logprobs is None else functools.partial(self._scores_after, count=logprobs, drawn=True)
        return Drawing(self.model, self.tokenizer, self.suppressed, self.device, request, accept, tell)

    def _prompt(self, drawing: Drawing, text: str, unknown: str, num: int) -> Prompt:
        ids, empty = self.prompt_ids(text, unknown), self.prompt_ids()
        healing = heal(self.tokenizer, ids, empty) if drawing.request.heal and text else None
        return drawing.prompt(text, ids, num, healing)

    def score(self, text: str, unknown: str = "error") -> Evaluation:
        """The negative log-likelihood of `text`, for lines with its end included; `--score` prints its
        `bits_per_char`."""
        total = self.score_or_nothing(text, unknown)
        if not total.n_tokens:
            raise UserError(NOTHING)
        return total

    def score_or_nothing(self, text: str, unknown: str = "error") -> Evaluation:
        """The same; an Evaluation of no tokens where there is nothing to score."""
        check_text("score", text, unknown)
        self.check_writes()
        total = Evaluation(0.0, 0, 0)
        for part in text.split("\n") if self.is_single_lines else [text]:
            if ids := self.tokenizer.encode(part, unknown).tolist():
                total = total + self._score(ids)
        return total

    def token_scores(self, text: str, unknown: str = "error", logprobs: int | None = None) -> list[TokenScore]:
        """The negative log-likelihood of each token of `text`, in order; of lines and documents the end of each is a
        token too. Their sum is that of `score`. `logprobs`: with this many of the likeliest tokens in the place of each
        (at most 20). Raises UserError where there is nothing to score."""
        check_text("score", text, unknown)
        check_logprobs(logprobs)
        self.check_writes()
        found: list[TokenScore] = []
        for part in text.split("\n") if self.is_single_lines else [text]:
            if ids := self.tokenizer.encode(part, unknown).tolist():
                tokens, targets = self._scored(ids)
                if logprobs:
                    found += self._scores_after(tokens[:1].tolist(), targets.tolist(), logprobs)
                    continue
                nll = token_nll(self.model, tokens, targets).tolist()
                found += [self._token_score(*pair) for pair in zip(targets.tolist(), nll, strict=True)]
        if not found:
            raise UserError(NOTHING)
        return found

    def fill(self, text: str, gap: str = "?", unknown: str = "error", likeliest: int = 5) -> Filled:
        """`text` with a token in the place of each `gap`, of a run that was trained with --objective masked, and what
        was put in. `likeliest`: with so many (at most 20) of the likeliest for each. Raises UserError for another run,
        and for a text without a gap or longer than the context."""
        check_text("fill", text, unknown)
        check_logprobs(likeliest)
        demand(isinstance(gap, str) and len(gap) == 1, "gap", gap, "a single character")
        if not self.fills:
            raise UserError(f"{self.folder} goes on with texts: gaps are for a run of --objective masked")
        if self.is_single_lines and "\n" in text:
            raise UserError("--fill has a line end, but this run's texts are single lines")
        special, reads = self.tokenizer.special, self.model.context
        ids, places = with_gaps(self.tokenizer, text, gap, unknown, [special.bos] * self.is_lines)
        if reads is not None and len(ids) > reads:
            raise UserError(f"--fill has {len(ids):,} tokens; {self.folder} reads {reads:,} at a time")
        _, found = fill(self.model, torch.tensor(ids, device=self.device), places, likeliest, [*special])
        told = [tuple((self.token_text(id_), p) for id_, p in each.likeliest) for each in found]
        gaps = [self._token_score(each.token, -each.logprob, shown) for each, shown in zip(found, told, strict=True)]
        return Filled(put_in(self.tokenizer, text, gap, [each.token for each in found]), gaps)

    def token_text(self, id_: int) -> str:
        """The text of a token, see `Tokenizer.token_text`; for the end of a line "\\n"."""
        is_line_end = self.is_single_lines and id_ == self.tokenizer.special.eos
        return "\n" if is_line_end else self.tokenizer.token_text(id_)

    def _scores_after(self, read: list[int], ids: list[int], count: int, drawn: bool = False) -> tuple[TokenScore, ...]:
        """The scores of `ids` after those `read`, each with the `count` likeliest; if `drawn`, among what may be."""
        after, given = (torch.tensor(part, device=self.device) for part in (read, ids))
        found = log_probabilities(self.model, after, given, count, self.suppressed if drawn else ())
        return tuple(
            self._token_score(id_, -each.logprob, tuple((self.token_text(i), p) for i, p in each.likeliest))
            for id_, each in zip(ids, found, strict=True)
        )

    def _token_score(self, id_: int, nll: float, likeliest: tuple[tuple[str, float], ...] = ()) -> TokenScore:
        return TokenScore(self.token_text(id_), nll, int(self._characters[id_]), likeliest)

    def _scored(self, ids: list[int]) -> tuple[Tensor, Tensor]:
        """The tokens (T,) that are read and the targets (T,) that are scored, of the ids of a text."""
        special = self.tokenizer.special
        first = special.bos if self.is_lines else self.tokenizer.start_ids(self.start)[-1]
        tokens = torch.tensor([first, *ids] + [special.eos] * self.is_lines, device=self.device)
        return tokens[:-1], tokens[1:]

    @functools.cached_property
    def _characters(self) -> np.ndarray:
        """The number of characters of each id, (V,)."""
        return self.tokenizer.characters()

    def _score(self, ids: list[int]) -> Evaluation:
        tokens, targets = self._scored(ids)
        return score(self.model, tokens, targets, torch.from_numpy(self._characters).to(self.device))
