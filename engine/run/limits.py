"""What the rows of a batch may not draw."""

import math

import torch
from torch import Tensor

from engine.run.healing import Healing
from engine.runtime import widest


class Limits:
    """The tokens that the rows of a batch may not draw, as a bias that is -inf for them."""

    def __init__(self, rows: int, suppressed: list[int], eos: int, min_new_tokens: int, vocab_size: int, device):
        self.eos, self.min_new_tokens = eos, 0 if eos in suppressed else min_new_tokens
        self.banned = torch.zeros(vocab_size, dtype=widest(device), device=device)
        self.banned[suppressed] = -math.inf
        self.healings: list[Healing | None] = []
        self.required = [b""] * rows
        self.repeated = [0] * rows  # tokens that only repeated the dropped end of the prompt
        self.drawn = 0

    def require(self, healings: list[Healing | None]) -> None:
        """Require every row to begin with the bytes dropped from its prompt."""
        self.healings, self.required = healings, [each.dropped if each else b"" for each in healings]

    @property
    def fewest_new(self) -> int:
        return self.drawn - max(self.repeated)

    @property
    def are_open(self) -> bool:
        """Whether more is forbidden now than what is never drawn."""
        return self.drawn - min(self.repeated) < self.min_new_tokens or any(self.required)

    def bias(self) -> Tensor:
        """The bias to add to the logits, (V,), or (B, V) where rows differ."""
        if not self.are_open:
            return self.banned
        bias = self.banned.repeat(len(self.required), 1)
        for i, required in enumerate(self.required):
            if self.drawn - self.repeated[i] < self.min_new_tokens:
                bias[i, self.eos] = -math.inf
            if required:
                healing = self.healings[i]
                assert healing is not None  # it is what requires them
                allowed = torch.from_numpy(healing.allowed(required)).to(bias.device)
                bias[i].masked_fill_(~allowed, -math.inf)
        return bias

    def count(self, token: Tensor) -> None:
        """Update the limits after `token` (B,) was drawn."""
        self.drawn += 1
        if any(self.required):
            for i, id_ in enumerate(token.tolist()):
                healing, required = self.healings[i], self.required[i]
                if healing is not None and required:
                    self.repeated[i] += not healing.is_new(required, id_)
                    self.required[i] = healing.rest(required, id_)
