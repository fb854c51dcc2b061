"""Validation loss: plain NLL over fixed windows, in nats a token and bits a character."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from data.batches import IGNORE, Batch
from engine.runtime import widest
from makemore.base import LanguageModel


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


@contextlib.contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """A context in which `model` is in evaluation mode without gradients; its mode is restored afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def evaluate(
    model: LanguageModel,
    batches: Callable[[], Iterator[Batch]],
    characters: np.ndarray,
    device: torch.device,
) -> Evaluation:
    """Evaluate `model` over `batches()` in evaluation mode, and restore its mode. `characters` (V,): the number of
    characters of each id."""
    evaluation = evaluate_unless(lambda: False, model, batches, characters, device)
    assert evaluation is not None
    return evaluation


def evaluate_unless(
    stop: Callable[[], bool],
    model: LanguageModel,
    batches: Callable[[], Iterator[Batch]],
    characters: np.ndarray,
    device: torch.device,
) -> Evaluation | None:
    """`evaluate`; None where `stop()` became true in between."""
    nll_sums, n_tokens, n_characters = [], 0, 0
    with in_evaluation_mode(model):
        for batch in batches():
            if stop():
                return None
            n_tokens += batch.n_tokens
            n_characters += int(characters[batch.targets[batch.targets != IGNORE]].sum())
            there = batch.to(device)
            state = None if there.prefix is None else model.start(there.prefix, None)
            out = model(there.tokens, there.targets, state, want_logits=False)
            nll_sums.append(out.nll_sum.to(widest(device)))
    return Evaluation(float(torch.stack(nll_sums).sum()), n_tokens, n_characters)
