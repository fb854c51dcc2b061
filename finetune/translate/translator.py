"""A trained encoder and decoder at work: loading them, `--translate`, `--map`, `--eval-only`."""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from data.errors import UserError, warn
from data.program import command
from data.reading import file_or_text, numbered_lines, read_chunks
from data.rows import eval_rows
from data.terminal import show
from data.tokenizers import Tokenizer
from engine import runtime, threads
from engine.backends import check_backends
from engine.config import flags
from engine.config.settings import replace
from engine.evaluate import evaluate
from engine.registry import layers
from engine.run import folder
from engine.run.identity import check_identity, identity
from engine.run.weights import check_sizes, load_weights
from finetune.task import backends_of, refuse_edited, refuse_useless_here
from finetune.translate import report
from finetune.translate.build import build_translator
from finetune.translate.decoding import translate_all
from finetune.translate.material import encode, read_all, read_material, source_ids
from finetune.translate.options import USE_FLAGS, TranslateConfig
from finetune.translate.picture import draw_map
from makemore.base import LanguageModel

SHOWN = 40  # characters of a text in a message
LINES_AT_ONCE = 256  # of a file that is translated


@dataclasses.dataclass
class Translator:
    """A trained model in memory."""

    model: LanguageModel
    tokenizer: Tokenizer
    config: TranslateConfig
    device: torch.device

    def __call__(self, texts: list[str], beams: int = 1) -> list[str]:
        """The translation of each text, by a search this wide. Warns of characters that the vocabulary lacks;
        UserError for a text that is longer than a model with a context reads."""
        context = self.model.context
        lengths = [len(source_ids(text, self.tokenizer)) for text in texts]
        if context is not None and max(lengths) > context:
            text = texts[lengths.index(max(lengths))]
            raise UserError(
                f"{text[:SHOWN]!r}{'...' * (len(text) > SHOWN)} has {max(lengths):,} tokens, its end included, which "
                f"is more than the context of {context}, all that this model reads: cut it, or train with a larger "
                "--context"
            )
        unknown = sum(int((self.tokenizer.encode(text, "mask") == self.tokenizer.special.unk).sum()) for text in texts)
        if unknown:
            hint = self.tokenizer.other_form("\n".join(texts)) or "expect little of them"
            warn(f"{unknown:,} of {sum(map(len, texts)):,} characters are not in the vocabulary: {hint}")
        return translate_all(self.model, texts, self.tokenizer, self.config.net.context, beams, self.device)


def load_translator(path: str | Path, which: str = "best", device: str = "auto", **backends: str) -> Translator:
    """Load a run of finetune.translate. Raises UserError naming the file that is missing, damaged or foreign."""
    path = Path(path)
    facts = folder.read_facts(path)
    if folder.task_of(facts) != TranslateConfig.task:
        maker = folder.command_of(facts)
        raise UserError(f"{path} is not a run of {command(TranslateConfig.program)}; it is for {maker}")
    config = replace(flags.config_of(path, TranslateConfig), **{"attention": "auto", "norm_kernel": "auto"} | backends)
    tokenizer = folder.read_tokenizer(path, facts["vocab_size"])
    chosen, _ = runtime.choose_device(device)
    check_backends(config, chosen)

    def build() -> LanguageModel:
        return build_translator(config, tokenizer)

    check_identity(path / which, identity(facts, tokenizer))
    check_sizes(build, layers(config), path / which)
    model = build()
    load_weights(model, path / which)
    return Translator(model.to(chosen).eval(), tokenizer, config, chosen)


def translate(config: TranslateConfig, explicit: set[str]) -> int:
    """`--translate`: a line for each text, an empty one for an empty line; with `--map` the picture of one."""
    translator, drawn = _translator(config, explicit, {"translate", "map"}), 0
    for texts in _texts(config):
        some = [text for text in texts if text]
        if config.run.map is not None and drawn + len(some) > 1:
            raise UserError("--map draws one translation: give --translate one text")
        answers = dict(zip(some, translator(some, config.tuning.beams), strict=True)) if some else {}
        for text in texts:
            answer = answers.get(text, "")
            show(answer, flush=True)
            if config.run.map is not None and text:
                drawn += 1
                draw_map(translator.model, translator.tokenizer, text, answer, Path(config.run.map), translator.device)
    return 0


def evaluate_run(config: TranslateConfig, explicit: set[str]) -> dict[str, Any]:
    """What `--eval-only` says: of the run's own test pairs, or of all of the given data."""
    translator = _translator(config, explicit, {"eval_only", "data"})
    own, tokenizer = translator.config, translator.tokenizer
    if "data" in explicit:
        name, pairs = read_all(config)
    else:
        material = read_material(own)
        refuse_edited(own, material.key, folder.read_facts(config.run.path), "name some with --data")
        name, pairs = material.name, material.sides["test"]
    pairs, rows = encode(pairs, tokenizer, own, "test")
    answers = translator([pair.text for pair in pairs], config.tuning.beams)
    batches = eval_rows(rows, tokenizer.special.pad)
    loss = evaluate(translator.model, batches, tokenizer.characters(), translator.device).loss
    return {"data": name, "loss": loss, "beams": config.tuning.beams, **report.scores_by_group(pairs, answers)}


def _translator(config: TranslateConfig, explicit: set[str], mode: set[str]) -> Translator:
    refuse_useless_here(explicit, USE_FLAGS | mode | {"out"})
    threads.use(config.machine.threads if "threads" in explicit else None)
    return load_translator(
        config.run.path, config.run.checkpoint or "best", config.machine.device, **backends_of(config, explicit)
    )


def _texts(config: TranslateConfig) -> Iterator[list[str]]:
    """The texts of `--translate`: those of a file together, those of standard input as they come."""
    wanted = config.run.translate
    assert wanted is not None
    if wanted == "-":
        for n, line in enumerate(sys.stdin.buffer, 1):
            try:
                text = line.decode(config.text.encoding).strip()
            except UnicodeDecodeError as error:
                raise UserError(f"standard input is not {config.text.encoding}: line {n}; see --encoding") from error
            yield [text]
        return
    file, text = file_or_text(wanted)
    if file is None:
        yield [text.strip()]
        return
    lines = [line.strip() for _, line in numbered_lines(read_chunks([file], config.text.encoding))]
    if not lines[-1]:
        lines.pop()  # what follows the last end of a line
    for start in range(0, len(lines), LINES_AT_ONCE):
        yield lines[start : start + LINES_AT_ONCE]
