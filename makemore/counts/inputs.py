"""What counts say of the next token, as an input of a neural model.

The log-probability of every next token under Kneser-Ney counts, times a learned matrix, is added to each token's
embedding. So the model learns where counts are right, and need not learn by heart what they know. In training the
counts are those of the other parts of the text: otherwise the model would read the answer.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from data.tokenizers import Special
from makemore.counts.left_out import LeftOutCounts
from makemore.counts.ngram import NGram
from makemore.hashing import HashedNGrams

MIN_LOG = -12.0  # of a probability: below it nothing is told apart
SCALE, CENTRE = 0.3, -5.0  # logarithms are between -12 and 0


class CountInputs(nn.Module):
    """tokens (B, n - 1 + T), of which the first n - 1 are the history -> (B, T, C): for each of the last T tokens the
    mapped log-probabilities of the next one. It stands where a model has its `HashedNGrams`, and adds theirs.

    `counts`: those of the whole text; `left_out`: those that training reads; `hashed`: those of the model, or None."""

    def __init__(
        self, counts: NGram, left_out: LeftOutCounts, hashed: HashedNGrams | None, width: int, special: Special
    ):
        super().__init__()
        self.n = max(counts.order - 1, hashed.n if hashed else 1)
        self.hashed = hashed
        self.special, self.counts = special, (counts,)  # in a tuple: a part of the mixture, stored there
        self.left_out = left_out
        self.map = nn.Linear(counts.vocab_size, width, bias=False)
        nn.init.zeros_(self.map.weight)
        self._part: Tensor | None = None

    @contextmanager
    def without(self, part: Tensor) -> Iterator[None]:
        """Within it the counts are those without the `part` (B, T) of the text that each token's next one is in."""
        self._part = part
        try:
            yield
        finally:
            self._part = None

    def forward(self, tokens: Tensor) -> Tensor:
        log_p = self.log_probabilities(tokens).to(self.map.weight.dtype)
        x = self.map(SCALE * (log_p - CENTRE))
        return x if self.hashed is None else x + self.hashed(tokens[:, self.n - self.hashed.n :])

    @torch.no_grad()
    def log_probabilities(self, tokens: Tensor) -> Tensor:
        """Those of each next token, (B, T, V)."""
        T, order = tokens.shape[1] - (self.n - 1), self.counts[0].order
        read = self._with_beginnings(tokens)
        ends = [read[:, self.n - 1 - k : self.n - 1 - k + T].reshape(-1) for k in range(order - 1)]
        context_tokens = torch.stack(ends) if ends else tokens.new_empty(0, len(tokens) * T)
        if self._part is None:
            p = self.counts[0].distribution(context_tokens)
        else:
            p = self.left_out.distribution(context_tokens, self._part.reshape(-1).long())
        return p.log().clamp_min(MIN_LOG).view(len(tokens), T, -1)

    def _with_beginnings(self, tokens: Tensor) -> Tensor:
        """`<bos>` in place of the padding before rows that begin with one, as they were counted. A row from the middle
        of a text keeps it: nothing was counted after padding."""
        padding = tokens == self.special.pad
        first = (~padding).int().argmax(1, keepdim=True)
        begins = tokens.gather(1, first) == self.special.bos
        return torch.where(padding & begins, self.special.bos, tokens)
