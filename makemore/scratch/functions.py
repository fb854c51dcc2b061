"""Functions in NumPy that return their value and their backward: `y, back = linear(x, W, b)`, then `dx, dW, db =
back(dy)`.

`dy` is the derivative of the loss by `y`, of the shape of `y`; what comes back are those by the arguments, in their
order. What a backward needs it remembers by being defined inside its function, so the same function may be called
twice, as a cell is at every time step, before either backward is. Arrays keep their dtype, float32 or float64.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from makemore.constants import NORM_EPS

Array = NDArray[Any]
Backward = Callable[[Array], Any]

MANY_ROWS = 512  # of an embedding: beyond, a product with one-hot rows takes longer than adding row by row


def linear(x: Array, W: Array, b: Array | None = None) -> tuple[Array, Backward]:
    """y = x W^T + b: x (..., n), W (m, n), b (m,) -> y (..., m). Without b its derivative is None."""
    rows = x.reshape(-1, x.shape[-1])  # (N, n): one product of two matrices is faster than many small ones
    y = rows @ W.T
    if b is not None:
        y += b

    def back(dy: Array) -> tuple[Array, Array, Array | None]:
        dy = dy.reshape(-1, len(W))
        return (dy @ W).reshape(x.shape), dy.T @ rows, None if b is None else dy.sum(0)

    return y.reshape(*x.shape[:-1], len(W)), back


def embedding(tokens: Array, W: Array) -> tuple[Array, Callable[[Array], Array]]:
    """Row W[token] of each token: tokens (...) integers, W (V, C) -> (..., C). A token that occurs often gets the sum
    of its derivatives."""

    def back(dy: Array) -> Array:
        flat, dy = tokens.reshape(-1), dy.reshape(-1, W.shape[1])
        if len(W) <= MANY_ROWS:
            one_hot = np.zeros((len(W), len(flat)), dy.dtype)
            one_hot[flat, np.arange(len(flat))] = 1
            return one_hot @ dy
        dW = np.zeros_like(W)
        np.add.at(dW, flat, dy)
        return dW

    return W[tokens], back


def layer_norm(x: Array, gain: Array, bias: Array | None = None, eps: float = NORM_EPS) -> tuple[Array, Backward]:
    """Each row less its mean, over its standard deviation, times gain, plus bias: x (..., C), gain and bias (C,). Ba et
    al. 2016. The variance is the biased one: over C, not C - 1. Without bias its derivative is None."""
    mean = x.mean(-1, keepdims=True)
    rstd = 1 / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + eps)
    normed = (x - mean) * rstd

    def back(dy: Array) -> tuple[Array, Array, Array | None]:
        dn = dy * gain
        # A row's mean and deviation depend on all of it: what moves it as a whole, or stretches it, changes nothing.
        along = (dn * normed).mean(-1, keepdims=True)
        dx = (dn - dn.mean(-1, keepdims=True) - normed * along) * rstd
        over = tuple(range(x.ndim - 1))
        return dx, (dy * normed).sum(over), None if bias is None else dy.sum(over)

    return normed * gain if bias is None else normed * gain + bias, back


def batch_norm(x: Array, gain: Array, bias: Array, eps: float = NORM_EPS) -> tuple[Array, Backward]:
    """As layer norm, but over the rows: x (N, C), each column less its mean over the batch. Ioffe and Szegedy 2015.
    `statistics` are what evaluation uses instead of the batch's own."""
    y, back = layer_norm(x.T, np.ones((), x.dtype), np.zeros((), x.dtype), eps)
    normed = y.T

    def back_(dy: Array) -> tuple[Array, Array, Array]:
        dx, _, _ = back((dy * gain).T)
        return dx.T, (dy * normed).sum(0), dy.sum(0)

    return normed * gain + bias, back_


def statistics(x: Array) -> tuple[Array, Array]:
    """The mean (C,) and the variance (C,) of rows (N, C), as batch norm keeps them: here the unbiased one, over
    N - 1."""
    return x.mean(0), x.var(0, ddof=1)


def normalise(
    x: Array, mean: Array, var: Array, gain: Array, bias: Array, eps: float = NORM_EPS
) -> tuple[Array, Backward]:
    """What batch norm does in evaluation: x (N, C) by a mean and a variance (C,) that are known, whatever the rest of
    the batch is."""
    normed, rstd = (x - mean) / np.sqrt(var + eps), 1 / np.sqrt(var + eps)
    return normed * gain + bias, lambda dy: (dy * gain * rstd, (dy * normed).sum(0), dy.sum(0))


def sigmoid(x: Array) -> tuple[Array, Callable[[Array], Array]]:
    """1 / (1 + exp(-x)), written so that no exponential overflows."""
    y = 0.5 * (1 + np.tanh(0.5 * x))
    return y, lambda dy: dy * y * (1 - y)


