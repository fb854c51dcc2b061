"""How far a training is, and what an evaluation measured. Imports no torch."""

import math
from dataclasses import dataclass


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
