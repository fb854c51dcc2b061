"""The three recurrent cells written out, with the parameter names of `torch.nn.RNN`, `LSTM` and `GRU`.

They are to be read: slower than the fused layers, and equal to them (tested). A cell takes the input at time t and the
hidden vector of time t - 1, and returns the hidden vector of time t. The products with the inputs are one matrix
product for all gates and times; only the products with the hidden vector are computed step by step.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from makemore.layers import activation_of


class WrittenCell(nn.Module):
    """A recurrent layer that loops over time: x (B, T, C) and hidden vectors (1, B, H) each -> y (B, T, H) and the last
    hidden vectors."""

    gates: int

    def __init__(self, n_input: int, n_hidden: int):
        super().__init__()
        self.n_hidden = n_hidden
        self.weight_ih_l0 = nn.Parameter(torch.empty(self.gates * n_hidden, n_input))
        self.weight_hh_l0 = nn.Parameter(torch.empty(self.gates * n_hidden, n_hidden))
        self.bias_ih_l0 = nn.Parameter(torch.empty(self.gates * n_hidden))
        self.bias_hh_l0 = nn.Parameter(torch.empty(self.gates * n_hidden))
        for weight in self.parameters():
            nn.init.uniform_(weight, -1 / math.sqrt(n_hidden), 1 / math.sqrt(n_hidden))

    def step(self, gates: Tensor, hidden: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One time step: the products of the gates with the input (B, gates * H) and the hidden vectors (B, H) each ->
        the new hidden vectors, the output first."""
        raise NotImplementedError

    def forward(self, x: Tensor, hidden: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        gates = F.linear(x, self.weight_ih_l0, self.bias_ih_l0)  # (B, T, gates * H)
        hidden, outputs = tuple(h[0] for h in hidden), []
        for gates_t in gates.unbind(1):
            hidden = self.step(gates_t, hidden)
            outputs.append(hidden[0])
        return torch.stack(outputs, 1), tuple(h[None] for h in hidden)


class RNNCell(WrittenCell):
    """h' = act(W x + U h + b). Elman 1990."""

    gates = 1

    def __init__(self, n_input: int, n_hidden: int, activation: str = "tanh"):
        super().__init__(n_input, n_hidden)
        self.activation = activation_of(activation)

    def step(self, gates: Tensor, hidden: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (h,) = hidden
        return (self.activation(gates + F.linear(h, self.weight_hh_l0, self.bias_hh_l0)),)


class LSTMCell(WrittenCell):
    """A second vector c, the memory, is forgotten in part (f), added to (i * g) and output in part (o). Hochreiter &
    Schmidhuber 1997."""

    gates = 4

    def step(self, gates: Tensor, hidden: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, c = hidden
        i, f, g, o = (gates + F.linear(h, self.weight_hh_l0, self.bias_hh_l0)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class GRUCell(WrittenCell):
    """The reset gate r scales what the old vector says of the candidate; the update gate z mixes the old vector and the
    candidate. Cho et al. 2014, who reset the old vector before its product with the weights; torch, and this, after it.
    """

    gates = 3

    def step(self, gates: Tensor, hidden: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (h,) = hidden
        reset_x, update_x, new_x = gates.chunk(3, -1)
        reset_h, update_h, new_h = F.linear(h, self.weight_hh_l0, self.bias_hh_l0).chunk(3, -1)
        r, z = torch.sigmoid(reset_x + reset_h), torch.sigmoid(update_x + update_h)
        candidate = torch.tanh(new_x + r * new_h)
        return ((1 - z) * candidate + z * h,)