def tanh(x: Array) -> tuple[Array, Callable[[Array], Array]]:
    y = np.tanh(x)
    return y, lambda dy: dy * (1 - y * y)


def relu(x: Array) -> tuple[Array, Callable[[Array], Array]]:
    """x where it is positive, else 0."""
    return leaky_relu(x, 0.0)


def leaky_relu(x: Array, slope: float = 0.01) -> tuple[Array, Callable[[Array], Array]]:
    """x where it is positive, else a little of it, so that a unit never stops learning. Maas et al. 2013."""
    scale = np.where(x > 0, 1, slope).astype(x.dtype)
    return x * scale, lambda dy: dy * scale


def gelu(x: Array) -> tuple[Array, Callable[[Array], Array]]:
    """x times the probability that a normal number is below it, by GPT-2's formula with tanh. Hendrycks and Gimpel
    2016."""
    root = float(np.sqrt(2 / np.pi))
    t = np.tanh(root * (x + 0.044715 * x * x * x))  # NumPy takes 30 times as long for x**3

    def back(dy: Array) -> Array:
        return dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * root * (1 + 3 * 0.044715 * x * x))

    return 0.5 * x * (1 + t), back


def silu(x: Array) -> tuple[Array, Callable[[Array], Array]]:
    """x sigmoid(x). Ramachandran et al. 2017, Swish."""
    s, _ = sigmoid(x)
    return x * s, lambda dy: dy * s * (1 + x * (1 - s))


ACTIVATIONS: dict[str, Callable[[Array], tuple[Array, Callable[[Array], Array]]]] = {
    "sigmoid": sigmoid, "tanh": tanh, "relu": relu, "leaky_relu": leaky_relu, "gelu_tanh": gelu, "silu": silu,
}  # fmt: skip


def softmax(x: Array) -> tuple[Array, Callable[[Array], Array]]:
    """exp(x) over its sum along the last axis. The largest of each row is taken off first, which changes nothing but
    keeps exp from overflowing."""
    e = np.exp(x - x.max(-1, keepdims=True, initial=-np.inf))
    p = e / e.sum(-1, keepdims=True)
    return p, lambda dp: p * (dp - (dp * p).sum(-1, keepdims=True))


def cross_entropy(logits: Array, targets: Array) -> tuple[Array, Callable[..., Array]]:
    """The mean of -log softmax(logits)[target]: logits (N, V), targets (N,) -> a number; `back(1)` gives (N, V). Of no
    rows 0."""
    rows = np.arange(len(logits))
    shifted = logits - logits.max(-1, keepdims=True, initial=-np.inf)
    log_sum = np.log(np.exp(shifted).sum(-1))
    count = max(1, len(logits))

    def back(dloss: Array | float = 1.0) -> Array:
        p = np.exp(shifted - log_sum[:, None])
        p[rows, targets] -= 1  # softmax less the target: the whole derivative
        return p * (dloss / count)

    return (log_sum - shifted[rows, targets]).sum() / count, back


def mean_squared_error(y: Array, target: Array) -> tuple[Array, Callable[..., Array]]:
    """The mean of (y - target)^2 over all numbers."""
    off, count = y - target, max(1, y.size)
    return (off * off).sum() / count, lambda dloss=1.0: 2 * off * (dloss / count)


def hinge(scores: Array, targets: Array) -> tuple[Array, Callable[..., Array]]:
    """The mean over rows of by how much each wrong score comes nearer than 1 to the right one: scores (N, V), targets
    (N,). Weston and Watkins 1999."""
    rows, count = np.arange(len(scores)), max(1, len(scores))
    margins = np.maximum(0, scores - scores[rows, targets][:, None] + 1)
    margins[rows, targets] = 0

    def back(dloss: Array | float = 1.0) -> Array:
        ds = (margins > 0).astype(scores.dtype)
        ds[rows, targets] = -ds.sum(1)
        return ds * (dloss / count)

    return margins.sum() / count, back


def dropout(x: Array, p: float, rng: np.random.Generator) -> tuple[Array, Callable[[Array], Array]]:
    """x with a share p of its numbers at 0, the others over 1 - p, so that the mean stays. Srivastava et al. 2014."""
    scale = ((rng.random(x.shape) >= p) / (1 - p)).astype(x.dtype)
    return x * scale, lambda dy: dy * scale


