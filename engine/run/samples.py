"""Drawing many samples of a run: in batches, with bounded memory."""

import functools
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from data.tokenizers import Tokenizer
from engine.run.arguments import check_max_new_tokens, check_seed, check_stop, demand, is_whole
from engine.run.generate import generate
from engine.run.healing import Healing
from engine.run.noise import steps_at_once
from engine.run.sampling import Sampling
from engine.run.token_scores import TokenScore
from engine.run.writing import Writer
from makemore.base import LanguageModel

BATCH_BYTES = 512 << 20  # of a batch of rows
VOCABULARY_BYTES = 40  # of a row for each token of the vocabulary: logits, probabilities, their order
FIRST_BATCH = 10  # rows that always fit into one batch
REDRAWS = 20  # draws for each sample at most, where some are not accepted


@dataclass(frozen=True)
class Sample:
    """A sample: its prompt, the new text, and the reason of its end: 'eos', 'stop' or 'length'. Where probabilities
    were asked for, its `tokens` too: all that were drawn, with its end or stop text, and of a healed prompt with the
    end that was drawn again."""

    prompt: str
    new: str
    end: str
    tokens: tuple[TokenScore, ...] = ()

    @property
    def text(self) -> str:
        return self.prompt + self.new


@dataclass(frozen=True)
class Request:
    """The options with which samples are drawn. Raises UserError for an invalid value."""

    max_new_tokens: int
    sampling: Sampling = Sampling()
    seed: int | None = None
    stop: str | tuple[str, ...] | None = None  # a text, or several
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
    """A prompt, and the samples that are still to be drawn."""

    text: str
    ids: list[int]
    healing: Healing | None
    generator: torch.Generator
    missing: int  # samples that are still missing
    draws_left: int
    samples: list[Sample] = field(default_factory=list)

    @property
    def is_open(self) -> bool:
        return self.missing > 0 and self.draws_left > 0


class Drawing:
    """Draws samples of `model` as `request` says, as many rows at a time as fit into memory.

    Prompts of one length are drawn together, each with its own generator, so that its samples do not depend on the
    other prompts. Samples that `accept` rejects are drawn again, up to REDRAWS draws for each sample; then some are
    missing. `tell` gives the scores of the ids that were drawn after those of a prompt; None: samples have none."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        suppressed: list[int],
        device: torch.device,
        request: Request,
        accept: Callable[[Sample], bool] | None = None,
        tell: Callable[[list[int], list[int]], tuple[TokenScore, ...]] | None = None,
    ):
        self.model, self.tokenizer, self.suppressed, self.device = model, tokenizer, suppressed, device
        self.request, self.accept, self.tell = request, accept, tell

    @functools.cached_property
    def rows(self) -> int:
        """The number of rows that are drawn at a time."""
        return max(FIRST_BATCH, BATCH_BYTES // self._row_bytes())

    def prompt(self, text: str, ids: list[int], num: int, healing: Healing | None) -> Prompt:
        """A prompt of these `ids`, shortened by `healing`, for `num` samples that begin with `text`."""
        draws_left = num * REDRAWS if self.accept else num
        generator = seeded(self.request.seed, self.device)
        return Prompt(text, healing.shortened if healing else ids, healing, generator, num, draws_left)

    def draw(self, prompts: Iterable[Prompt]) -> Iterator[Sample]:
        """The samples of each prompt, in order."""
        for batch in self._portions(prompts):
            while batch:
                by_length: dict[int, list[Prompt]] = defaultdict(list)
                for prompt in filter(lambda prompt: prompt.is_open, batch):
                    by_length[len(prompt.ids)].append(prompt)
                for group in by_length.values():
                    self._draw_once(group)
                while batch:
                    yield from batch[0].samples
                    batch[0].samples.clear()
                    if batch[0].is_open:
                        break
                    batch.pop(0)

    def pieces(self, prompt: Prompt) -> Generator[str, None, Sample]:
        """Yield the new text of one sample in pieces, as soon as each is final. Returns the sample."""
        writer, text = self._writer(prompt), []
        for token in self._tokens([prompt], [1]):
            text.append(writer.write(int(token)))
            yield text[-1]
            if writer.end:
                break
        else:
            text.append(writer.close())
            yield text[-1]
        return self._told(Sample(prompt.text, "".join(text), writer.end or "length"), prompt, writer)

    def _draw_once(self, prompts: list[Prompt]) -> None:
        """Draw one batch of the samples that prompts of one length are missing."""
        counts = [min(prompt.missing, prompt.draws_left, self.rows) for prompt in prompts]
        rows = [prompt for prompt, n in zip(prompts, counts, strict=True) for _ in range(n)]
        writers = [self._writer(prompt) for prompt in rows]
        texts: list[list[str]] = [[] for _ in rows]
        for token in self._tokens(prompts, counts):
            for text, writer, id_ in zip(texts, writers, token.tolist(), strict=True):
                if piece := writer.write(id_):
                    text.append(piece)
            if all(writer.end for writer in writers):
                break
        for prompt, text, writer in zip(rows, texts, writers, strict=True):
            sample = Sample(prompt.text, "".join(text), writer.end or "length")
            prompt.draws_left -= 1
            if self.accept is None or self.accept(sample):
                prompt.missing -= 1
                prompt.samples.append(self._told(sample, prompt, writer))

    def _told(self, sample: Sample, prompt: Prompt, writer: Writer) -> Sample:
        """The sample with its scores, where they are told."""
        return replace(sample, tokens=self.tell(prompt.ids, writer.ids)) if self.tell else sample

    def _tokens(self, prompts: list[Prompt], counts: list[int]) -> Iterator[Tensor]:
        request = self.request
        return generate(
            self.model,
            torch.tensor([prompt.ids for prompt in prompts], device=self.device),
            request.max_new_tokens,
            request.sampling,
            self.suppressed,
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
        """The prompts in groups that are drawn at the same time."""
        batch: list[Prompt] = []
        for prompt in prompts:
            if batch and sum(each.missing for each in batch) + prompt.missing > self.rows:
                yield batch
                batch = []
            batch.append(prompt)
        if batch:
            yield batch

    @torch.inference_mode()
    def _row_bytes(self) -> int:
        """The bytes that a row takes: its longest state, numbers for each token of the vocabulary, its ids."""
        state = self.model.read_last(torch.full((1, 1), self.tokenizer.special.eos, device=self.device))[1]
        state_bytes = self.model.held * sum(part.numel() * part.element_size() for part in state.values())
        vocab_size = self.model.vocab_size
        noise_bytes = 2 * 8 * steps_at_once(vocab_size)
        return state_bytes + vocab_size * (VOCABULARY_BYTES + noise_bytes) + self.request.max_new_tokens * 8


def seeded(seed: int | None, device: torch.device) -> torch.Generator:
    """A new generator with this seed; None: with a random one."""
    generator = torch.Generator(device)
    generator.seed() if seed is None else generator.manual_seed(int(seed))
    return generator
