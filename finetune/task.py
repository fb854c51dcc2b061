"""What all fine-tuning tasks share: the run of --init, its vocabulary or a new one, and rows of tokens as batches."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from data.errors import UserError, flag, warn
from data.rows import RowLoader, eval_rows
from data.tokenizers import CharTokenizer, Tokenizer
from data.vocabulary import check_name, make
from engine.config.checks import refuse_contradictions
from engine.config.settings import get, marked, replace, shape, stored
from engine.run.load import Run, load_parent
from engine.task import Batches, Session, Task
from engine.training import extend
from finetune.options import TuneConfig
from makemore.base import count_parameters
from makemore.config import Mark
from makemore.counts.mixture import Mixture

UNKNOWN_ALLOWED = 0.01  # of the characters
FEW = 20  # examples


class FineTuning(Task):
    """Its data has `rows` of tokens for each side of the split ('train', 'val', 'test'), and `what` it is in words."""

    def parent(self, config: TuneConfig, explicit: set[str]) -> Run:
        parent = load_parent(config)
        if getattr(parent.config.net, "count_inputs", False):
            raise UserError(
                f"{config.run.init} reads the counts of its own text (--count-inputs), which no other task has; "
                "start from a run without"
            )
        if isinstance(parent.model, Mixture):  # counts of another text: the neural model goes on alone
            plain = replace(parent.config, mix_ngram=0)
            parent = dataclasses.replace(parent, model=parent.model.neural, config=plain)
        if not parent.model.causal and "objective" in config.fixed:
            raise UserError(f"{config.run.init} fills gaps and writes no text: what can start from it labels texts")
        if parent.config.net.is_counted:
            raise UserError(f"a {parent.config.model} that counts cannot be fine-tuned; choose another --init")
        unbounded = {"context"} if parent.model.context is None else set()  # how much of a text is read is free then
        refuse_contradictions(config, explicit & shape(TuneConfig) - unbounded, stored(parent.config), set(), "--init")
        extend.check_extendable(config, parent.tokenizer)
        return parent

    def batches(self, config: TuneConfig, data: Any, model: Any) -> Batches:
        pad = data.tokenizer.special.pad
        loader = RowLoader(data.rows["train"], config.optim.batch_size, config.run.seed, pad)
        return Batches(loader, eval_rows(data.rows["val"], pad), self.characters(config, data))

    def characters(self, config: Any, data: Any) -> np.ndarray:
        """How many characters each target stands for, (V,) or (classes,)."""
        return data.tokenizer.characters()

    def introduce(self, session: Session) -> str:
        model = session.model
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return (
            f"{session.config.model} ({trained:,} of {count_parameters(model):,} parameters trained) on "
            f"{session.data.what}"
        )


def tokenizer_for(
    config: TuneConfig, explicit: set[str], texts: list[str], parent: Run | None
) -> tuple[Any, Tokenizer]:
    """The vocabulary of `parent`, with `--extend-vocabulary` and the characters that `texts` have besides, which it
    prints; without a parent a new one, by `--tokenizer`. The configuration with it: where nothing is to be added,
    `--extend-vocabulary` is off unless it was asked for."""
    characters = set().union(*texts)
    if parent:
        if not config.run.extend_vocabulary:
            return config, parent.tokenizer
        assert isinstance(parent.tokenizer, CharTokenizer)  # `check_extendable` has passed
        tokenizer = parent.tokenizer.extended(characters)
        if tokenizer.vocab_size == parent.tokenizer.vocab_size and "extend_vocabulary" not in explicit:
            return replace(config, extend_vocabulary=False), parent.tokenizer
        extend.tell_added(parent.tokenizer, tokenizer)
        return config, tokenizer
    check_name(config.text.tokenizer)
    return config, make(config.text.tokenizer, "".join(sorted(characters)), (f"{text}\n" for text in texts))


def check_unknown(unknown: int, texts: Iterable[str], side: str, config: TuneConfig, tokenizer: Tokenizer) -> None:
    """Warn of characters that the vocabulary lacks; UserError where they are many and the vocabulary another run's."""
    characters, hint = sum(map(len, texts)), extend.unknown_hint(config, tokenizer)
    if config.run.init and unknown > UNKNOWN_ALLOWED * characters:
        raise UserError(
            f"{unknown / characters:.1%} of the characters of the {side} texts are not in the vocabulary of "
            f"{config.run.init}; {hint}{'; or ' if hint else ''}start from a run with --tokenizer byte, or from scratch"
        )
    if unknown:
        warn(
            f"{unknown:,} of {characters:,} characters of the {side} texts are not in the vocabulary: <unk>; "
            f"{hint or '--tokenizer byte knows all'}"
        )


def refuse_edited(config: TuneConfig, key: str, facts: dict[str, Any], way_out: str) -> None:
    """Raise UserError where the examples, whose key this is, are not those of the run with these facts."""
    if key != facts["data"]["key"]:
        raise UserError(f"the examples of {config.text.data} have changed since the run began: {way_out}")


def refuse_useless_here(explicit: set[str], allowed: set[str]) -> None:
    """Raise UserError for a flag that `--eval-only` and the like have no use for."""
    if useless := sorted(explicit - allowed):
        raise UserError(f"{flag(useless[0])} means nothing here; everything comes from --out")


def warn_if_few(count: int, side: str) -> None:
    """Warn of a validation or test side on which nothing can be measured well."""
    if side != "train" and count < FEW:
        warn(f"only {count} {side} examples: what is measured on them is rough")


def backends_of(config: TuneConfig, explicit: set[str]) -> dict[str, Any]:
    """The kernels that the command line asks for: those that a run was trained on may not be on this machine."""
    return {name: get(config, name) for name in marked(TuneConfig, Mark.BACKEND) & explicit}
