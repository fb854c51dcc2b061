"""CNN: stacked causal convolutions, gated and residual, whose receptive field doubles with each layer.

van den Oord et al., "WaveNet: A Generative Model for Raw Audio", 2016. A layer looks at its input now and `dilation`
steps ago (1, 2, 4, ...); a filter is multiplied by a sigmoid gate; the sum of all layers' skip outputs predicts. The
state is, for each layer, its last `dilation` inputs.
"""

from typing import Any

import torch
from torch import Tensor, nn

from data.tokenizers import Special
from makemore.base import OURS, LanguageModel, State, make_head, make_ngrams
from makemore.config import CNNConfig
from makemore.constants import MAX_DILATION
from makemore.layers import activation_of, initialise, make_norm


class GatedConvolution(nn.Module):
    """One layer: x (B, T, C) and the previous `dilation` inputs (B, dilation, C) -> the residual stream (B, T, C), the
    skip output (B, T, C) and the last `dilation` inputs, for the state.

    A dilated convolution of two taps is a matrix product over [x(t - dilation), x(t)], and computed as such."""

    def __init__(self, config: CNNConfig, dilation: int):
        super().__init__()
        C = config.n_embd
        self.dilation, self.activation = dilation, activation_of(config.activation)
        self.norm = make_norm(config, C)
        self.taps = nn.Linear(2 * C, 2 * C)
        self.out = nn.Linear(C, 2 * C)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, previous: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        inputs = torch.cat([previous, self.norm(x, valid)], 1)  # (B, dilation + T, C)
        taps = torch.cat([inputs[:, : -self.dilation], inputs[:, self.dilation :]], -1)  # (B, T, 2C)
        signal, gate = self.taps(taps).chunk(2, -1)
        residual, skip = self.out(self.dropout(self.activation(signal) * torch.sigmoid(gate))).chunk(2, -1)
        return x + residual, skip, inputs[:, -self.dilation :]


class CNN(LanguageModel):
    """tokens (B, T) -> n_layer gated convolutions of width n_embd -> sum of skips -> logits (B, T, V).

    The receptive field is 1 + the sum of the dilations: 2^n_layer tokens for up to ten layers."""

    def __init__(self, vocab_size: int, config: CNNConfig, special: Special = OURS):
        super().__init__(vocab_size, config, special)
        C, period = config.n_embd, MAX_DILATION.bit_length()
        self.wte = nn.Embedding(vocab_size, C)
        self.ngrams = make_ngrams(config)
        self.layers: Any = nn.ModuleList(GatedConvolution(config, 2 ** (i % period)) for i in range(config.n_layer))
        self.mix = nn.Linear(C, C)
        self.norm = make_norm(config, C)
        self.lm_head = make_head(C, vocab_size, special)
        initialise(self, config.weight_init, config.activation)

    def reach(self) -> int:
        return 1 + sum(layer.dilation for layer in self.layers) + (self.ngrams.n - 1 if self.ngrams else 0)

    def hidden(self, tokens: Tensor, state: State | None, valid: Tensor | None) -> tuple[Tensor, State]:
        x, new_state = self.embed(tokens, state)  # (B, T, C)
        skips = torch.zeros_like(x)
        for i, layer in enumerate(self.layers):
            previous = x.new_zeros(x.shape[0], layer.dilation, x.shape[-1]) if state is None else state[f"inputs{i}"]
            x, skip, new_state[f"inputs{i}"] = layer(x, previous, valid)
            skips = skips + skip
        return torch.relu(self.mix(torch.relu(self.norm(skips, valid)))), new_state

    def head(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)
