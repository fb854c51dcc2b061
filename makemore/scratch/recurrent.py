"""Recurrent layers through time, with the parameters of `torch.nn.RNN`, `LSTM` and `GRU`: x (B, T, n), the first hidden
vector h (B, H) -> all of them, (B, T, H).

The inputs' share of the gates is one product for all times, before the loop; so are the gradients of all weights, after
it. Inside is only what has to wait for the step before. Time comes first there, so that a step's numbers lie together.
"""

from collections.abc import Callable

import numpy as np

from makemore.scratch.functions import ACTIVATIONS, Array, linear, sigmoid

# dy (B, T, H) -> the derivatives by x, by the first hidden vectors, and by W, U and their biases
Backward = Callable[[Array], tuple[Array, ...]]


def rnn(x: Array, h: Array, W: Array, U: Array, b: Array, c: Array, activation: str = "tanh") -> tuple[Array, Backward]:
    """h' = act(W x + b + U h + c): W (H, n), U (H, H), b and c (H,). Elman 1990."""
    gates, back_inputs = _over_inputs(x, W, b)  # (T, B, H)
    hs, backs = _room(h, gates), []
    for t, gate in enumerate(gates):
        hs[t + 1], back_act = ACTIVATIONS[activation](gate + hs[t] @ U.T + c)
        backs.append(back_act)

    def back(dy: Array) -> tuple[Array, ...]:
        dgates, dh = np.empty_like(gates), np.zeros_like(h)
        for t in reversed(range(len(gates))):
            dgates[t] = backs[t](dh + dy[:, t])
            dh = dgates[t] @ U
        dx, dW, db = back_inputs(dgates)
        dU, dc = _of_hidden(dgates, hs)
        return dx, dh, dW, dU, db, dc

    return hs[1:].swapaxes(0, 1), back


def gru(x: Array, h: Array, W: Array, U: Array, b: Array, c: Array) -> tuple[Array, Backward]:
    """The reset gate r scales what the old vector says of the candidate n; the update gate z mixes the two. W (3H, n),
    U (3H, H), b and c (3H,), of r, then z, then n. Cho et al. 2014, who reset h before the product with U; torch, and
    this, after it."""
    gates, back_inputs = _over_inputs(x, W, b)  # (T, B, 3H)
    hs, kept = _room(h, gates), []
    for t, gate in enumerate(gates):
        rx, zx, nx = np.split(gate, 3, -1)
        rh, zh, nh = np.split(hs[t] @ U.T + c, 3, -1)
        r, z = sigmoid(rx + rh)[0], sigmoid(zx + zh)[0]
        n = np.tanh(nx + r * nh)
        hs[t + 1] = (1 - z) * n + z * hs[t]
        kept.append((r, z, n, nh))

    def back(dy: Array) -> tuple[Array, ...]:
        dinput, dhidden, dh = np.empty_like(gates), np.empty_like(gates), np.zeros_like(h)
        for t in reversed(range(len(gates))):
            r, z, n, nh = kept[t]
            dh = dh + dy[:, t]
            dn = dh * (1 - z) * (1 - n * n)  # by what is inside of tanh
            dz = dh * (hs[t] - n) * z * (1 - z)
            dr = dn * nh * r * (1 - r)
            dinput[t] = np.concatenate([dr, dz, dn], -1)
            dhidden[t] = np.concatenate([dr, dz, dn * r], -1)
            dh = dh * z + dhidden[t] @ U
        dx, dW, db = back_inputs(dinput)
        dU, dc = _of_hidden(dhidden, hs)
        return dx, dh, dW, dU, db, dc

    return hs[1:].swapaxes(0, 1), back


def lstm(x: Array, h: Array, memory: Array, W: Array, U: Array, b: Array, c: Array) -> tuple[Array, Backward]:
    """A second vector, the memory, (B, H), is forgotten in part (f), added to (i g), and shown in part (o). W (4H, n),
    U (4H, H), b and c (4H,), of i, f, g, o. Hochreiter and Schmidhuber 1997. The derivative by the first memory follows
    that by the first hidden vector."""
    gates, back_inputs = _over_inputs(x, W, b)  # (T, B, 4H)
    hs, kept = _room(h, gates), []
    for t, gate in enumerate(gates):
        i, f, g, o = np.split(gate + hs[t] @ U.T + c, 4, -1)
        i, f, g, o = sigmoid(i)[0], sigmoid(f)[0], np.tanh(g), sigmoid(o)[0]
        before, memory = memory, f * memory + i * g
        shown = np.tanh(memory)
        hs[t + 1] = o * shown
        kept.append((i, f, g, o, before, shown))

    def back(dy: Array) -> tuple[Array, ...]:
        dgates, dh, dmemory = np.empty_like(gates), np.zeros_like(h), np.zeros_like(h)
        for t in reversed(range(len(gates))):
            i, f, g, o, before, shown = kept[t]
            dh = dh + dy[:, t]
            dmemory = dmemory + dh * o * (1 - shown * shown)
            di, df = dmemory * g * i * (1 - i), dmemory * before * f * (1 - f)
            dg, do = dmemory * i * (1 - g * g), dh * shown * o * (1 - o)
            dgates[t] = np.concatenate([di, df, dg, do], -1)
            dh, dmemory = dgates[t] @ U, dmemory * f
        dx, dW, db = back_inputs(dgates)
        dU, dc = _of_hidden(dgates, hs)
        return dx, dh, dmemory, dW, dU, db, dc

    return hs[1:].swapaxes(0, 1), back


def from_zero(cell: Callable, vectors: int = 1) -> Callable:
    """`cell` as a function of x and its weights alone: what it remembers, `vectors` (B, H), is zero at first."""

    def run(x: Array, W: Array, U: Array, b: Array, c: Array) -> tuple[Array, Backward]:
        zeros = [np.zeros((len(x), U.shape[1]), x.dtype) for _ in range(vectors)]
        y, back = cell(x, *zeros, W, U, b, c)

        def back_(dy: Array) -> tuple[Array, ...]:
            dx, *rest = back(dy)
            return dx, *rest[vectors:]

        return y, back_

    return run


def _over_inputs(x: Array, W: Array, b: Array) -> tuple[Array, Callable[[Array], tuple[Array, Array, Array]]]:
    """The inputs' share of the gates, (T, B, G), and its backward to x (B, T, n)."""
    gates, back_linear = linear(np.ascontiguousarray(x.swapaxes(0, 1)), W, b)

    def back(dgates: Array) -> tuple[Array, Array, Array]:
        dx, dW, db = back_linear(dgates)
        return dx.swapaxes(0, 1), dW, db

    return gates, back


def _room(h: Array, gates: Array) -> Array:
    """Room for the hidden vectors, (T + 1, B, H), the first one there."""
    hs = np.empty((len(gates) + 1, *h.shape), h.dtype)
    hs[0] = h
    return hs


def _of_hidden(dgates: Array, hs: Array) -> tuple[Array, Array]:
    """The derivatives by U and its bias, of all times at once."""
    flat = dgates.reshape(-1, dgates.shape[-1])
    return flat.T @ hs[:-1].reshape(len(flat), -1), flat.sum(0)
