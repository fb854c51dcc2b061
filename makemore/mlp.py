"""MLP: embed the last `order` tokens, concatenate the vectors, predict the next token with hidden layers.

Bengio, Ducharme, Vincent & Jauvin, "A Neural Probabilistic Language Model", JMLR 2003. Positions before the beginning
are `<pad>`. The state is the last `order - 1` tokens.
"""

import torch
from torch import Tensor, nn

from data.tokenizers import Special
from makemore.base import OURS, LanguageModel, State, make_head, make_ngrams
from makemore.config import MLPConfig
from makemore.layers import activation_of, initialise, make_norm
from makemore.mlp_looked_up import looked_up_hidden


class MLP(LanguageModel):
    """tokens (B, T) -> embeddings (B, T, order * n_embd) -> `n_layer` hidden layers (B, T, n_hidden) -> logits
    (B, T, V). Raises ValueError without an order."""

    def __init__(self, vocab_size: int, config: MLPConfig, special: Special = OURS):
        super().__init__(vocab_size, config, special)
        if config.order is None:
            raise ValueError("an MLP needs an order: how many tokens it sees; give --order")
        self.order, self.activation = config.order, activation_of(config.activation)
        self.wte = nn.Embedding(vocab_size, config.n_embd)
        self.ngrams = make_ngrams(config)
        widths = [config.order * config.n_embd] + [config.n_hidden] * config.n_layer
        self.layers = nn.ModuleList(
            nn.Linear(a, b, bias=config.norm != "batch") for a, b in zip(widths, widths[1:], strict=False)
        )
        self.norms = nn.ModuleList(make_norm(config, config.n_hidden) for _ in range(config.n_layer))
        self.dropout = nn.Dropout(config.dropout)
        self.lm_head = make_head(config.n_hidden, vocab_size, special)
        initialise(self, config.weight_init, config.activation)

    def reach(self) -> int:
        return max(self.order, self.ngrams.n if self.ngrams else 1)

    def hidden(self, tokens: Tensor, state: State | None, valid: Tensor | None) -> tuple[Tensor, State]:
        if fused := looked_up_hidden(self, tokens, state, valid):  # the same by other sums, in training
            return fused
        B, T = tokens.shape
        history = tokens.new_full((B, self.order - 1), self.special.pad) if state is None else state["tokens"]
        tokens = torch.cat([history, tokens], 1)  # (B, order - 1 + T)
        vectors = self.wte(tokens)
        parts = [vectors[:, i : i + T] for i in range(self.order)]
        new_state: State = {}
        if self.ngrams is not None:
            added, new_state = self.read_ngrams(tokens[:, self.order - 1 :], state)
            parts[-1] = parts[-1] + added
        x = torch.cat(parts, -1)  # (B, T, order * n_embd)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = self.dropout(self.activation(norm(layer(x), valid)))
        return x, new_state | {"tokens": tokens[:, T:]}

    def head(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)
