"""One step of an n-gram model, a token of each row: what decoding runs.

`NGram.distribution` looks up many contexts at once; for a few of them it is a hundred small operations of torch, and on
a GPU each context length waits for the one before. Row after row through the same tables in NumPy costs less.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from makemore.base import State

FLOOR = 1e-20  # probability of what cannot come: logits stay finite
ROW_BY_ROW = 24  # rows, up to which looking up one after the other is faster


class CountStepper:
    """token (B,) -> logits (B, V) after `state`, which the n-gram model `counts` gave for the rows so far, and all
    tokens since."""

    def __init__(self, counts: Any, state: State):
        self.counts, self.state = counts, state
        self.uniform = counts.uniform.cpu().numpy()
        names = ("contexts", "grams", "discounted", "backoff_weight", "total")
        self.levels = [[getattr(counts, f"{name}_{k}").cpu().numpy() for name in names] for k in range(counts.order)]

    def __call__(self, token: Tensor) -> Tensor:
        return self.look_up(token)[0].clamp_min(FLOOR).log()

    def look_up(self, token: Tensor) -> tuple[Tensor, Tensor]:
        """The probabilities (B, V) and the confidence (B, 2 * order) after one more `token` (B,) of each row, as
        `NGram.distribution` and `NGram.confidence` compute them."""
        context_tokens, self.state = self.counts.context_tokens(token[:, None], self.state)  # (order - 1, B)
        if len(token) > ROW_BY_ROW:
            return self.counts.distribution(context_tokens), self.counts.confidence(context_tokens)
        rows = zip(*map(self._walk, context_tokens.T.tolist()), strict=True)
        probability, confidence = (torch.from_numpy(np.stack(part)).to(token.device) for part in rows)
        return probability, confidence

    def _walk(self, context: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """The same for one row with this `context`, its last tokens, newest first."""
        probability, node = self.uniform.copy(), 0
        confidence = np.zeros((len(self.levels), 2), self.uniform.dtype)
        confidence[:, 1] = 1
        for k, (contexts, grams, discounted, backoff_weight, total) in enumerate(self.levels):
            if k:
                key = node * self.counts.vocab_size + context[k - 1]
                node = int(contexts.searchsorted(key))
                if node == len(contexts) or contexts[node] != key:
                    break
            start = node * self.counts.vocab_size
            first, end = grams.searchsorted((start, start + self.counts.vocab_size))
            probability *= backoff_weight[node]
            probability[grams[first:end] - start] += discounted[first:end]
            confidence[k] = np.log1p(total[node]), backoff_weight[node]
        return probability, confidence.reshape(-1)
