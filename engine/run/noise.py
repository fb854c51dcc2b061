"""The random numbers that tokens are drawn with."""

import torch
from torch import Tensor

from engine.runtime import widest

MOST_STEPS, MOST_NUMBERS = 16, 1 << 16  # of a row, at once


class Noise:
    """Exponential random numbers of `generator` for `rows` rows that are drawn together: on a CPU those of some steps
    at once, as compiled code draws them. How many are asked for at a time makes no difference to them."""

    def __init__(self, generator: torch.Generator, rows: int, vocab_size: int):
        self.generator, device = generator, generator.device
        self.most = steps_at_once(vocab_size) if device.type == "cpu" else 1
        self._numbers = torch.empty(2 * self.most, rows, vocab_size, dtype=widest(device), device=device)
        self._next, self._end = 0, 0

    def ahead(self, steps: int) -> Tensor:
        """Those of the next `steps` steps, at most `most`: (steps, rows, V). They may be overwritten."""
        left = self._end - self._next
        if left < steps:
            self._numbers[:left] = self._numbers[self._next : self._end].clone()
            self._numbers[left : left + self.most].exponential_(generator=self.generator)
            self._next, self._end = 0, left + self.most
        return self._numbers[self._next : self._next + steps]

    def use(self, steps: int) -> None:
        """The next `steps` of them are used up."""
        self._next += steps

    def next(self) -> Tensor:
        """Those of one step, (rows, V)."""
        numbers = self.ahead(1)[0]
        self.use(1)
        return numbers


def steps_at_once(vocab_size: int) -> int:
    """The steps whose random numbers are drawn at once."""
    return max(1, min(MOST_STEPS, MOST_NUMBERS // vocab_size))
