"""A trained run in memory: model, tokenizer and configuration, to generate and to score with."""

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data import gpt2
from data.errors import UserError
from data.tokenizers import Tokenizer
from engine import checkpoint
from engine.backends import check_backends
from engine.config import Config
from engine.evaluate import Evaluation
from engine.flags import config_of
from engine.folder import read_facts, read_tokenizer
from engine.generate import Sampling, generate, score
from engine.identity import check_identity, identity
from engine.registry import build_model, layers
from engine.runtime import choose_device
from engine.weights import check_finite, check_sizes, load_weights
from makemore.base import LanguageModel
from nanogpt import pretrained


@dataclass
class Run:
    """A trained model with its tokenizer: what sampling, scoring and fine-tuning start from."""

    folder: Path
    model: LanguageModel
    tokenizer: Tokenizer
    config: Config
    start: str  # what an empty prompt of a stream begins with
    facts: dict[str, Any]  # of the checkpoint: step, val_loss
    device: torch.device
    template: str | None = None  # how conversations are written down, for a run that was trained on them

    @property
    def is_lines(self) -> bool:
        return self.config.kind == "lines"

    @property
    def is_single_lines(self) -> bool:
        """Whether no text of the run has a line end in it."""
        return self.is_lines and self.template is None

    @property
    def never(self) -> list[int]:
        """Ids that are not drawn: all specials but `<eos>`, and that too where training had no ends."""
        special = self.tokenizer.special
        return special.never_predicted + ([] if self.is_lines else [special.eos])

    def prompt_ids(self, prompt: str = "", unknown: str = "error") -> list[int]:
        """Ids of a prompt: after `<bos>` for lines; an empty one of a stream is the run's start text."""
        if self.is_lines:
            return [self.tokenizer.special.bos, *self.tokenizer.encode(prompt, unknown).tolist()]
        return self.tokenizer.encode(prompt, unknown).tolist() or self.tokenizer.encode(self.start).tolist()

    def stream(
        self, prompt: str = "", num: int = 1, max_new_tokens: int | None = None, seed: int | None = None,
        sampling: Sampling | None = None, unknown: str = "error",
    ) -> Iterator[Tensor]:  # fmt: skip
        """Yield one token (num,) at a time after `prompt`. `max_new_tokens` None: the context for lines, 500
        for a stream."""
        length = max_new_tokens or (self.config.context if self.is_lines else 500)
        return self.stream_ids(self.prompt_ids(prompt, unknown), num, length, seed, sampling or Sampling())

    def stream_ids(
        self, ids: list[int], num: int, max_new_tokens: int, seed: int | None, sampling: Sampling
    ) -> Iterator[Tensor]:
        """As `stream`, after these ids."""
        prompt = torch.tensor([ids] * num, device=self.device)
        generator = torch.Generator(self.device)
        generator.seed() if seed is None else generator.manual_seed(seed)
        eos = self.tokenizer.special.eos
        return generate(self.model, prompt, max_new_tokens, sampling, self.never, eos, generator)

    def generate(self, prompt: str = "", num: int = 1, *, stop: str | None = None, **options) -> list[str]:
        """`num` texts that go on after `prompt`, the prompt included, each up to where `stop` would begin.
        Options as of `stream`."""
        writers = [_Writer(self.tokenizer, stop) for _ in range(num)]
        texts = [prompt] * num
        for token in self.stream(prompt, num, **options):
            for n, id_ in enumerate(token.tolist()):
                texts[n] += writers[n].write(id_)
            if all(writer.ended for writer in writers):
                break
        return [text + writer.end() for text, writer in zip(texts, writers, strict=True)]

    def pieces(self, prompt: str = "", *, stop: str | None = None, **options) -> Iterator[str]:
        """One text after `prompt`, piece by piece as it becomes certain: never half a character, nothing of `stop`."""
        yield from self.written(self.stream(prompt, **options), stop)

    def written(self, tokens: Iterable[Tensor], stop: str | None = None) -> Iterator[str]:
        """The text of one stream of `tokens`, (1,) each, piece by piece, up to where `stop` would begin."""
        writer = _Writer(self.tokenizer, stop)
        for token in tokens:
            yield writer.write(int(token))
            if writer.ended:
                return
        yield writer.end()

    def score(self, text: str, unknown: str = "error") -> Evaluation:
        """The likelihood of `text`, for lines with its end included. Its `bits_per_char` is what `--score` prints."""
        total = Evaluation(0.0, 0, 0)
        for part in text.split("\n") if self.is_single_lines else [text]:
            if ids := self.tokenizer.encode(part, unknown).tolist():
                total = total + self._score(ids)
        if not total.n_tokens:
            raise UserError("there is nothing to score: the text is empty, or nothing of it is in the vocabulary")
        return total

    def _score(self, ids: list[int]) -> Evaluation:
        special = self.tokenizer.special
        before = special.bos if self.is_lines else int(self.tokenizer.encode(self.start)[-1])
        tokens = torch.tensor([before, *ids] + [special.eos] * self.is_lines, device=self.device)
        characters = torch.from_numpy(self.tokenizer.characters()).to(self.device)
        return score(self.model, tokens[:-1], tokens[1:], characters)


