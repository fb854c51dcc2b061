"""The flags that both kinds of fine-tuning have, and how their commands go on from the flags; imports no torch."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tyro.conf import Fixed

from data.errors import UserError, outlive_readers
from engine.config.checks import flag
from engine.config.sections import Config

LORA_FLAGS = {"lora_rank", "lora_alpha", "lora_layers"}


@dataclass
class FinetuneConfig(Config):
    """What is shared; each command adds its own."""

    duplicates: Literal["keep", "drop"] = "keep"
    """Examples that say the same: keep them, on one side of the split, or drop all but one."""
    split_seed: int = 0
    """Which tenths are validation and test; of the bundled strings, which ones are asked about."""
    init: str | None = None
    """Start from the weights and the vocabulary of this run, or of GPT-2 (gpt2:PATH); scratch: from nothing."""
    train: str = "all"
    lora_rank: int = 4
    """Rank of the low-rank updates."""
    lora_alpha: float = 8.0
    """Their scale is alpha / rank."""
    lora_layers: str = "all"
    """Which linear layers get one: all, or parts of their names, as in attn,mlp.c_fc."""

    kind: Fixed[str] = "lines"
    val_data: Fixed[None] = None
    separator: Fixed[None] = None
    text_column: Fixed[None] = None
    counts: Fixed[bool] = False
    carry_state: Fixed[bool] = False
    preset: Fixed[None] = None
    mix_ngram: Fixed[int] = 0
    eval_tokens: Fixed[int] = 1_000_000


def check_shared(config: FinetuneConfig, given: set[str]) -> None:
    """Raise UserError for what cannot be or does not go together."""
    for name, least in (("split_seed", 0), ("lora_rank", 1)):
        if (value := getattr(config, name)) < least:
            raise UserError(f"{flag(name)} is {value}; it has to be at least {least}")
    if not 0 < config.lora_alpha < float("inf"):
        raise UserError(f"--lora-alpha is {config.lora_alpha}; it has to be above 0 and finite")
    if config.counts or config.carry_state or config.mix_ngram or config.kind != "lines":
        wrong = "--counts, --carry-state, --mix-ngram or --kind stream"
        raise UserError(f"--config asks for {wrong}, which mean nothing here")
    if config.train != "lora" and (useless := sorted(given & LORA_FLAGS)):
        raise UserError(f"{flag(useless[0])} means nothing without --train lora")


def check_start(config: FinetuneConfig) -> None:
    """Raise UserError where weights are to stay as they are and there are none."""
    if config.train != "all" and config.init is None:
        raise UserError(f"--train {config.train} leaves weights as they are: it needs --init, a run to start from")


def without_scratch(config: Any) -> Any:
    """'--init scratch' means no --init."""
    return dataclasses.replace(config, init=None) if config.init == "scratch" else config


def start_or_resume(session: Any, config: FinetuneConfig, given: set[str]) -> int:
    """The exit code of the run that `session` starts or goes on with."""
    from engine.runtime import Interrupted  # torch loads only now

    outlive_readers()

    do: Callable[[FinetuneConfig, set[str]], int] = session.resume_run if config.resume else session.start_run
    try:
        return do(config, given)
    except Interrupted as stopped:
        return 128 + stopped.signum
