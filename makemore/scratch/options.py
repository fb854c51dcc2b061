"""The flags of `python -m makemore.scratch.train`: those of train.py that NumPy's models have. Imports no torch."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, Literal

from tyro.conf import Fixed

from data.errors import UserError, flag
from data.program import command
from engine.config.presets import TRANSFORMERS, Defaults
from engine.config.sections import Config, Machine, Net, RunFlags
from engine.config.settings import get
from makemore.config import Mark
from makemore.scratch.functions import ACTIVATIONS

TAPED = ("mlp", "gru", "transformer")  # families with a forward in makemore/scratch/taped.py
NORMS = ("none", "batch", "layer")
OPTIMIZERS = ("sgd", "momentum", "adagrad", "rmsprop", "adam", "adamw")


@dataclass
class NumPyMachine(Machine):
    """How gradients are found."""

    engine: Annotated[Literal["hand", "tape"], Mark.CALL] = "hand"
    """Gradients by hand, or by automatic differentiation on a tape."""
    device: Fixed[str] = "cpu"
    threads: Fixed[None] = None
    dtype: Fixed[Literal["float32"]] = "float32"
    compile: Fixed[Literal["off"]] = "off"
    log: Fixed[Literal["none"]] = "none"


@dataclass
class NumPyRun(RunFlags):
    """The run directory, and what the run starts from."""

    resume: Annotated[Fixed[bool], Mark.CALL] = False
    go_on: Annotated[Fixed[bool], Mark.CALL] = False
    eval_only: Annotated[Fixed[bool], Mark.CALL] = False
    extend_vocabulary: Fixed[bool] = False
    teacher: Fixed[None] = None
    teacher_weight: Fixed[float] = 0.9
    teacher_temperature: Fixed[float] = 1.0


@dataclass
class NumPyConfig(Config[Net], Generic[Net]):
    """Train a model in NumPy alone, on the batches that training with torch would have.

    Without a flag: GPT-2's blocks on the bundled names. The run can be sampled from like any other."""

    machine: NumPyMachine
    run: NumPyRun

    program: ClassVar[str] = "scratch"
    fixed: ClassVar[dict[str, Any]] = {
        "mix_ngram": 0, "label_smoothing": 0.0, "z_loss": 0.0, "weight_init": "default", "hash_ngrams": 0,
        "hash_rows": 4096, "count_inputs": False, "norm_kernel": "auto", "cells": "fused", "carry_state": False,
        "n_kv_head": None, "positions": "learned", "window": None, "attention_cap": None, "qk_norm": False,
        "logit_cap": None, "zero_init": False, "attention": "auto",
        "value_residual": False, "value_embeddings": False, "activation_checkpointing": False,
        "objective": "next", "mask_rate": 0.3, "mask_span": 2,
    }  # fmt: skip

    @classmethod
    def usual(cls, wanted: dict[str, Any]) -> Defaults:
        """A Transformer is GPT-2's, unless it is to be that of --init; the other families are as in train.py."""
        gpt2 = TRANSFORMERS["gpt2"] if wanted.get("model", "transformer") == "transformer" else {}
        return {name: value for name, value in gpt2.items() if name not in wanted} | cls.fixed

    def check(self, explicit: set[str]) -> None:
        net, optim = self.net, self.optim
        if self.model == "ngram":
            raise UserError(
                f"an n-gram model has no gradients to write by hand: {command('train')} --model ngram counts it"
            )
        if optim.grad_accum == "auto":
            raise UserError("--grad-accum auto: NumPy asks nobody how much memory there is; give a number")
        for name, value in self.fixed.items():
            if (asked := getattr(net, name, value)) != value:
                raise UserError(f"{flag(name)} {asked} is not among the NumPy models; {command('train')} has it")
        self._check_one_of("activation", tuple(ACTIVATIONS))
        self._check_one_of("norm", NORMS)
        self._check_one_of("optimizer", OPTIMIZERS)
        if optim.weight_decay and optim.optimizer != "adamw" and not net.is_counted:
            raise UserError(f"--weight-decay goes with --optimizer adamw here, not with {optim.optimizer}")
        if self.machine.engine == "tape":
            self._check_tape()

    def _check_one_of(self, name: str, known: tuple[str, ...]) -> None:
        value = getattr(self.optim if name == "optimizer" else self.net, name, known[0])
        if value not in known:
            why = "; NumPy has no erf, which the exact GELU needs" if value == "gelu" else ""
            raise UserError(f"{flag(name)} {value} is not among the NumPy models{why}: there are {', '.join(known)}")

    def _check_tape(self) -> None:
        from makemore.scratch.taped import ACTIVATIONS as ON_THE_TAPE

        if self.model not in TAPED:
            raise UserError(f"--engine tape has {', '.join(TAPED)}; --model {self.model} is written by hand alone")
        if get(self, "norm") == "batch" or get(self, "dropout"):
            raise UserError("--engine tape knows neither --norm batch nor --dropout; --engine hand has both")
        if getattr(self.net, "activation", "tanh") not in ON_THE_TAPE:
            raise UserError(f"--engine tape has --activation {', '.join(ON_THE_TAPE)}")
