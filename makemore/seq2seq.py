"""Encoder and decoder, recurrent: one network reads the source both ways, another writes the target after it.

Sutskever et al., "Sequence to Sequence Learning with Neural Networks", 2014: all that the decoder learns of the source
is the hidden vector it starts with. With attention (makemore/aligned.py) each step looks at all of the source's
vectors.

The source stands before each row of a batch (`Batch.prefix`), and what the encoder makes of it is part of the *state*:
`start` reads it, and `hidden` is a language model of the target. So the loss, the cache and decoding are those of every
family.
"""

import torch
from torch import Tensor, nn

from data.tokenizers import Special
from makemore.aligned import Attention, make_attention
from makemore.base import OURS, LanguageModel, State
from makemore.config import RecurrentConfig
from makemore.recurrent import GRU, LSTM, Recurrent

DECODERS: dict[str, type[Recurrent]] = {"gru": GRU, "lstm": LSTM}
ENCODERS: dict[str, type[nn.GRU] | type[nn.LSTM]] = {"gru": nn.GRU, "lstm": nn.LSTM}


class Seq2Seq(LanguageModel):
    """source (B, S) -> memory (B, S, H) and the decoder's first state; with it target tokens (B, T) -> logits
    (B, T, V).

    `cell`: gru or lstm. `attention`: none, bahdanau, luong-dot or luong-general. Source and target have one vocabulary
    and one embedding table. The encoder has half of the `n_hidden` units in each direction. Raises ValueError for an
    odd `n_hidden`."""

    def __init__(
        self, vocab_size: int, config: RecurrentConfig, special: Special = OURS, cell: str = "gru",
        attention: str = "none",
    ):  # fmt: skip
        super().__init__(vocab_size, config, special)
        if config.n_hidden % 2:
            raise ValueError(f"--n-hidden {config.n_hidden} is odd; each direction of the encoder has half of it")
        width, self.n_layer = config.n_hidden, config.n_layer
        self.decoder = DECODERS[cell](vocab_size, config, special)
        self.encoder = ENCODERS[cell](
            config.n_embd, width // 2, config.n_layer, batch_first=True, bidirectional=True,
            dropout=config.dropout if config.n_layer > 1 else 0.0,
        )  # fmt: skip
        vectors = len(self.decoder.vectors) * config.n_layer
        self.bridges = nn.ModuleList(nn.Linear(width, width) for _ in range(vectors))
        self.attention: Attention | None = make_attention(attention, width)
        if self.attention is not None and self.attention.leads:  # its result is an input of the first layer, too
            self.decoder.layers[0] = self.decoder.make_layer(config.n_embd + width)

    def start(self, prefix: Tensor | None, position: Tensor | None) -> State:
        """The state before the first token of the target, after the sources `prefix` (B, S), padded on the right:
        hidden vectors h0, h1, ... (and c0, ... of an LSTM), (B, H) each, and, for attention, `memory` (B, S, H), with
        `there` (B, S), which is False for padding."""
        assert prefix is not None  # every row has a source
        there = prefix != self.special.pad
        lengths = there.sum(1).clamp(min=1)
        x = self.decoder.dropout(self.decoder.wte(prefix))
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        read, final = self.encoder(packed)
        finals = final if isinstance(final, tuple) else (final,)
        state: State = {}
        bridges = iter(self.bridges)
        for name, vectors in zip(self.decoder.vectors, finals, strict=True):  # (2 L, B, H / 2)
            for i in range(self.n_layer):
                both = torch.cat([vectors[2 * i], vectors[2 * i + 1]], 1)
                state[f"{name}{i}"] = next(bridges)(both).tanh()
        if self.attention is not None:
            memory, _ = nn.utils.rnn.pad_packed_sequence(read, batch_first=True, total_length=prefix.shape[1])
            state |= {"memory": memory, "there": there}
            state |= self.attention.prepare(memory)
        return state

    def hidden(self, tokens: Tensor, state: State | None, valid: Tensor | None) -> tuple[Tensor, State]:
        features, state, _ = self.aligned(tokens, state, valid)
        return features, state

    def aligned(
        self, tokens: Tensor, state: State | None, valid: Tensor | None = None
    ) -> tuple[Tensor, State, Tensor | None]:
        """`hidden`, and the weights of the attention (B, T, S): how much each step looks at each token of the source.
        None without attention."""
        if state is None:  # no source at all
            state = self.start(tokens.new_full((len(tokens), 1), self.special.eos), None)
        if self.attention is None:
            x, after = self.decoder.hidden(tokens, state, valid)
            return x, state | after, None
        if not self.attention.leads:
            x, after = self.decoder.hidden(tokens, state, valid)
            found, weights = self.attention(x, state)
            return self.attention.combine(x, found), state | after, weights
        return self._step_by_step(tokens, state)

    def head(self, hidden: Tensor) -> Tensor:
        return self.decoder.head(hidden)

    def head_weights(self) -> tuple[Tensor, Tensor | None] | None:
        return self.decoder.head_weights()

    def output_layers(self) -> list[nn.Module]:
        return self.decoder.output_layers()

    def _step_by_step(self, tokens: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        """Each step looks with the hidden vector of the step before: what it finds is an input (B, H) of the step."""
        decoder, attention = self.decoder, self.attention
        assert attention is not None
        embedded = decoder.dropout(decoder.wte(tokens))
        features, alignments = [], []
        for t in range(tokens.shape[1]):
            found, weights = attention(state[f"h{self.n_layer - 1}"][:, None], state)
            x, after = decoder.through_layers(torch.cat([embedded[:, t : t + 1], found], 2), state)
            state = state | after
            features.append(attention.combine(x, found))
            alignments.append(weights)
        return torch.cat(features, 1), state, torch.cat(alignments, 1)
