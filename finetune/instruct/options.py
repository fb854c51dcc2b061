"""The flags of `python -m finetune.instruct`: those of train.py that mean something here, and its own; no torch."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, Literal

from data.errors import UserError, flag
from engine.config.presets import Defaults
from engine.config.sections import Net
from finetune.options import Examples, TuneConfig, TuneRun, Tuning, extending
from makemore.config import NOT_NEGATIVE, UNSET, Mark, Range

STRINGS = "strings"
COLUMNS = ("prompt_column", "answer_column", "system_column")
# What --eval-only takes besides --out.
USE_FLAGS = {
    "eval_only", "device", "threads", "checkpoint", "attention", "norm_kernel", "data", "encoding", "generations",
    *COLUMNS, "strict",
}  # fmt: skip
_COMMON: Defaults = {"kind": "lines", "n_embd": 128}
_STRINGS: Defaults = {"steps": 4000, "batch_size": 32, "eval_interval": 500}  # as long as it takes to learn them all
_OTHERS: Defaults = {"steps": 1500, "batch_size": 16, "eval_interval": 100, "dropout": 0.2}
# A pretrained model gets a smaller learning rate.
_WITH_INIT: Defaults = {"optimizer": "adamw", "lr": 5e-4, "steps": 500, "weight_decay": 0.1}
_WITH_DPO: Defaults = {"optimizer": "adamw", "lr": 5e-5, "steps": 200, "eval_interval": 50, "dropout": 0.0}


@dataclass
class Conversations(Examples):
    """The conversations, and how they are read."""

    data: Annotated[str, Mark.PLACE] = STRINGS
    """strings (bundled), or a .json or .jsonl file of messages, ShareGPT's conversations, instruction, input and
    output, prompt and completion, and the like; with --dpo of chosen and rejected answers."""
    prompt_column: Annotated[str | None, UNSET] = None
    """Key of the prompt in --data (default: instruction, prompt, question or query)."""
    answer_column: Annotated[str | None, UNSET] = None
    """Key of the answer (default: output, completion, response or answer)."""
    system_column: Annotated[str | None, UNSET] = None
    """Key of the system's message (default: system or system_prompt, where there is one)."""
    strict: bool = False
    """Refuse the first example that cannot be read; by default it is left out and counted, up to a tenth of all."""
    template: Annotated[Literal["chatml", "alpaca", "plain"] | None, Mark.SETTLED, UNSET] = None
    """How a conversation is written down: chatml (a special token opens each turn), alpaca (Alpaca's headings too), or
    plain (the texts alone); default: as the run of --init, else chatml."""
    max_answer: Annotated[int | None, Range(1), UNSET] = None
    """Longest answer when examples are answered at the end, in tokens (default: what the context leaves)."""


@dataclass
class AnswererFlags(Tuning):
    """What is trained, and how."""

    train: Literal["all", "lora"] = "all"
    """What is trained: all, or low-rank updates (LoRA)."""
    prompt_loss_weight: Annotated[float, NOT_NEGATIVE] = 0.0
    """How much a token of a prompt, the user's turns and the system's, counts in the training loss beside one of an
    answer; 0: the answers alone."""
    dpo: bool = False
    """Learn which of two answers is preferred (direct preference optimization); needs --init."""
    dpo_beta: Annotated[float, Range(0, above=0, below=float("inf"), says="above 0 and finite")] = 0.1
    """How strongly the model is held to what it was before --dpo."""


@dataclass
class InstructRun(TuneRun):
    """The run directory, and what the run starts from."""

    generations: Annotated[str | None, UNSET] = None
    """Where --eval-only writes its answers, as JSON lines."""


@dataclass
class InstructConfig(TuneConfig[Net], Generic[Net]):
    """Fine-tune a model to answer instructions, or train one from nothing; then talk to it: sampling, with --chat.

    Without a flag: a Transformer from nothing on the bundled tasks on strings. Defaults follow the model and the
    data; the ones shown are those of this command line.
    """

    text: Conversations
    run: InstructRun
    tuning: AnswererFlags

    task: ClassVar[str | None] = "instruct"
    program: ClassVar[str] = "instruct"
    apart: ClassVar[frozenset[str]] = frozenset({"dpo"})

    @classmethod
    def usual(cls, wanted: dict[str, Any]) -> Defaults:
        layer = _COMMON | {"data": STRINGS} | (_STRINGS if wanted.get("data", STRINGS) == STRINGS else _OTHERS)
        if wanted.get("init"):
            layer |= (_WITH_DPO if wanted.get("dpo") else _WITH_INIT) | extending(wanted, STRINGS)
        return layer

    def check(self, explicit: set[str]) -> None:
        super().check(explicit)
        text, run, tuning = self.text, self.run, self.tuning
        for condition, names, needs in (
            (tuning.dpo, {"dpo_beta"}, "--dpo"),
            (run.eval_only, {"generations"}, "--eval-only; a run writes generations.jsonl"),
        ):
            if not condition and (useless := sorted(explicit & names)):
                raise UserError(f"{flag(useless[0])} means nothing without {needs}")
        if run.generations == "":
            raise UserError("--generations is empty; name a file")
        if run.eval_only or run.resume:
            return
        self.check_start()
        of_files = {"duplicates", "encoding", "val_data", "test_data", *COLUMNS, "strict"}
        if text.data == STRINGS and (useless := sorted(explicit & of_files)):
            raise UserError(f"{flag(useless[0])} means nothing to the bundled strings")
        if tuning.dpo:
            self._check_preference()

    def _check_preference(self) -> None:
        if self.run.init is None or self.text.data == STRINGS:
            missing = "--init, a run that answers already" if self.run.init is None else "--data, a file of pairs"
            raise UserError(f"--dpo needs {missing}")
        if self.text.answer_column is not None:
            raise UserError("--answer-column means nothing to --dpo, which reads chosen and rejected answers")
        if self.tuning.prompt_loss_weight:
            raise UserError("--prompt-loss-weight means nothing to --dpo, which compares answers")
        for name in ("label_smoothing", "z_loss"):
            if getattr(self.net, name, 0):
                raise UserError(f"{flag(name)} means nothing to --dpo")
        if getattr(self.net, "norm", None) == "batch":
            raise UserError("--dpo compares two models, and with --norm batch a model is another one while it trains")
