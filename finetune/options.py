"""The sections of flags that all fine-tuning has, and what does not go together in them; imports no torch."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, Literal

from tyro.conf import Fixed

from data.errors import UserError, flag
from engine.config.presets import Defaults
from engine.config.sections import Config, Net, RunFlags
from engine.config.settings import get
from makemore.config import UNSET, Mark, Range

LORA_FLAGS = {"lora_rank", "lora_alpha", "lora_layers"}


@dataclass
class Examples:
    """The examples, and how they are read."""

    data: Annotated[str, Mark.PLACE] = ""
    val_data: Annotated[str | None, Mark.PLACE, UNSET] = None
    """The validation examples, as --data. Without it: those that --data itself holds apart, else a tenth of it."""
    test_data: Annotated[str | None, Mark.PLACE, UNSET] = None
    """The test examples, in the same way."""
    tokenizer: str = "char"
    """char (Unicode characters), byte (UTF-8), bpe:N (byte-level BPE trained on the texts, N tokens), or gpt2."""
    encoding: str = "utf-8"
    """Encoding of text files, as Python names it."""
    duplicates: Literal["keep", "drop"] = "keep"
    """Examples that say the same: keep them, on one side of the split, or drop all but one; of a split that was
    published, those of the test."""
    split_seed: Annotated[int, Range(0)] = 0
    """Which tenths are validation and test; of the bundled strings, which ones are asked about."""
    kind: Fixed[str] = "lines"


@dataclass
class Tuning:
    """What is trained of the model."""

    train: str = "all"
    lora_rank: Annotated[int, Range(1)] = 4
    """Rank of the low-rank updates."""
    lora_alpha: Annotated[float, Range(0, above=0, below=float("inf"), says="above 0 and finite")] = 8.0
    """Their scale is alpha / rank."""
    lora_layers: str = "all"
    """Which linear layers get one: all, or parts of their names, as in attn,mlp.c_fc."""


@dataclass
class TuneRun(RunFlags):
    """The run directory, and what the run starts from."""

    init: Annotated[str | None, UNSET] = None
    """Start from the weights and the vocabulary of this run, or published ones (gpt2:PATH, hf:PATH); scratch: from
    nothing."""
    preset: Fixed[None] = None
    teacher: Fixed[None] = None
    teacher_weight: Fixed[float] = 0.9
    teacher_temperature: Fixed[float] = 1.0

    def __post_init__(self):
        self.init = None if self.init == TuneConfig.no_init else self.init


@dataclass
class TuneConfig(Config[Net], Generic[Net]):
    """What all fine-tuning has; each command adds its own."""

    text: Examples  # type: ignore[assignment]  # instead of a Text
    run: TuneRun
    tuning: Tuning

    fixed: ClassVar[dict[str, Any]] = {
        "counts": False, "carry_state": False, "mix_ngram": 0, "count_inputs": False, "objective": "next",
        "mask_rate": 0.3, "mask_span": 2,
    }  # fmt: skip
    no_init: ClassVar[str | None] = "scratch"

    def check(self, explicit: set[str]) -> None:
        asked = [name for name, off in self.fixed.items() if getattr(self.net, name, off) != off]
        if asked or get(self, "kind") != "lines":
            raise UserError(f"--config asks for {flag(asked[0]) if asked else '--kind'}, which means nothing here")
        if self.tuning.train != "lora" and (useless := sorted(explicit & LORA_FLAGS)):
            raise UserError(f"{flag(useless[0])} means nothing without --train lora")
        if self.net.is_counted and not self.run.resume:
            raise UserError(f"a {self.model} that counts cannot be fine-tuned; choose another --model")

    def check_start(self) -> None:
        """Raise UserError where weights are to stay as they are and there are none."""
        if (train := self.tuning.train) != "all" and self.run.init is None:
            raise UserError(f"--train {train} leaves weights as they are: it needs --init, a run to start from")


def extending(wanted: Defaults, bundled: str) -> Defaults:
    """The bundled examples fit the bundled names: a run's characters are extended by theirs unless told otherwise."""
    is_bundled = wanted.get("data", bundled) == bundled
    return {"extend_vocabulary": True} if is_bundled and wanted.get("tokenizer", "char") == "char" else {}
