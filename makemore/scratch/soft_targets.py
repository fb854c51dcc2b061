"""The loss of a model that learns from another one's probabilities: Hinton, Vinyals and Dean, "Distilling the Knowledge
in a Neural Network", 2015."""

from collections.abc import Callable

import numpy as np

from makemore.scratch.functions import Array, softmax


def soft_cross_entropy(logits: Array, teacher: Array, temperature: float) -> tuple[Array, Callable[..., Array]]:
    """The mean cross-entropy of the logits (N, V) with the probabilities of those of a teacher (N, V), both at
    `temperature`, times its square -> a number; `back(1)` gives (N, V). Of no rows 0."""
    q, _ = softmax(teacher / temperature)
    shifted = (logits - logits.max(-1, keepdims=True, initial=-np.inf)) / temperature
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    count = max(1, len(logits))

    def back(dloss: Array | float = 1.0) -> Array:
        return temperature * (np.exp(log_p) - q) * (dloss / count)

    return -(temperature**2) * (q * log_p).sum() / count, back
