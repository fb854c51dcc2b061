"""The rows of a batch that texts join and leave between two steps: what a server decodes with.

A row computes what it would compute alone. Rows are numbered from 0 in the order in which they came; where one leaves,
the last takes its number.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from kernels.step.draws import Draws
from kernels.step.program import Decoded

State = dict[str, Tensor]  # of a family; every tensor has the batch first
LanguageModel = Any  # its module imports this one


class Rows(Protocol):
    """The states of some texts, each one token at a time. Those of a model with `hidden` have the method `features`
    too, as a stepper has; those in compiled code `decode`, which draws several tokens, or says None where it can't."""

    def __len__(self) -> int: ...

    def add(self, state: State) -> None:
        """A text joins, after `state`, which `read_last` gave for one row."""

    def remove(self, row: int) -> None:
        """A text leaves; the last row takes its place."""

    def step(self, token: Tensor) -> Tensor:
        """Read one more `token` (B,) of each row: its logits (B, V)."""


class StateRows:
    """Rows of a family whose state does not grow: each of its parts has a row a text."""

    def __init__(self, model: LanguageModel):
        self.model = model
        self.stepper: Any = None  # with the attribute `state`
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def add(self, state: State) -> None:
        self._begin(joined(self.stepper.state, state) if self.count else state)
        self.count += 1

    def remove(self, row: int) -> None:
        self.count -= 1
        self._begin(without(self.stepper.state, row, self.count))

    def step(self, token: Tensor) -> Tensor:
        return self.stepper(token)

    def features(self, token: Tensor) -> Tensor:
        return self.stepper.features(token)

    def decode(self, token: Tensor, draws: Draws, steps: int) -> Decoded | None:
        return self.stepper.decode(token, draws, steps) if hasattr(self.stepper, "decode") else None

    def _begin(self, state: State) -> None:
        if self.stepper is None:
            self.stepper = self.model.stepper(state)
        self.stepper.state = state


class ApartRows:
    """Rows that are computed one after the other: of any model, also where states are of different lengths."""

    def __init__(self, model: LanguageModel):
        self.model = model
        self.steppers: list[Any] = []

    def __len__(self) -> int:
        return len(self.steppers)

    def add(self, state: State) -> None:
        self.steppers.append(self.model.stepper(state))

    def remove(self, row: int) -> None:
        self.steppers[row] = self.steppers[-1]
        self.steppers.pop()

    def step(self, token: Tensor) -> Tensor:
        return torch.cat([step(one) for step, one in zip(self.steppers, token.split(1), strict=True)])

    def features(self, token: Tensor) -> Tensor:
        return torch.cat([step.features(one) for step, one in zip(self.steppers, token.split(1), strict=True)])


def joined(state: State, other: State) -> State:
    """The rows of both."""
    return {name: torch.cat([part, other[name]]) for name, part in state.items()}


def without(state: State, row: int, last: int) -> State:
    """All rows but `row`, whose number the row `last` takes, the last one."""
    numbers = [last if n == row else n for n in range(last)]
    return {name: part[torch.tensor(numbers, dtype=torch.int64, device=part.device)] for name, part in state.items()}
