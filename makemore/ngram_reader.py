"""Counts read a token at a time, in NumPy: what decoding runs.

`NGram.distribution` looks up many contexts at once; for a few it is a hundred small operations of torch, and on a GPU
each context length waits for the one before. One row after the other through the same tables costs a tenth of that.
"""

import numpy as np
import torch
from torch import Tensor

from makemore.base import LanguageModel, State

FLOOR = 1e-20  # probability of what cannot come: logits stay finite


class CountReader:
    """token (B,) -> logits (B, V) after `state`, what an `NGram` gave for the rows so far, and all tokens since."""

    def __init__(self, counts: LanguageModel, state: State):
        self.vocab_size, self.device = counts.vocab_size, counts.base.device
        self.base = counts.base.cpu().numpy()
        names = ("contexts", "grams", "share", "freed", "total")
        self.levels = [[getattr(counts, f"{name}_{k}").cpu().numpy() for name in names] for k in range(counts.order)]
        self.rows = state["tokens"].tolist()  # the last `order - 2` tokens of each

    def __call__(self, token: Tensor) -> Tensor:
        return self.look_up(token)[0].clamp_min(FLOOR).log()

    def look_up(self, token: Tensor) -> tuple[Tensor, Tensor]:
        """As `NGram.distribution` and `NGram.confidence`: (B, V) and (B, 2 * order)."""
        found = []
        for row, last in zip(self.rows, token.tolist(), strict=True):
            row.append(last)
            found.append(self._walk(row))
            del row[0]
        return tuple(torch.from_numpy(np.stack(part)).to(self.device) for part in zip(*found, strict=True))

    def _walk(self, row: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """From no context to the longest that is known, as in `NGram`."""
        probability, node = self.base.copy(), 0
        confidence = np.zeros((len(self.levels), 2), self.base.dtype)
        confidence[:, 1] = 1
        for k, (contexts, grams, share, freed, total) in enumerate(self.levels):
            if k:
                key = node * self.vocab_size + row[-k]
                node = int(contexts.searchsorted(key))
                if node == len(contexts) or contexts[node] != key:
                    break
            first, end = grams.searchsorted((node * self.vocab_size, (node + 1) * self.vocab_size))
            probability *= freed[node]
            probability[grams[first:end] - node * self.vocab_size] += share[first:end]
            confidence[k] = np.log1p(total[node]), freed[node]
        return probability, confidence.reshape(-1)
