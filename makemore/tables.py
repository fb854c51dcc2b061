"""Products of embeddings with a matrix, computed once for each token of the vocabulary and looked up, in training.

A batch of characters has many more tokens than the vocabulary: the product of the table with the matrix is smaller than
that of all tokens' vectors, forward and backward. The sums run in another order, which changes last bits.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from kernels.step.library import Library
from kernels.step.windows import window_sums


def pays(wte: nn.Embedding, tokens: Tensor) -> bool:
    """Whether there are at least twice as many `tokens` as rows of `wte`."""
    return tokens.numel() >= 2 * wte.num_embeddings and not wte.sparse


def looked_up(wte: nn.Embedding, tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear(wte(tokens), weight, bias)`: tokens (B, T), weight (H, C) -> (B, T, H)."""
    return F.embedding(tokens, F.linear(wte.weight, weight, bias))


def looked_up_windows(
    wte: nn.Embedding, tokens: Tensor, order: int, weight: Tensor, bias: Tensor | None, library: Library
) -> Tensor:
    """The product of `weight` (H, order C) with the concatenated embeddings of each `order` successive tokens, and
    `bias`: tokens (B, order - 1 + T) -> (B, T, H), in float32 on a CPU. The table has a row of each token for each of
    its places in a window."""
    V, C = wte.weight.shape
    H = len(weight)
    by_place = weight.view(H, order, C).permute(2, 1, 0).reshape(C, order * H)
    return window_sums(library, tokens, (wte.weight @ by_place).view(V, order, H), bias)
