"""The flags of `python -m finetune.instruct`: those of train.py that mean something here, and its own; no torch."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, Literal

from data.errors import UserError, flag
from engine.config.presets import Defaults
from engine.config.sections import Net
from finetune.instruct.reward.rewards import NEEDS_QUESTIONS, check_name
from finetune.options import Examples, TuneConfig, TuneRun, Tuning, extending
from makemore.config import NOT_NEGATIVE, UNSET, Mark, Range

STRINGS, NO_QUESTIONS = "strings", "none"
IN_WORDS = {STRINGS: "to the bundled strings", NO_QUESTIONS: "without questions"}
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
_WITH_GRPO: Defaults = {
    "optimizer": "adamw", "lr": 1e-3, "steps": 500, "eval_interval": 50, "dropout": 0.0, "batch_size": 8, "warmup": 0,
    "max_answer": 64,
}  # fmt: skip
_GRPO_FLAGS = {"reward", "advantage", "kl", "samples", "reward_seconds"}


@dataclass
class Conversations(Examples):
    """The conversations, and how they are read."""

    data: Annotated[str, Mark.PLACE] = STRINGS
    """strings (bundled), or a .json or .jsonl file of messages, ShareGPT's conversations, instruction, input and
    output, prompt and completion, and the like; with --dpo of chosen and rejected answers. With --grpo also none: what
    a language model writes by itself."""
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
    grpo: bool = False
    """Learn from rewards for the model's own answers (group relative policy optimization); needs --init and
    --reward."""
    reward: Annotated[str | None, UNSET] = None
    """What an answer is worth: exact (the wanted one), places (the share of right ones), alternating (six letters,
    vowels and consonants in turn, an a at the end), or MODULE:FUNCTION, called with the answer, the prompt and the
    wanted answer."""
    advantage: Literal["grpo", "baseline", "none"] = "grpo"
    """What a reward counts: grpo (less the mean of the answers to its question, over their standard deviation),
    baseline (less the mean of the others: REINFORCE with a baseline), or none (REINFORCE)."""
    kl: Annotated[float, NOT_NEGATIVE] = 0.1
    """How strongly the model is held to what it was before --grpo; 0: not at all."""
    samples: Annotated[int, Range(1)] = 16
    """Answers that are drawn to each question in a step; --batch-size says how many questions it has."""
    reward_seconds: Annotated[
        float, Range(0, above=0, below=float("inf"), says="above 0 and finite"), Mark.RESUMABLE
    ] = 60.0
    """How long a reward may take for the answers of one batch."""


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
    apart: ClassVar[frozenset[str]] = frozenset({"dpo", "grpo"})

    @classmethod
    def usual(cls, wanted: dict[str, Any]) -> Defaults:
        layer = _COMMON | {"data": STRINGS} | (_STRINGS if wanted.get("data", STRINGS) == STRINGS else _OTHERS)
        if wanted.get("init"):
            special = _WITH_DPO if wanted.get("dpo") else _WITH_GRPO if wanted.get("grpo") else _WITH_INIT
            layer |= special | extending(wanted, STRINGS)
        return layer

    def check(self, explicit: set[str]) -> None:
        super().check(explicit)
        text, run, tuning = self.text, self.run, self.tuning
        for condition, names, needs in (
            (tuning.dpo, {"dpo_beta"}, "--dpo"),
            (tuning.grpo or run.eval_only, _GRPO_FLAGS, "--grpo"),
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
        if text.data in (STRINGS, NO_QUESTIONS) and (useless := sorted(explicit & of_files)):
            raise UserError(f"{flag(useless[0])} means nothing {IN_WORDS[text.data]}")
        if tuning.dpo and tuning.grpo:
            raise UserError("--dpo and --grpo are two ways to learn what is better; choose one")
        if tuning.dpo:
            self._check_preference()
        if tuning.grpo:
            self._check_rewards(explicit)
        elif text.data == NO_QUESTIONS:
            raise UserError(f"--data {NO_QUESTIONS} needs --grpo: there is nothing to learn from but rewards")

    def _check_preference(self) -> None:
        if self.run.init is None or self.text.data == STRINGS:
            missing = "--init, a run that answers already" if self.run.init is None else "--data, a file of pairs"
            raise UserError(f"--dpo needs {missing}")
        if self.text.answer_column is not None:
            raise UserError("--answer-column means nothing to --dpo, which reads chosen and rejected answers")
        if self.tuning.prompt_loss_weight:
            raise UserError("--prompt-loss-weight means nothing to --dpo, which compares answers")
        self._check_beside_reference("--dpo")

    def _check_rewards(self, explicit: set[str]) -> None:
        text, tuning = self.text, self.tuning
        if self.run.init is None or tuning.reward is None:
            missing = "--init, a run that answers already" if self.run.init is None else "--reward"
            raise UserError(f"--grpo needs {missing}")
        check_name(tuning.reward)
        if text.data == NO_QUESTIONS:
            if tuning.reward in NEEDS_QUESTIONS:
                raise UserError(f"--reward {tuning.reward} compares with wanted answers: --data {text.data} has none")
            if useless := sorted(explicit & {"template", "extend_vocabulary"}):
                raise UserError(f"{flag(useless[0])} means nothing {IN_WORDS[text.data]}")
        if tuning.advantage != "none" and tuning.samples == 1:
            raise UserError(f"--advantage {tuning.advantage} compares answers: it needs --samples 2 or more")
        if tuning.prompt_loss_weight:
            raise UserError("--prompt-loss-weight means nothing to --grpo, which learns from answers")
        if self.machine.shard:
            raise UserError("--shard divides the model, which --grpo needs whole to write answers")
        self._check_beside_reference("--grpo")

    def _check_beside_reference(self, way: str) -> None:
        for name in ("label_smoothing", "z_loss"):
            if getattr(self.net, name, 0):
                raise UserError(f"{flag(name)} means nothing to {way}")
        if getattr(self.net, "norm", None) == "batch":
            raise UserError(f"{way} compares two models, and with --norm batch a model is another one while it trains")