class _Writer:
    """Turns drawn ids into the text that may be shown so far: what could still become the stop text is held back."""

    def __init__(self, tokenizer: Tokenizer, stop: str | None):
        self.decoder, self.eos = tokenizer.decoder(), tokenizer.special.eos
        self.stop, self.ended, self._held = stop, False, ""

    def write(self, id_: int) -> str:
        if self.ended:
            return ""
        if id_ == self.eos:
            return self.end()
        return self._show(self.decoder.feed([id_]))

    def end(self) -> str:
        if self.ended:
            return ""
        text = self._show(self.decoder.flush())
        self.ended = True
        rest, self._held = self._held, ""
        return text + rest

    def _show(self, text: str) -> str:
        text = self._held + text
        if not self.stop:
            return text
        if self.stop in text:
            self.ended, self._held = True, ""
            return text[: text.index(self.stop)]
        keep = next((n for n in range(min(len(self.stop) - 1, len(text)), 0, -1) if self.stop.startswith(text[-n:])), 0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def until_end(row: list[int], eos: int) -> list[int]:
    """The ids before the first `<eos>`."""
    return row[: row.index(eos)] if eos in row else row


def load_gpt2(
    folder: Path, context: int | None, device: str = "auto", attention: str = "auto", norm_kernel: str = "auto"
) -> Run:
    """GPT-2 from a folder in the Hub's layout, its positions cropped to `context`; with the folder's own merges where
    it has them. Raises UserError for weights that are not GPT-2's, or a context larger than theirs."""
    settings = pretrained.read_settings(folder)
    settings["context"] = context or settings["context"]
    config = Config(**settings, attention=attention, norm_kernel=norm_kernel)
    tokenizer = gpt2.load(folder / "merges.txt")
    if pretrained.vocab_size(folder) != gpt2.VOCAB_SIZE:
        raise UserError(f"{folder} has {pretrained.vocab_size(folder)} ids; GPT-2's vocabulary has {gpt2.VOCAB_SIZE}")
    chosen, _ = choose_device(device)
    check_backends(config, chosen)
    model = build_model(config, tokenizer.vocab_size, tokenizer.special)
    weights = pretrained.read_weights(folder, config.context)
    check_finite(weights, folder)
    model.load_state_dict(weights)
    facts = {"step": 0, "val_loss": None, "val_bits_per_char": None}
    return Run(folder, model.to(chosen).eval(), tokenizer, config, "\n", facts, chosen)


def load_parent(config: Config) -> Run:
    """What `--init` names, on the CPU: a run, or GPT-2 with as much context as `config` has."""
    if (weights := pretrained.folder_of(config.init)) is not None:
        return load_gpt2(weights, config.context, "cpu")
    return load_run(config.init, config.checkpoint or "best", "cpu")


def load_run(
    folder: str | Path, which: str = "best", device: str = "auto", attention: str = "auto", norm_kernel: str = "auto"
) -> Run:
    """Load a run for use: model in evaluation mode, tokenizer, configuration. `which` is 'best' or 'last'; device and
    kernels are this machine's, not those of the run. 'gpt2:PATH' is GPT-2 itself, from a folder in the Hub's layout.

    Raises UserError naming the file that is missing, damaged or foreign."""
    if (weights := pretrained.folder_of(str(folder))) is not None:
        return load_gpt2(weights, None, device, attention, norm_kernel)
    folder = Path(folder)
    facts = read_facts(folder)
    if "classify" in facts:
        raise UserError(
            f"{folder} labels texts and writes none: python -m finetune.classify --out {folder} --predict TEXT"
        )
    config = dataclasses.replace(config_of(folder), attention=attention, norm_kernel=norm_kernel)
    tokenizer = read_tokenizer(folder, facts["vocab_size"])
    if not facts["data"]["start"] and config.kind == "stream":
        raise UserError(f"{folder / 'config.json'} is damaged: data.start, which an empty prompt begins with, is empty")
    chosen, _ = choose_device(device)
    check_backends(config, chosen)

    def build() -> LanguageModel:
        return build_model(config, tokenizer.vocab_size, tokenizer.special)

    try:
        check_identity(folder / which, identity(facts, tokenizer))
        check_sizes(build, layers(config), folder / which)
        model = build()
        about = load_weights(model, folder / which)
    except UserError as error:
        other = "last" if which == "best" else "best"
        way_out = f"; --checkpoint {other} takes the other one" if checkpoint.find(folder / other) else ""
        raise UserError(f"{error}{way_out}") from error
    template = facts["instruct"]["template"] if "instruct" in facts else None
    return Run(folder, model.to(chosen).eval(), tokenizer, config, facts["data"]["start"], about, chosen, template)
