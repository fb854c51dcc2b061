"""Optimizers in NumPy: each takes the parameters and their gradients, by name, and changes the parameters in place.

All are `Optimizer` with another step; what they remember of a parameter lies in `self.memory[name]`. Steps and names of
the settings are torch's.
"""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from makemore.scratch.functions import Array


class Optimizer:
    """`step(parameters, gradients)` changes the parameters. `lr` may be set anew before each step, as a schedule
    does."""

    def __init__(self, lr: float):
        self.lr = lr
        self.steps = 0
        self.memory: dict[str, dict[str, Array]] = defaultdict(dict)

    def step(self, parameters: Mapping[str, Array], gradients: Mapping[str, Array]) -> None:
        """One step with every parameter that has a gradient."""
        self.steps += 1
        for name, gradient in gradients.items():
            parameters[name][...] -= self.lr * self.update(parameters[name], gradient, self.memory[name])

    def update(self, parameter: Array, gradient: Array, memory: dict[str, Array]) -> Array:
        """What `lr` times is taken off `parameter`."""
        raise NotImplementedError

    def _remembered(self, memory: dict[str, Array], name: str, like: Array) -> Array:
        return memory.setdefault(name, np.zeros_like(like))


class SGD(Optimizer):
    """Downhill. With `momentum` along a sum of past gradients, each `momentum` of what it was (Polyak 1964)."""

    def __init__(self, lr: float, momentum: float = 0.0):
        super().__init__(lr)
        self.momentum = momentum

    def update(self, parameter: Array, gradient: Array, memory: dict[str, Array]) -> Array:
        if not self.momentum:
            return gradient
        velocity = self._remembered(memory, "velocity", gradient)
        velocity *= self.momentum
        velocity += gradient
        return velocity


class Adagrad(Optimizer):
    """Each number over the root of the sum of its squared gradients: what moved much moves less. Duchi et al. 2011."""

    def __init__(self, lr: float, eps: float = 1e-10):
        super().__init__(lr)
        self.eps = eps

    def update(self, parameter: Array, gradient: Array, memory: dict[str, Array]) -> Array:
        square_sum = self._remembered(memory, "square_sum", gradient)
        square_sum += gradient * gradient
        return gradient / (np.sqrt(square_sum) + self.eps)


class RMSprop(Optimizer):
    """As Adagrad, but of a mean that forgets. Hinton 2012, a lecture."""

    def __init__(self, lr: float, alpha: float = 0.99, eps: float = 1e-8):
        super().__init__(lr)
        self.alpha, self.eps = alpha, eps

    def update(self, parameter: Array, gradient: Array, memory: dict[str, Array]) -> Array:
        square_mean = self._remembered(memory, "square_mean", gradient)
        square_mean += (1 - self.alpha) * (gradient * gradient - square_mean)
        return gradient / (np.sqrt(square_mean) + self.eps)


class Adam(Optimizer):
    """The mean of past gradients over the root of the mean of their squares, both corrected for having begun at 0.
    Kingma and Ba 2015."""

    def __init__(self, lr: float, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8):
        super().__init__(lr)
        self.beta1, self.beta2, self.eps = beta1, beta2, eps

    def update(self, parameter: Array, gradient: Array, memory: dict[str, Array]) -> Array:
        mean, square_mean = (self._remembered(memory, name, gradient) for name in ("mean", "square_mean"))
        mean += (1 - self.beta1) * (gradient - mean)
        square_mean += (1 - self.beta2) * (gradient * gradient - square_mean)
        root = np.sqrt(square_mean / (1 - self.beta2**self.steps)) + self.eps
        return mean / (1 - self.beta1**self.steps) / root


class AdamW(Adam):
    """Adam that also pulls matrices to 0, past the division: `weight_decay` of them a step. Loshchilov and Hutter 2019.
    `undecayed`: names that are left alone, as embeddings; vectors always are."""

    def __init__(
        self,
        lr: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        undecayed: frozenset[str] = frozenset(),
    ):
        super().__init__(lr, beta1, beta2, eps)
        self.weight_decay, self.undecayed = weight_decay, undecayed

    def step(self, parameters: Mapping[str, Array], gradients: Mapping[str, Array]) -> None:
        for name in gradients:
            if parameters[name].ndim > 1 and name not in self.undecayed:
                parameters[name][...] *= 1 - self.lr * self.weight_decay
        super().step(parameters, gradients)


def clip(gradients: Mapping[str, Array], most: float) -> float:
    """Shorten all gradients together to the norm `most`, in place; their norm before."""
    norm = float(np.sqrt(sum(float((g * g).sum()) for g in gradients.values())))
    if norm > most:
        for gradient in gradients.values():
            gradient *= most / (norm + 1e-6)
    return norm
