"""Attention over a source of any length: each step of a decoder takes a weighted mean of the encoder's vectors.

Bahdanau, Cho & Bengio, "Neural Machine Translation by Jointly Learning to Align and Translate", 2015, scores with a
small network and looks before each step. Luong, Pham & Manning, "Effective Approaches to Attention-based Neural Machine
Translation", 2015, scores with a product and looks after it, so that all steps of a target are one product.
"""

import torch
from torch import Tensor, nn

from makemore.rows import State


class Attention(nn.Module):
    """queries (B, T, H) and `memory` (B, S, H) -> weights (B, T, S), and the weighted means (B, T, H)."""

    leads = False  # whether it looks before the step it is for, so that what it finds is an input of the step

    def __init__(self, width: int):
        super().__init__()
        self.combined = nn.Linear(2 * width, width)

    def prepare(self, memory: Tensor) -> State:
        """What the scores need of `memory` (B, S, H) alone, computed once a source: parts of the state."""
        return {}

    def scores(self, queries: Tensor, state: State) -> Tensor:
        """How well each query fits each vector of the memory, (B, T, S)."""
        raise NotImplementedError

    def forward(self, queries: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """The weighted means (B, T, H) and the weights (B, T, S), zero where the source is padding."""
        scores = self.scores(queries, state).masked_fill(~state["there"][:, None], -torch.inf)
        weights = scores.softmax(-1)
        return weights @ state["memory"], weights

    def combine(self, x: Tensor, found: Tensor) -> Tensor:
        """The features that the head reads, (B, T, H), of the decoder's vectors `x` and what was found."""
        return self.combined(torch.cat([x, found], -1)).tanh()


class LuongDot(Attention):
    """score = q . m"""

    def scores(self, queries: Tensor, state: State) -> Tensor:
        return queries @ state["memory"].transpose(1, 2)


class LuongGeneral(Attention):
    """score = q . W m"""

    def __init__(self, width: int):
        super().__init__(width)
        self.query = nn.Linear(width, width, bias=False)

    def scores(self, queries: Tensor, state: State) -> Tensor:
        return self.query(queries) @ state["memory"].transpose(1, 2)


class Bahdanau(Attention):
    """score = v . tanh(W q + U m)"""

    leads = True

    def __init__(self, width: int):
        super().__init__(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.score = nn.Linear(width, 1, bias=False)

    def prepare(self, memory: Tensor) -> State:
        return {"keys": self.key(memory)}

    def scores(self, queries: Tensor, state: State) -> Tensor:
        return self.score((self.query(queries)[:, :, None] + state["keys"][:, None]).tanh())[..., 0]


ATTENTIONS = {"bahdanau": Bahdanau, "luong-dot": LuongDot, "luong-general": LuongGeneral}


def make_attention(name: str, width: int) -> Attention | None:
    """The attention of this name, for vectors of this width; None for 'none'."""
    return None if name == "none" else ATTENTIONS[name](width)
