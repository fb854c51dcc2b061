"""Many samples of a run: which rows are drawn together, in bounded memory, and what is known of each."""

import functools
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from data.tokenizers import Tokenizer
from engine.run.arguments import check_max_new_tokens, check_seed, check_stop, demand, is_whole
from engine.run.generate import Sampling, generate
from engine.run.healing import Healing
from engine.run.writing import Writer
from makemore.base import LanguageModel

BATCH_BYTES = 512 << 20  # of all rows that are drawn together
VOCABULARY_BYTES = 40  # of a row for each token of the vocabulary: logits, probabilities, what is drawn, their order
FIRST_BATCH = 10  # rows that are always drawn together
REDRAWS = 20  # how many times as many samples as wanted are drawn, where some are not


@dataclass(frozen=True)
class Sample:
    """One text that goes on after `prompt`, the prompt included, and why it ended: 'eos', 'stop' or 'length'."""

    prompt: str
    new: str
    end: str

    @property
    def text(self) -> str:
        return self.prompt + self.new


@dataclass(frozen=True)
class Request:
    """How samples are drawn. Raises UserError for what cannot be."""

    max_new_tokens: int
    sampling: Sampling = Sampling()
    seed: int | None = None
    stop: str | None = None
    min_new_tokens: int = 0
    heal: bool = True

    def __post_init__(self) -> None:
        check_max_new_tokens(self.max_new_tokens)
        least, most = self.min_new_tokens, self.max_new_tokens
        demand(
            is_whole(least, 0, most),
            "min_new_tokens",
            least,
            f"a whole number from 0 to --max-new-tokens, here {most:,}",
        )
        check_seed(self.seed)
        check_stop(self.stop)
        demand(isinstance(self.heal, bool), "heal", self.heal, "True or False")


@dataclass
class Prompt:
    """A prompt, and what is still to be drawn after it."""

    text: str
    ids: list[int]
    healing: Healing | None
    generator: torch.Generator
    missing: int  # samples that are still wanted
    left: int  # samples that may still be drawn
    samples: list[Sample] = field(default_factory=list)

    @property
    def is_open(self) -> bool:
        return self.missing > 0 and self.left > 0


class Drawing:
    """Draws samples of `model` as `request` says, as many rows at a time as memory has room for.

    Prompts of one length are drawn together, each with its own generator, so that its samples are those that it has by
    itself. `wanted` says which samples are kept; others are drawn again, REDRAWS times as many as there are to be at
    most: then there are fewer."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        never: list[int],
        device: torch.device,
        request: Request,
        wanted: Callable[[Sample], bool] | None = None,
    ):
        self.model, self.tokenizer, self.never, self.device = model, tokenizer, never, device
        self.request, self.wanted = request, wanted

    @functools.cached_property
    def rows(self) -> int:
        """How many are drawn at a time."""
        return max(FIRST_BATCH, BATCH_BYTES // self._row_bytes())

    def prompt(self, text: str, ids: list[int], num: int, healing: Healing | None) -> Prompt:
        """A prompt of these `ids`, or of those that healing keeps; each of its `num` samples shows `text` first."""
        left = num * REDRAWS if self.wanted else num
        generator = seeded(self.request.seed, self.device)
        return Prompt(text, healing.kept if healing else ids, healing, generator, num, left)

    def draw(self, prompts: Iterable[Prompt]) -> Iterator[Sample]:
        """The samples of each prompt, in order."""
        for some in self._portions(prompts):
            while some:
                of_length: dict[int, list[Prompt]] = defaultdict(list)
                for prompt in filter(lambda prompt: prompt.is_open, some):
                    of_length[len(prompt.ids)].append(prompt)
                for together in of_length.values():
                    self._draw_once(together)
                while some:
                    yield from some[0].samples
                    some[0].samples.clear()
                    if some[0].is_open:
                        break
                    some.pop(0)

    def pieces(self, prompt: Prompt) -> Generator[str, None, str]:
        """What one sample adds to the prompt, piece by piece as it becomes certain. Returns why it ended."""
        writer = self._writer(prompt)
        for token in self._tokens([prompt], [1]):
            yield writer.write(int(token))
            if writer.end:
                return writer.end
        yield writer.close()
        return writer.end

    def _draw_once(self, prompts: list[Prompt]) -> None:
        """What is missing of prompts of one length, as far as it goes into one batch."""
        counts = [min(prompt.missing, prompt.left, self.rows) for prompt in prompts]
        rows = [prompt for prompt, n in zip(prompts, counts, strict=True) for _ in range(n)]
        writers, texts = [self._writer(prompt) for prompt in rows], [[] for _ in rows]
        for token in self._tokens(prompts, counts):
            for text, writer, id_ in zip(texts, writers, token.tolist(), strict=True):
                if piece := writer.write(id_):
                    text.append(piece)
            if all(writer.end for writer in writers):
                break
        for prompt, text, writer in zip(rows, texts, writers, strict=True):
            sample = Sample(prompt.text, "".join(text), writer.end)
            prompt.left -= 1
            if self.wanted is None or self.wanted(sample):
                prompt.missing -= 1
                prompt.samples.append(sample)

    def _tokens(self, prompts: list[Prompt], counts: list[int]) -> Iterator[Tensor]:
        request = self.request
        return generate(
            self.model,
            torch.tensor([prompt.ids for prompt in prompts], device=self.device),
            request.max_new_tokens,
            request.sampling,
            self.never,
            self.tokenizer.special.eos,
            [prompt.generator for prompt in prompts],
            copies=counts,
            min_new_tokens=request.min_new_tokens,
            healing=[prompt.healing for prompt in prompts],
        )

    def _writer(self, prompt: Prompt) -> Writer:
        request = self.request
        return Writer(self.tokenizer, request.stop, request.max_new_tokens, request.min_new_tokens, prompt.healing)

    def _portions(self, prompts: Iterable[Prompt]) -> Iterator[list[Prompt]]:
        """Prompts that are drawn at the same time."""
        some: list[Prompt] = []
        for prompt in prompts:
            if some and sum(each.missing for each in some) + prompt.missing > self.rows:
                yield some
                some = []
            some.append(prompt)
        if some:
            yield some

    @torch.inference_mode()
    def _row_bytes(self) -> int:
        """What a row takes: its state when it is longest, numbers for each token of the vocabulary, its text."""
        state = self.model.read_last(torch.full((1, 1), self.tokenizer.special.eos, device=self.device))[1]
        of_token = sum(part.numel() * part.element_size() for part in state.values())
        return of_token * self.model.held + self.model.vocab_size * VOCABULARY_BYTES + self.request.max_new_tokens * 8


def seeded(seed: int | None, device: torch.device) -> torch.Generator:
    """A fresh generator; None: another one each time."""
    generator = torch.Generator(device)
    generator.seed() if seed is None else generator.manual_seed(int(seed))
    return generator
