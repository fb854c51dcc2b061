"""How far a training is, and what an evaluation measured. Imports no torch."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass
class Progress:
    """The progress of a run: plain numbers, stored as JSON."""

    step: int = 0
    tokens: int = 0  # targets trained on
    seconds: float = 0.0  # spent in training steps
    elapsed: float = 0.0  # seconds spent in training steps and evaluations, which --minutes limits
    evaluated: int = -1  # step of the last evaluation
    train_loss: float | None = None  # mean over the steps between the last two evaluations
    nll_sum: float = 0.0  # of the training since the last evaluation, in nats ...
    nll_tokens: float = 0  # ... and its number of targets, or the sum of their weights
    best_val: float | None = None
    best_bits: float | None = None
    best_step: int = 0
    worse: int = 0  # evaluations since the best one
    val_tokens: int = 0  # targets of the last evaluation

    def note(self, evaluation: "Evaluation", replaces_best: bool = False) -> bool:
        """Take in the evaluation of this step, and with it the training losses since the last one. Returns whether it
        is the best so far, or `replaces_best`."""
        if self.nll_tokens:
            self.train_loss = self.nll_sum / self.nll_tokens
        self.nll_sum, self.nll_tokens, self.evaluated = 0.0, 0, self.step
        self.val_tokens = evaluation.n_tokens
        is_best = replaces_best or self.best_val is None or evaluation.loss < self.best_val
        if is_best:
            self.best_val, self.best_bits, self.best_step = evaluation.loss, evaluation.bits_per_char, self.step
        self.worse = 0 if is_best else self.worse + 1
        return is_best

    def line(self, evaluation: "Evaluation", lr: float, extra: dict[str, float]) -> dict[str, Any]:
        """What `metrics.jsonl` says of an evaluation."""
        return {
            "step": self.step,
            "train_loss": self.train_loss,
            "val_loss": evaluation.loss,
            "val_bits_per_char": evaluation.bits_per_char,
            "lr": lr,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            **extra,
        }

    def says(self, evaluation: "Evaluation", extra: dict[str, float], is_best: bool) -> str:
        """What the terminal says of an evaluation."""
        train = "" if self.train_loss is None else f"train {self.train_loss:.4f}  "
        others = "".join(f"{name.removeprefix('val_')} {value:.4f}  " for name, value in extra.items())
        mark = "  best" if is_best else ""
        return f"step {self.step:5d}  {train}val {evaluation.loss:.4f}  {others}{self.seconds:6.1f} s{mark}"

    def is_out_of_patience(self, patience: int | None) -> bool:
        """Whether so many evaluations in a row were no better than the best one."""
        return patience is not None and self.worse >= patience


@dataclass(frozen=True)
class Evaluation:
    """The sum of negative log-likelihoods in nats, with the numbers of tokens and characters that it is over."""

    nll_sum: float
    n_tokens: int
    n_characters: int  # line ends included

    def __add__(self, other: "Evaluation") -> "Evaluation":
        return Evaluation(
            self.nll_sum + other.nll_sum, self.n_tokens + other.n_tokens, self.n_characters + other.n_characters
        )

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nll_sum / max(1, self.n_tokens)

    @property
    def bits_per_char(self) -> float | None:
        """Bits a character; None where the targets are not text (class labels)."""
        if not self.n_characters:
            return None
        return self.nll_sum / math.log(2) / self.n_characters
