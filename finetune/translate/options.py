"""The flags of `python -m finetune.translate`: those of train.py that mean something here, and its own; no torch."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, Literal

from tyro.conf import Fixed

from data.errors import UserError, flag
from data.pairs.generated import GENERATED
from engine.config.presets import Defaults
from engine.config.sections import Net
from finetune.options import Examples, TuneConfig, TuneRun, Tuning
from makemore.config import UNSET, Mark, Range

MODELS = ("gru", "lstm", "transformer")
# What --translate and --eval-only take besides --out.
USE_FLAGS = {"device", "threads", "checkpoint", "attention", "norm_kernel", "encoding", "beams"}
_DEFAULTS: Defaults = {
    "data": "dates", "kind": "lines", "model": "gru", "steps": 1500, "batch_size": 64, "eval_interval": 250,
    "warmup": 50,
}  # fmt: skip
_TRANSFORMER: Defaults = {"n_layer": 2}  # of the encoder, and of the decoder


@dataclass
class TextPairs(Examples):
    """The pairs of texts, and how they are read."""

    data: Annotated[str, Mark.PLACE] = "dates"
    """dates (in nine spellings, to ISO), reverse (3 to 24 letters, backwards), transliterate (made-up words, into
    Cyrillic), all generated, or a file of source<TAB>target lines, as Anki's and Tatoeba's are; further columns are
    left out. With --spans a text, a line each, or names and the like."""
    spans: Annotated[bool, Mark.RARE] = False
    """Of a text without translations: each line with spans of it hidden is a source, and what was hidden its target
    (Raffel et al. 2020, T5), for a run to start from with --init."""


@dataclass
class TranslatorFlags(Tuning):
    """The decoder's look at the source, and how it writes."""

    train: Fixed[str] = "all"
    lora_rank: Fixed[int] = 4
    lora_alpha: Fixed[float] = 8.0
    lora_layers: Fixed[str] = "all"
    align: Annotated[Literal["none", "bahdanau", "luong-dot", "luong-general"], Mark.SHAPE] = "luong-general"
    """How each step of a recurrent decoder looks at the source: not at all (it has the encoder's last vector alone),
    with the attention of Bahdanau, or with that of Luong, by a dot product or with a matrix in between."""
    beams: Annotated[int, Range(1, 64, says="from 1 to 64"), Mark.RESUMABLE] = 1
    """Width of the beam search, length-normalised, for --translate and for the test at the end; 1 is greedy."""


@dataclass
class TranslateRun(TuneRun):
    """The run directory, and what the run starts from."""

    init: Annotated[str | None, UNSET] = None
    """Start from the weights and the vocabulary of this run, of the same command; scratch: from nothing."""
    translate: Annotated[str | None, Mark.CALL, Mark.USES_RUN, UNSET] = None
    """Translate this text with the run in --out; @FILE or - (standard input) each line, and @@ stands for an @."""
    map: Annotated[str | None, Mark.CALL, UNSET] = None
    """With --translate: draw where each character of the translation looks at, as a PNG, into this file."""


@dataclass
class TranslateConfig(TuneConfig[Net], Generic[Net]):
    """Train an encoder and a decoder to turn source texts into target texts; then translate with them.

    Without a flag: a GRU with attention on dates in nine spellings, to be written as ISO has them. Defaults follow the
    model; the ones shown are those of this command line.
    """

    text: TextPairs
    run: TranslateRun
    tuning: TranslatorFlags

    task: ClassVar[str | None] = "translate"
    program: ClassVar[str] = "translate"
    own_parents: ClassVar[bool] = True
    fixed: ClassVar[dict[str, Any]] = TuneConfig.fixed | {
        "hash_ngrams": 0, "hash_rows": 4096, "cells": "fused",
        "window": None, "attention_cap": None, "logit_cap": None, "value_residual": False, "value_embeddings": False,
        "activation_checkpointing": False,
    }  # fmt: skip

    @classmethod
    def usual(cls, wanted: dict[str, Any]) -> Defaults:
        return _DEFAULTS | (_TRANSFORMER if wanted.get("model") == "transformer" else {})

    def check(self, explicit: set[str]) -> None:
        super().check(explicit)
        run = self.run
        if self.model not in MODELS:
            raise UserError(f"--model {self.model} is no encoder and decoder; there are: {', '.join(MODELS)}")
        if self.model == "transformer" and "align" in explicit:
            raise UserError("--align means nothing to --model transformer, whose every layer looks at the source")
        if getattr(self.net, "norm", None) == "batch":
            raise UserError("--norm batch means nothing to an encoder and a decoder; choose another --norm")
        if self.machine.cuda_graph == "on":
            raise UserError("--cuda-graph on: the encoder reads sources of any length; leave it out")
        if self.machine.shard:
            raise UserError(
                "--shard gathers weights where a target is read, and the source is read before; leave it out"
            )
        if run.translate is not None and not run.translate.strip():
            raise UserError("--translate is empty; give a text, @FILE or -")
        if run.map is not None and run.translate is None:
            raise UserError("--map goes with --translate: it shows how a text is translated")
        if run.map == "":
            raise UserError("--map is empty; name a file")
        if run.map is not None and self.tuning.align == "none":
            raise UserError("--map shows attention, and a run with --align none has none")
        if run.eval_only or run.resume or run.translate is not None:
            return
        of_files = {"duplicates", "encoding", "val_data", "test_data", "spans"}
        if self.text.data in GENERATED and (useless := sorted(explicit & of_files)):
            raise UserError(f"{flag(useless[0])} means nothing to the bundled {self.text.data}")
