"""Direct preference optimization: the chosen answer made likelier than the rejected one, compared with before.

Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", 2023: the loss of a
pair is -log sigmoid(beta * margin), where the margin is how much more than the reference the model prefers `chosen`.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.batches import IGNORE
from data.rows import HasTokens, by_length, collate
from engine.evaluate import in_evaluation_mode
from finetune.instruct.reference import BesideReference
from makemore.base import LanguageModel, Output, State


class Preference(BesideReference):
    """tokens, targets (2B, T), first B rows with chosen answers, then with rejected ones -> the loss summed over
    pairs."""

    def __init__(self, model: LanguageModel, beta: float):
        super().__init__(model)
        self.beta = beta

    def forward(
        self, tokens: Tensor, targets: Tensor, state: State | None = None, *, want_logits: bool = True
    ) -> Output:
        """No logits; `n_tokens` counts pairs."""
        losses = -F.logsigmoid(self.beta * self.margins(tokens, targets))
        return Output(None, losses.sum(), torch.tensor(len(losses), device=tokens.device), {})

    def margins(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """How much more than the reference the model prefers the chosen answers, in nats, (B,)."""
        with torch.no_grad():
            before = _likelihoods(self.reference, tokens, targets)
        chosen, rejected = (_likelihoods(self.model, tokens, targets) - before).view(2, -1)
        return chosen - rejected


def _likelihoods(model: LanguageModel, tokens: Tensor, targets: Tensor) -> Tensor:
    """Log-likelihood of each row's targets in nats, (B,), from the features of those positions alone."""
    wanted = targets != IGNORE
    hidden, _ = model.hidden(tokens, None, wanted)
    nll = model.nll(hidden[wanted], targets[wanted], reduction="none")  # (N,)
    rows = torch.arange(len(tokens), device=tokens.device)[:, None].expand_as(targets)[wanted]
    return -torch.zeros(len(tokens), dtype=nll.dtype, device=nll.device).index_add(0, rows, nll)


def measure(model: Preference, rows: Sequence[HasTokens], pad: int, device: torch.device) -> dict[str, float]:
    """The share of pairs whose chosen answer gained on the rejected one, and the mean margin in nats."""
    margins = np.zeros(len(rows))
    with in_evaluation_mode(model):
        for numbers in by_length(rows):
            batch = collate([rows[i] for i in numbers], pad).to(device)
            margins[numbers] = model.margins(batch.tokens, batch.targets).double().cpu().numpy()
    return {"accuracy": float((margins > 0).mean()), "margin": float(margins.mean())}
