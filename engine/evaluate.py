"""Validation loss: plain NLL over fixed windows, in nats a token and bits a character."""

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from data.batches import IGNORE, Batch
from engine.runtime import widest
from engine.training.progress import Evaluation
from makemore.base import LanguageModel


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
