"""The flags of `python -m finetune.instruct`: those of train.py that mean something here, and its own; no torch."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from data.errors import UserError
from engine.config.presets import Defaults
from finetune.options import FinetuneConfig, check_shared, check_start

STRINGS = "strings"
# What --eval-only takes besides --out.
USE_FLAGS = {
    "eval_only", "device", "threads", "checkpoint", "attention", "norm_kernel", "data", "encoding", "generations",
}  # fmt: skip
_COMMON: Defaults = {"kind": "lines", "n_embd": 128}
_STRINGS: Defaults = {"steps": 4000, "batch_size": 32, "eval_interval": 500}  # as long as it takes to learn them all
_OTHERS: Defaults = {"steps": 1500, "batch_size": 16, "eval_interval": 100, "dropout": 0.2}
# What has learned already is to change less.
_WITH_INIT: Defaults = {"optimizer": "adamw", "lr": 5e-4, "steps": 500, "weight_decay": 0.1}
_WITH_DPO: Defaults = {"optimizer": "adamw", "lr": 5e-5, "steps": 200, "eval_interval": 50, "dropout": 0.0}


def defaults(wanted: Defaults) -> Defaults:
    """The defaults of a command line that says this of model, data, init and dpo."""
    layer = _COMMON | {"data": STRINGS} | (_STRINGS if wanted.get("data", STRINGS) == STRINGS else _OTHERS)
    if wanted.get("init"):
        layer |= _WITH_DPO if wanted.get("dpo") else _WITH_INIT
    return layer


@dataclass
class InstructConfig(FinetuneConfig):
    """Fine-tune a model to answer instructions, or train one from nothing; then talk to it: sample.py RUN --chat.

    Without a flag: a Transformer from nothing on the bundled tasks on strings. Defaults follow the model and the
    data; the ones shown are those of this command line.
    """

    data: str = STRINGS
    """strings (bundled), or a .json or .jsonl file of messages, of instruction, input and output, or of prompt and
    completion; with --dpo of prompt, chosen and rejected."""
    template: Literal["chatml", "alpaca", "plain"] | None = None
    """How a conversation is written down: chatml (a special token opens each turn), alpaca (Alpaca's headings too), or
    plain (the texts alone); default: as the run of --init, else chatml."""
    train: Literal["all", "lora"] = "all"
    """What is trained: all, or low-rank updates (LoRA)."""
    dpo: bool = False
    """Learn which of two answers is preferred (direct preference optimization); needs --init."""
    dpo_beta: float = 0.1
    """How strongly the model is held to what it was before --dpo."""
    max_answer: int | None = None
    """Longest answer when examples are answered at the end, in tokens (default: what the context leaves)."""
    generations: str | None = None
    """Where --eval-only writes its answers, as JSON lines."""

    task: ClassVar[str | None] = "instruct"


def check(config: InstructConfig, given: set[str]) -> None:
    """Raise UserError for what cannot be or does not go together."""
    check_shared(config, given)
    if config.max_answer is not None and config.max_answer < 1:
        raise UserError(f"--max-answer is {config.max_answer}; it has to be at least 1")
    if not 0 < config.dpo_beta < float("inf"):
        raise UserError(f"--dpo-beta is {config.dpo_beta}; it has to be above 0 and finite")
    for condition, flags, needs in (
        (config.dpo, {"dpo_beta"}, "--dpo"),
        (config.eval_only, {"generations"}, "--eval-only; a run writes generations.jsonl"),
    ):
        if not condition and (useless := sorted(given & flags)):
            raise UserError(f"--{useless[0].replace('_', '-')} means nothing without {needs}")
    if config.generations == "":
        raise UserError("--generations is empty; name a file")
    if config.eval_only or config.resume:
        return
    check_start(config)
    if config.dpo and (config.init is None or config.data == STRINGS):
        missing = "--init, a run that answers already" if config.init is None else "--data, a file of pairs"
        raise UserError(f"--dpo needs {missing}")
    if config.dpo and config.label_smoothing:
        raise UserError("--label-smoothing means nothing to --dpo")
    if config.data == STRINGS and (useless := sorted(given & {"duplicates", "encoding"})):
        raise UserError(f"--{useless[0]} means nothing to the bundled strings")
    if config.dpo and config.norm == "batch":
        raise UserError("--dpo compares two models, and with --norm batch a model is another one while it trains")
