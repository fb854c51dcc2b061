"""Three families on the tape: only their forward is written down, and `backward` finds the gradients.

The parameters are those of `makemore/scratch/models.py`, and so are the numbers; what is written by hand there takes
less time.
"""

from collections.abc import Callable, Mapping

import numpy as np

from data.batches import IGNORE
from makemore.constants import NORM_EPS
from makemore.scratch.base import Model, not_padding
from makemore.scratch.functions import Array
from makemore.scratch.layers import Gradients
from makemore.scratch.models import GRU, MLP, Transformer
from makemore.scratch.tape import Tensor, concat, where

Parameters = Mapping[str, Tensor]


class Taped(Model):
    """A family whose loss is computed on the tape: `forward` is all it adds. Knows no batch norm and no dropout."""

    def forward(self, p: Parameters, tokens: Array, kept: Array) -> Tensor:
        """From tokens (B, T) to the features (N, C) of the positions that are no padding."""
        raise NotImplementedError

    def loss(self, tokens: Array, targets: Array) -> tuple[float, Callable[[float], Gradients]]:
        """As the base class says."""
        p = {name: Tensor(array) for name, array in self.parameters.items()}
        valid = targets != IGNORE
        kept = not_padding(valid)
        features = self.forward(p, tokens, kept)[valid[kept]]
        head = "lm_head" if "lm_head.weight" in p else "wte"
        nll = negative_log_likelihood(linear(features, p, head), targets[valid])

        def back(dloss: float = 1.0) -> Gradients:
            total = nll * dloss
            total.backward()
            return {name: np.zeros_like(t.value) if t.grad is None else t.grad for name, t in p.items()}

        return float(nll.value), back


def linear(x: Tensor, p: Parameters, name: str) -> Tensor:
    """x W^T + b."""
    y = x @ p[f"{name}.weight"].swapaxes(0, 1)
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def negative_log_likelihood(logits: Tensor, targets: Array) -> Tensor:
    """The sum of -log softmax(logits)[target]: logits (N, V), targets (N,)."""
    shifted = logits - logits.value.max(-1, keepdims=True, initial=-np.inf)
    log_sum = shifted.exp().sum(-1).log()
    return (log_sum - shifted[np.arange(len(targets)), targets]).sum()


def layer_norm(x: Tensor, p: Parameters, name: str) -> Tensor:
    """Each row less its mean, over its standard deviation; nothing where the model has no such norm."""
    if f"{name}.weight" not in p:
        return x
    centred = x - x.mean(-1, keepdims=True)
    normed = centred * ((centred * centred).mean(-1, keepdims=True) + NORM_EPS) ** -0.5 * p[f"{name}.weight"]
    return normed + p[f"{name}.bias"] if f"{name}.bias" in p else normed


def gelu(x: Tensor) -> Tensor:
    """GPT-2's formula, with tanh."""
    return x * 0.5 * (((x + x * x * x * 0.044715) * (2 / np.pi) ** 0.5).tanh() + 1)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": Tensor.sigmoid,
    "tanh": Tensor.tanh,
    "relu": lambda x: where(x.value > 0, x, 0),
    "gelu_tanh": gelu,
    "silu": lambda x: x * x.sigmoid(),
}


class TapedMLP(Taped, MLP):
    def forward(self, p: Parameters, tokens: Array, kept: Array) -> Tensor:
        windows = self.inputs(tokens, kept)  # (N, order)
        x = p["wte.weight"][windows].reshape(len(windows), windows.shape[1] * self.config.n_embd)
        for i in range(self.config.n_layer):
            x = ACTIVATIONS[self.config.activation](layer_norm(linear(x, p, f"layers.{i}"), p, f"norms.{i}"))
        return x


class TapedGRU(Taped, GRU):
    def forward(self, p: Parameters, tokens: Array, kept: Array) -> Tensor:
        B, T, H = *tokens.shape, self.config.n_hidden
        xs = [p["wte.weight"][tokens[:, t]] for t in range(T)]  # of each time (B, C)
        for i in range(self.config.n_layer):
            W, U, b, c = (p[name] for name in self.names(i))
            h = Tensor(np.zeros((B, H), self.dtype))
            for t, x in enumerate(xs):
                a, u = x @ W.swapaxes(0, 1) + b, h @ U.swapaxes(0, 1) + c  # (B, 3H), of r, z and n
                r = (a[:, :H] + u[:, :H]).sigmoid()
                z = (a[:, H : 2 * H] + u[:, H : 2 * H]).sigmoid()
                n = (a[:, 2 * H :] + r * u[:, 2 * H :]).tanh()
                xs[t] = h = (1 - z) * n + z * h
            xs = [layer_norm(x, p, f"norms.{i}") for x in xs]
        return concat([x.reshape(B, 1, H) for x in xs], 1)[kept]


class TapedTransformer(Taped, Transformer):
    def forward(self, p: Parameters, tokens: Array, kept: Array) -> Tensor:
        B, T = tokens.shape
        act = ACTIVATIONS[self.config.activation]
        x = (p["wte.weight"][tokens] + p["wpe.weight"][:T]).reshape(B * T, -1)
        for i in range(self.config.n_layer):
            qkv = linear(layer_norm(x, p, f"h.{i}.ln_1"), p, f"h.{i}.attn.c_attn")
            x = x + linear(self.attention(qkv, B), p, f"h.{i}.attn.c_proj")
            inner = act(linear(layer_norm(x, p, f"h.{i}.ln_2"), p, f"h.{i}.mlp.c_fc"))
            x = x + linear(inner, p, f"h.{i}.mlp.c_proj")
        return layer_norm(x, p, "ln_f")[kept.reshape(-1)]

    def attention(self, qkv: Tensor, B: int) -> Tensor:
        """(B T, 3C) -> (B T, C)."""
        (rows, width), heads = qkv.shape, self.config.n_head
        T, D = rows // B, width // 3 // heads
        parts = qkv.reshape(B, T, 3 * heads, D).swapaxes(1, 2)  # (B, 3H, T, D)
        q, k, v = parts[:, :heads], parts[:, heads : 2 * heads], parts[:, 2 * heads :]
        seen = np.tril(np.ones((T, T), bool))
        scores = where(seen, q @ k.swapaxes(-1, -2) * D**-0.5, -1e30)
        e = (scores - scores.value.max(-1, keepdims=True)).exp()
        return (e / e.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(rows, heads * D)


TAPED: dict[str, type[Taped]] = {"mlp": TapedMLP, "gru": TapedGRU, "transformer": TapedTransformer}
