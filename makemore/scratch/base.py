"""What all families in NumPy have: parameters by name, layers that read them, the loss and its gradients.

All work on rows (N, C), one for each position of a batch that is not padding; only what looks across positions
(convolution, recurrence, attention) sees (B, T, C).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from data.batches import IGNORE
from data.tokenizers import Special
from makemore.constants import IMPROBABLE
from makemore.scratch import functions as f
from makemore.scratch.functions import ACTIVATIONS, Array
from makemore.scratch.layers import Gradients, Layer, add, in_turn, layer

MOMENTUM = 0.1  # of batch norm's running statistics: how much of a batch's goes into them


class Model:
    """Parameters by name, and what all families do with them. `config` is the family's own of train.py.

    In training dropout drops, and batch norm takes the statistics of the batch; `eval` and `train` switch."""

    def __init__(
        self, vocab_size: int, config: Any, special: Special | None = None, seed: int = 0, dtype: Any = np.float32
    ):
        self.vocab_size, self.config, self.special = vocab_size, config, special or Special()
        self.rng, self.dtype, self.training = np.random.default_rng(seed), np.dtype(dtype), True
        self.parameters: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}  # what training measures: the statistics of batch norm
        self.initialise()

    def initialise(self) -> None:
        """Draw all parameters, as torch and the suite's own models do."""
        raise NotImplementedError

    def layers(self, kept: Array) -> list[Layer]:
        """What leads from inputs, (N,) or what `inputs` makes of them, to features (N, C). `kept` (B, T): where the
        batch has no padding."""
        raise NotImplementedError

    def inputs(self, tokens: Array, kept: Array) -> Array:
        """What the first layer reads of tokens (B, T)."""
        return tokens[kept]

    def head(self) -> list[Layer]:
        """From features (N, C) to logits (N, V)."""
        return [self.linear("lm_head")]

    def loss(self, tokens: Array, targets: Array) -> tuple[float, Callable[[float], Gradients]]:
        """The negative log-likelihood in nats of the targets, (B, T), IGNORE where there is none, summed, and its
        backward: from the derivative by the sum to the gradients by name."""
        valid = targets != IGNORE
        kept = not_padding(valid)
        features, back_layers = in_turn(*self.layers(kept))(self.inputs(tokens, kept))
        scored = valid[kept]  # of a row that goes on some targets are unknown characters, which are not predicted
        logits, back_head = in_turn(*self.head())(features[scored])
        mean, back_mean = f.cross_entropy(logits, targets[valid])
        count = int(valid.sum())

        def back(dloss: float = 1.0) -> Gradients:
            gradients: Gradients = {}
            dfeatures = np.zeros_like(features)
            dfeatures[scored] = back_head(back_mean(dloss * count), gradients)
            back_layers(dfeatures, gradients)
            return gradients

        return float(mean) * count, back

    def logits(self, tokens: Array) -> Array:
        """The logits (B, T, V) after each of tokens (B, T), padding nowhere."""
        kept = np.ones(tokens.shape, bool)
        features, _ = in_turn(*self.layers(kept))(self.inputs(tokens, kept))
        return in_turn(*self.head())(features)[0].reshape(*tokens.shape, -1)

    def train(self) -> None:
        self.training = True

    def eval(self) -> None:
        self.training = False

    def state_dict(self) -> dict[str, Array]:
        """Parameters and buffers, by name, as torch's."""
        return self.parameters | self.buffers

    def load_state_dict(self, arrays: dict[str, Array]) -> None:
        """Take over values of the same names and shapes. Raises ValueError for others."""
        ours = self.state_dict()
        if names := sorted(ours.keys() ^ arrays.keys()):
            raise ValueError(f"{names[0]} is in one of the two models alone")
        for name, array in arrays.items():
            if array.shape != ours[name].shape:
                raise ValueError(f"{name} has the shape {array.shape}; the model's is {ours[name].shape}")
            ours[name][...] = array

    # Layers by the name of their parameters.

    def linear(self, name: str) -> Layer:
        return layer(f.linear, self.parameters, f"{name}.weight", f"{name}.bias")

    def embedding(self, name: str) -> Layer:
        """Tokens (...) -> (..., C); a token has no derivative."""

        def run(tokens: Array) -> tuple[Array, Callable[[Array, Gradients], Array]]:
            y, back = f.embedding(tokens, self.parameters[f"{name}.weight"])

            def back_(dy: Array, gradients: Gradients) -> Array:
                add(gradients, f"{name}.weight", back(dy))
                return dy

            return y, back_

        return run

    def norm(self, name: str) -> Layer:
        """The norm of the configuration, of rows (N, C)."""
        if self.config.norm == "none":
            return in_turn()
        function = f.layer_norm if self.config.norm == "layer" else partial(self._batch_norm, name)
        return layer(function, self.parameters, f"{name}.weight", f"{name}.bias")

    def _batch_norm(self, name: str, x: Array, gain: Array, bias: Array) -> tuple[Array, Callable]:
        mean, var = self.buffers[f"{name}.running_mean"], self.buffers[f"{name}.running_var"]
        if not self.training or len(x) < 2:  # one row has no variance
            return f.normalise(x, mean, var, gain, bias)
        for running, found in zip((mean, var), f.statistics(x), strict=True):
            running += MOMENTUM * (found - running)
        return f.batch_norm(x, gain, bias)

    def activation(self) -> Layer:
        return layer(ACTIVATIONS[self.config.activation], {})

    def dropout(self) -> Layer:
        if not self.training or not self.config.dropout:
            return in_turn()
        return layer(partial(f.dropout, p=self.config.dropout, rng=self.rng), {})

    # Parameters as torch draws them at first.

    def new_uniform(self, name: str, *shape: int, bound: float) -> None:
        self.parameters[name] = self.rng.uniform(-bound, bound, shape).astype(self.dtype)

    def new_normal(self, name: str, *shape: int, std: float = 1.0) -> None:
        self.parameters[name] = self.rng.normal(0, std, shape).astype(self.dtype)

    def new_linear(self, name: str, n_in: int, n_out: int, bias: bool = True) -> None:
        self.new_uniform(f"{name}.weight", n_out, n_in, bound=n_in**-0.5)
        if bias:
            self.new_uniform(f"{name}.bias", n_out, bound=n_in**-0.5)

    def new_norm(self, name: str, width: int, bias: bool = True) -> None:
        if self.config.norm == "none":
            return
        self.parameters[f"{name}.weight"] = np.ones(width, self.dtype)
        if bias:
            self.parameters[f"{name}.bias"] = np.zeros(width, self.dtype)
        if self.config.norm == "batch":
            self.buffers[f"{name}.running_mean"] = np.zeros(width, self.dtype)
            self.buffers[f"{name}.running_var"] = np.ones(width, self.dtype)

    def new_head(self, width: int, bias: bool = True) -> None:
        """The last layer; the specials that are never targets start with a low bias."""
        self.new_linear("lm_head", width, self.vocab_size, bias)
        if bias:
            self.parameters["lm_head.bias"][:] = 0
            self.parameters["lm_head.bias"][self.special.never_predicted] = IMPROBABLE


def not_padding(valid: Array) -> Array:
    """(B, T) of those with a target -> of those that are no padding: all up to a row's last target."""
    return np.flip(np.cumsum(np.flip(valid, 1), 1), 1) > 0
