"""The flags of `python -m finetune.classify`: those of train.py that mean something here, and its own; no torch."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, Literal

from data.errors import UserError
from engine.config.presets import Defaults
from engine.config.sections import Net
from finetune.options import Examples, TuneConfig, TuneRun, Tuning, extending
from makemore.config import FRACTION, MAX_CONTEXT, UNSET, Mark, Range

# What --predict and --eval-only take besides --out.
USE_FLAGS = {"device", "threads", "checkpoint", "attention", "norm_kernel", "encoding"}
_DEFAULTS: Defaults = {
    "data": "surnames", "kind": "lines", "model": "gru", "steps": 2000, "batch_size": 64, "eval_interval": 250,
    "optimizer": "adamw", "lr": 3e-3, "warmup": 50, "dropout": 0.3,
}  # fmt: skip
_WITH_INIT: Defaults = {"lr": 5e-4, "steps": 1000}  # a pretrained model gets a smaller learning rate


@dataclass
class LabelledTexts(Examples):
    """The labelled texts, and how they are read."""

    data: Annotated[str, Mark.PLACE] = "surnames"
    """surnames (bundled), sst2 or imdb (downloaded), a .tsv, .csv, .parquet, .json or .jsonl file, lines that begin
    with their label, or a folder: of text files, one a class; of folders of texts, one a class; or of train, validation
    and test."""
    text_column: Annotated[str | None, UNSET] = None
    """Column or key of the text, by name or by number from 1 (default: text)."""
    label_column: Annotated[str | None, UNSET] = None
    """Column or key of the label (default: label)."""
    label_separator: Annotated[str | None, UNSET] = None
    """A text has any number of labels, with this between them, as in "toxic,insult"; so it has where JSON or Parquet
    has lists of labels."""


@dataclass
class ClassifierFlags(Tuning):
    """The classifier, and what is trained of the model."""

    train: str = "all"
    """What is trained: all, head, last:N (the last N layers and the head), or lora."""
    pooling: Literal["last", "mean", "max"] = "last"
    """One vector for a text: of its last token, or the mean or the maximum over its tokens."""
    look_ahead: Annotated[int, Range(0, MAX_CONTEXT)] = 0
    """How many later tokens each layer of a Transformer sees besides the earlier ones; 0: none, as a model of language
    does."""
    ngrams: Annotated[int | None, Range(0, 16, says="from 0 (none) to 16"), Mark.SETTLED] = None
    """Longest n-gram of tokens that goes into the head beside the pooled vector; 0: none (default: 4 from nothing, 0
    with --init)."""
    class_weights: str = "none"
    """How much more a rarer class counts in the loss: none, balanced (all classes weigh the same), or the power of its
    rarity, a number between 0 and 1."""
    lm_weight: Annotated[float, Range(0, 100, says="from 0 to 100")] = 0.0
    """Weight of the auxiliary loss of predicting each next token (Radford et al. 2018)."""
    augment: Annotated[float, FRACTION, Mark.OWN, Mark.RARE] = 0.0
    """In training, change each character of a text with this probability, anew in each epoch: replaced, left out, or
    one put in before it."""


@dataclass
class ClassifyRun(TuneRun):
    """The run directory, and what the run starts from."""

    predict: Annotated[str | None, Mark.CALL, Mark.USES_RUN, UNSET] = None
    """Label this text with the run in --out: one JSON line; @FILE or - (standard input) labels each line, and @@
    stands for an @."""
    baseline: Annotated[bool, Mark.CALL] = True
    """At the end, after the report, train logistic regression over character n-grams too, to compare."""


@dataclass
class ClassifyConfig(TuneConfig[Net], Generic[Net]):
    """Fine-tune a model into a classifier of texts, or train one from nothing.

    Without a flag: a GRU from nothing on the bundled surnames by language. Defaults follow the model; the ones shown
    are those of this command line.
    """

    text: LabelledTexts
    run: ClassifyRun
    tuning: ClassifierFlags

    fixed: ClassVar[dict[str, Any]] = {name: off for name, off in TuneConfig.fixed.items() if name != "objective"}
    task: ClassVar[str | None] = "classify"
    program: ClassVar[str] = "classify"

    @classmethod
    def usual(cls, wanted: dict[str, Any]) -> Defaults:
        return _DEFAULTS | (_WITH_INIT | extending(wanted, "surnames") if wanted.get("init") else {})

    def check(self, explicit: set[str]) -> None:
        super().check(explicit)
        train, class_weights = self.tuning.train, self.tuning.class_weights
        if self.run.predict is not None and not self.run.predict.strip():
            raise UserError("--predict is empty; give a text, @FILE or -")
        if last_layers(train) is None and train not in ("all", "head", "lora"):
            raise UserError(f"--train is '{train}'; it may be all, head, last:N or lora")
        if self.text.label_separator == "":
            raise UserError("--label-separator is empty; give what stands between two labels, as a comma")
        if rarity_power(class_weights) is None:
            raise UserError(f"--class-weights is '{class_weights}'; it may be none, balanced or a number from 0 to 1")
        if train == "head" and self.tuning.lm_weight:
            raise UserError("--lm-weight means nothing to --train head: what predicts the next token stays as it is")
        if getattr(self.net, "fills", False) and (self.tuning.look_ahead or self.tuning.lm_weight):
            useless = "--look-ahead" if self.tuning.look_ahead else "--lm-weight"
            raise UserError(f"{useless} means nothing to --objective masked: every token is seen already")
        if self.tuning.look_ahead and self.model != "transformer":
            raise UserError(
                f"--look-ahead means nothing to --model {self.model}: a Transformer alone sees later tokens"
            )
        if self.tuning.look_ahead and self.tuning.lm_weight:
            raise UserError("--look-ahead shows each token what --lm-weight would have it predict: leave one out")
        if "logit_cap" in explicit and not self.tuning.lm_weight:
            raise UserError("--logit-cap caps the logits of the next token: it means nothing without --lm-weight")
        self.check_start()


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
