"""Validation loss: plain NLL over fixed windows, in nats a token and bits a character."""

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from data.batches import IGNORE, Batch
from engine.distributed.dealing import in_rounds
from engine.distributed.ranks import ALONE, Ranks
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
    ranks: Ranks = ALONE,
) -> Evaluation | None:
    """`evaluate`; None where `stop()` became true in between. Several processes (`ranks`) deal the batches among them:
    each computes its own, and all get the same result, to the bit that of one process."""
    nll_sums, n_batches, n_tokens, n_characters = [], 0, 0, 0

    def counted() -> Iterator[Batch]:
        nonlocal n_batches, n_tokens, n_characters
        for batch in batches():
            n_batches += 1
            n_tokens += batch.n_tokens
            n_characters += int(characters[batch.targets[batch.targets != IGNORE]].sum())
            yield batch

    with in_evaluation_mode(model):
        for batch in in_rounds(counted(), ranks):
            if stop():
                return None
            there = batch.to(device)
            state = None if there.prefix is None else model.start(there.prefix, None)
            out = model(there.tokens, there.targets, state, want_logits=False)
            nll_sums.append(out.nll_sum.to(widest(device)))
    each = torch.stack(nll_sums)  # (rounds,)
    if ranks.world > 1:  # in the order of the batches, without what was repeated
        each = torch.from_numpy(ranks.gather(each.tolist()).T.reshape(-1)[:n_batches].copy()).to(each)
    return Evaluation(float(each.sum()), n_tokens, n_characters)
