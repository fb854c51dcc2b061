"""The flags of `python -m finetune.classify`: those of train.py that mean something here, and its own; no torch."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from data.errors import UserError
from engine.config.presets import Defaults
from finetune.options import FinetuneConfig, check_shared, check_start

# What --predict and --eval-only take besides --out.
USE_FLAGS = {"device", "threads", "checkpoint", "attention", "norm_kernel", "encoding"}
_DEFAULTS: Defaults = {
    "data": "surnames", "kind": "lines", "model": "gru", "steps": 2000, "batch_size": 64, "eval_interval": 250,
    "optimizer": "adamw", "lr": 3e-3, "warmup": 50, "dropout": 0.3,
}  # fmt: skip
# What has learned already is to change less.
_WITH_INIT: Defaults = {"lr": 5e-4, "steps": 1000}


def defaults(wanted: Defaults) -> Defaults:
    """The defaults of a command line that says this of model, data and init."""
    return _DEFAULTS | (_WITH_INIT if wanted.get("init") else {})


@dataclass
class ClassifyConfig(FinetuneConfig):
    """Fine-tune a model into a classifier of texts, or train one from nothing.

    Without a flag: a GRU from nothing on the bundled surnames by language. Defaults follow the model; the ones shown
    are those of this command line.
    """

    data: str = "surnames"
    """surnames (bundled), a .tsv, .csv, .json or .jsonl file, or a folder with one text file a class."""
    text_column: str | None = None
    """Column or key of the text, by name or by number from 1 (default: text)."""
    label_column: str | None = None
    """Column or key of the label (default: label)."""
    train: str = "all"
    """What is trained: all, head, last:N (the last N layers and the head), or lora."""
    pooling: Literal["last", "mean", "max"] = "last"
    """One vector for a text: of its last token, or the mean or the maximum over its tokens."""
    ngrams: int | None = None
    """Longest n-gram of tokens that goes into the head beside the pooled vector; 0: none (default: 4 from nothing, 0
    with --init)."""
    class_weights: str = "none"
    """How much more a rarer class counts in the loss: none, balanced (all classes weigh the same), or the power of its
    rarity, a number between 0 and 1."""
    lm_weight: float = 0.0
    """Weight of the auxiliary loss of predicting each next token (Radford et al. 2018)."""
    predict: str | None = None
    """Label this text with the run in --out: one JSON line; @FILE or - (standard input) labels each
    line, and @@ stands for an @."""

    task: ClassVar[str | None] = "classify"


def check(config: ClassifyConfig, given: set[str]) -> None:
    """Raise UserError for what cannot be or does not go together."""
    check_shared(config, given)
    if config.predict is not None and not config.predict.strip():
        raise UserError("--predict is empty; give a text, @FILE or -")
    if not 0 <= config.lm_weight <= 100:
        raise UserError(f"--lm-weight is {config.lm_weight}; it has to be from 0 to 100")
    if last_layers(config.train) is None and config.train not in ("all", "head", "lora"):
        raise UserError(f"--train is '{config.train}'; it may be all, head, last:N or lora")
    if config.ngrams is not None and not 0 <= config.ngrams <= 16:
        raise UserError(f"--ngrams is {config.ngrams}; it has to be from 0 (none) to 16")
    if rarity_power(config.class_weights) is None:
        raise UserError(
            f"--class-weights is '{config.class_weights}'; it may be none, balanced or a number from 0 to 1"
        )
    if config.train == "head" and config.lm_weight:
        raise UserError("--lm-weight means nothing to --train head: what predicts the next token stays as it is")
    check_start(config)


def rarity_power(class_weights: str) -> float | None:
    """The power that '--class-weights' means, from 0 (none) to 1 (balanced); None for what it cannot be."""
    try:
        power = {"none": 0.0, "balanced": 1.0}.get(class_weights)
        power = float(class_weights) if power is None else power
    except ValueError:
        return None
    return power if 0 <= power <= 1 else None


def last_layers(train: str) -> int | None:
    """N of 'last:N', None for anything else."""
    kind, _, number = train.partition(":")
    return int(number) if kind == "last" and number.isascii() and number.isdigit() and int(number) else None
