"""What both kinds of fine-tuning start with: checks, a parent's model and vocabulary or one made from the texts, and
the trainer."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from data.errors import UserError, warn
from data.rows import HasTokens, RowLoader, eval_rows
from data.tokenizers import Tokenizer
from data.vocabulary import check_name, make
from engine import runtime, threads
from engine.backends import check_backends
from engine.config import flags
from engine.config.checks import refuse_contradictions
from engine.config.sections import MODEL_FIELDS, Config
from engine.registry import is_counted, refuse_foreign_flags
from engine.run.load import Run, load_parent
from engine.training import extend
from engine.training.metrics import Metrics, check_log
from engine.training.trainer import Trainer
from makemore.base import count_parameters
from makemore.counts.mixture import Mixture

UNKNOWN_ALLOWED = 0.01  # of the characters
FEW = 20  # examples


def begin(config: Any, given: set[str]) -> tuple[Any, torch.device, Run | None]:
    """Check what a new run asks for, before any data is read: its configuration with the threads it uses, its device,
    and what `--init` names."""
    if is_counted(config):
        raise UserError(f"a {config.model} that counts cannot be fine-tuned; choose another --model")
    refuse_foreign_flags(config, given)
    check_log(config.log)
    device, _ = runtime.choose_device(config.device)
    check_backends(config, device)
    config = threads.settle(config, given, device)
    parent = parent_of(config, given) if config.init else None
    if parent:
        extend.check_extendable(config, parent.tokenizer)
    return config, device, parent


def parent_of(config: Config, given: set[str]) -> Run:
    """What `--init` names. UserError for flags that contradict it."""
    parent = load_parent(config)
    if isinstance(parent.model, Mixture):  # counts of another text: the neural model goes on alone
        plain = dataclasses.replace(parent.config, mix_ngram=0)
        parent = dataclasses.replace(parent, model=parent.model.neural, config=plain)
    unbounded = {"context"} if parent.model.context is None else set()  # how much of a text is read is free then
    refuse_contradictions(config, given & MODEL_FIELDS - unbounded, flags.stored(parent.config), set(), "--init")
    return parent


def tokenizer_for(config: Config, texts: list[str], parent: Run | None) -> Tokenizer:
    """The vocabulary of `parent`, under `--extend-vocabulary` with what these training texts have besides; where there
    is no parent one of `--tokenizer` for the texts."""
    if parent:
        if not config.extend_vocabulary:
            return parent.tokenizer
        tokenizer = parent.tokenizer.extended(set().union(*texts))
        extend.tell_added(parent.tokenizer, tokenizer)
        return tokenizer
    check_name(config.tokenizer)
    return make(config.tokenizer, "".join(sorted(set().union(*texts))), (f"{text}\n" for text in texts))


def trainer_of_rows(
    model: nn.Module,
    rows: dict[str, Sequence[HasTokens]],
    pad: int,
    what: str,
    characters: np.ndarray,
    config: Config,
    path: Path,
    device: torch.device,
    judge: Callable[[], dict[str, float]],
    ours: dict[str, Any],
) -> Trainer:
    """A trainer on the rows of 'train', evaluated on those of 'val', and the lines that introduce the run: on `what`.
    `characters` and `judge` are the trainer's, `ours` the run's identity."""
    runtime.move_and_compile(model, device, config.compile)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(
        f"{config.model} ({trained:,} of {count_parameters(model):,} parameters trained) on {what}\n"
        f"on {device}, run directory {path}",
        flush=True,
    )
    loader = RowLoader(rows["train"], config.batch_size, config.seed, pad)
    metrics = Metrics(path, config.log, flags.stored(config))
    return Trainer(model, loader, eval_rows(rows["val"], pad), characters, config, path, device, metrics, judge, ours)


def check_unknown(unknown: int, texts: Iterable[str], side: str, config: Config, tokenizer: Tokenizer) -> None:
    """Warn of characters that the vocabulary lacks; UserError where they are many and the vocabulary another run's."""
    characters, hint = sum(map(len, texts)), extend.unknown_hint(config, tokenizer)
    if config.init and unknown > UNKNOWN_ALLOWED * characters:
        raise UserError(
            f"{unknown / characters:.1%} of the characters of the {side} texts are not in the vocabulary of "
            f"{config.init}; {hint}{'; or ' if hint else ''}start from a run with --tokenizer byte, or from scratch"
        )
    if unknown:
        warn(
            f"{unknown:,} of {characters:,} characters of the {side} texts are not in the vocabulary: <unk>; "
            f"{hint or '--tokenizer byte knows all'}"
        )


def warn_if_few(count: int, side: str) -> None:
    """Warn of a validation or test side on which nothing can be measured well."""
    if side != "train" and count < FEW:
        warn(f"only {count} {side} examples: what is measured on them is rough")