def causal_convolution(
    x: Array, W: Array, b: Array, dilation: int = 1
) -> tuple[Array, Callable[[Array], tuple[Array, Array, Array]]]:
    """y[t] = sum over k of W[..., k] x[t - (K - 1 - k) dilation] + b, zeros before the text: x (B, T, n), W (m, n, K),
    b (m,) -> (B, T, m). Nothing later than t is read. One product with the taps beside each other."""
    B, T, n = x.shape
    K = W.shape[2]
    before = (K - 1) * dilation
    padded = np.concatenate([np.zeros((B, before, n), x.dtype), x], 1)
    taps = np.concatenate([padded[:, k * dilation : k * dilation + T] for k in range(K)], -1)  # (B, T, K n)
    y, back_linear = linear(taps, W.transpose(0, 2, 1).reshape(len(W), -1), b)

    def back(dy: Array) -> tuple[Array, Array, Array]:
        dtaps, dW, db = back_linear(dy)
        dpadded = np.zeros_like(padded)
        for k in range(K):
            dpadded[:, k * dilation : k * dilation + T] += dtaps[..., k * n : (k + 1) * n]
        return dpadded[:, before:], dW.reshape(len(W), K, n).transpose(0, 2, 1), db

    return y, back


def two_taps(x: Array, W: Array, b: Array, dilation: int) -> tuple[Array, Backward]:
    """A causal convolution of two taps whose weights lie as those of a linear layer over [x[t - dilation], x[t]]:
    W (m, 2n), x (B, T, n) -> (B, T, m)."""
    y, back_convolution = causal_convolution(x, W.reshape(len(W), 2, -1).transpose(0, 2, 1), b, dilation)

    def back(dy: Array) -> tuple[Array, Array, Array]:
        dx, dW, db = back_convolution(dy)
        return dx, dW.transpose(0, 2, 1).reshape(W.shape), db

    return y, back


def gate(x: Array, activation: Callable) -> tuple[Array, Callable[[Array], Array]]:
    """activation(signal) sigmoid(gate), of x (..., 2C), the signal and then the gate -> (..., C)."""
    signal, gate = np.split(x, 2, -1)
    (a, back_a), (s, back_s) = activation(signal), sigmoid(gate)
    return a * s, lambda dy: np.concatenate([back_a(dy * s), back_s(dy * a)], -1)


def beside(x: Array) -> tuple[Array, Callable[[Array], Array]]:
    """The vectors of a window beside each other: (N, order, C) -> (N, order C)."""
    return x.reshape(len(x), x.shape[1] * x.shape[2]), lambda dy: dy.reshape(x.shape)


def plus_positions(x: Array, W: Array) -> tuple[Array, Callable[[Array], tuple[Array, Array]]]:
    """Add to each vector that of its position: x (B, T, C), W (context, C)."""

    def back(dy: Array) -> tuple[Array, Array]:
        dW = np.zeros_like(W)
        dW[: x.shape[1]] = dy.sum(0)
        return dy, dW

    return x + W[: x.shape[1]], back


def causal_attention(
    q: Array, k: Array, v: Array, p: float = 0.0, rng: np.random.Generator | None = None
) -> tuple[Array, Callable[[Array], tuple[Array, Array, Array]]]:
    """softmax(q k^T / sqrt(D)) v, each query over the keys up to its own: q, k, v (B, H, T, D) -> (B, H, T, D). Vaswani
    et al. 2017. With an `rng` a share p of the probabilities is dropped."""
    T, scale = q.shape[2], q.shape[3] ** -0.5
    scores = q @ k.swapaxes(-1, -2) * scale  # (B, H, T, T)
    scores[..., np.triu(np.ones((T, T), bool), 1)] = -np.inf
    probabilities, back_softmax = softmax(scores)
    weights, back_dropout = dropout(probabilities, p, rng) if rng is not None else (probabilities, lambda dw: dw)

    def back(dy: Array) -> tuple[Array, Array, Array]:
        # 0 where the probability is: nothing flows to a later key
        ds = back_softmax(back_dropout(dy @ v.swapaxes(-1, -2))) * scale
        return ds @ k, ds.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ dy

    return weights @ v, back


def attention_of_heads(
    qkv: Array, n_head: int, p: float = 0.0, rng: np.random.Generator | None = None
) -> tuple[Array, Callable[[Array], Array]]:
    """Causal attention in n_head parts of the width: queries, keys and values in one, (B, T, 3C), C = n_head D ->
    (B, T, C)."""
    B, T, width = qkv.shape
    D = width // 3 // n_head
    q, k, v = qkv.reshape(B, T, 3, n_head, D).transpose(2, 0, 3, 1, 4)  # (B, H, T, D) each
    y, back_attention = causal_attention(q, k, v, p, rng)

    def back(dy: Array) -> Array:
        dheads = dy.reshape(B, T, n_head, D).swapaxes(1, 2)
        return np.stack(back_attention(dheads)).transpose(1, 3, 0, 2, 4).reshape(qkv.shape)

    return y.swapaxes(1, 2).reshape(B, T, n_head * D), back
