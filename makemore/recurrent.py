"""RNN, LSTM and GRU: a hidden vector, updated at every token, that summarises everything read so far.

Elman 1990; Hochreiter & Schmidhuber 1997; Cho et al. 2014. The layers are `torch.nn`'s fused ones, which train on a CPU
by the compiled loop of `makemore/recurrent_scan.py`, or, with `cells="written"`, the loops of `makemore/cells.py` (same
parameters, same numbers). The state is each layer's hidden vector(s); it may be carried over consecutive stream batches
for truncated backpropagation through time. With `objective="masked"` each layer reads a row both ways, with half of its
units each, and there is no state.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from data.tokenizers import Special
from makemore.base import OURS, LanguageModel, State, make_head, make_ngrams
from makemore.both_ways import lengths_of, turned
from makemore.cells import GRUCell, LSTMCell, RNNCell
from makemore.config import RecurrentConfig
from makemore.exact import has_methods_of, is_exact, needs_gradients, note
from makemore.layers import initialise, make_norm
from makemore.recurrent_scan import scan_layer
from makemore.recurrent_step import compiled_stepper
from makemore.segments import Take, read_segments
from makemore.small_work import for_small_work


class Recurrent(LanguageModel):
    """tokens (B, T) -> n_layer recurrent layers of width n_hidden, a norm after each -> logits (B, T, V)."""

    vectors: tuple[str, ...] = ("h",)

    def __init__(self, vocab_size: int, config: RecurrentConfig, special: Special = OURS):
        super().__init__(vocab_size, config, special)
        self.n_hidden, self.written, self.causal = config.n_hidden, config.cells == "written", not config.fills
        if config.fills and config.n_hidden % 2:
            raise ValueError(f"--n-hidden {config.n_hidden} is odd; each direction has half of it")
        self.n_units = config.n_hidden if self.causal else config.n_hidden // 2  # of a layer, in each direction
        self.activation = getattr(config, "activation", "tanh")  # of the gated ones always tanh
        self.wte = nn.Embedding(vocab_size, config.n_embd)
        self.ngrams = make_ngrams(config)
        widths = [config.n_embd] + [config.n_hidden] * (config.n_layer - 1)
        self.layers = nn.ModuleList(self.make_layer(width) for width in widths)
        self.backward_layers = None if self.causal else nn.ModuleList(self.make_layer(width) for width in widths)
        self.norms = nn.ModuleList(make_norm(config, config.n_hidden) for _ in range(config.n_layer))
        self.dropout = nn.Dropout(config.dropout)
        self.lm_head = make_head(config.n_hidden, vocab_size, special)
        initialise(self, config.weight_init, self.activation)

    def make_layer(self, n_input: int) -> nn.Module:
        """One recurrent layer from width n_input to n_units."""
        raise NotImplementedError

    def hidden(self, tokens: Tensor, state: State | None, valid: Tensor | None) -> tuple[Tensor, State]:
        x, new_state = self.embed(tokens, state)
        x, layers_state = self.through_layers(self.dropout(x), state, valid, tokens)
        return x, new_state | layers_state

    def through_layers(
        self, x: Tensor, state: State | None, valid: Tensor | None = None, tokens: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """The features (B, T, H) of the inputs `x` (B, T, C) of the first layer, and the layers' state. `tokens`: of
        which `x` are the embeddings; None where they are more than that."""
        if self.backward_layers is not None:
            return self._both_ways(x, state, valid, tokens)
        new_state: State = {}
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            names = [f"{name}{i}" for name in self.vectors]
            if state is None:
                initial = self._nothing(x)
            else:
                initial = tuple(state[name][None] for name in names)  # (1, B, H)
            x, final = self._read(layer, x, initial, tokens if i == 0 else None)
            x = self.dropout(norm(x, valid))
            new_state |= {name: vector[0] for name, vector in zip(names, final, strict=True)}
        return x, new_state

    def _both_ways(
        self, x: Tensor, state: State | None, there: Tensor | None, tokens: Tensor | None
    ) -> tuple[Tensor, State]:
        """`through_layers`, each row from both of its ends; `there` (B, T) is False for padding."""
        if state is not None:
            raise ValueError("a row that is read both ways is whole: there is no state before it")
        assert self.backward_layers is not None  # `through_layers` has looked
        lengths = lengths_of(there, x)
        for i, (layer, back, norm) in enumerate(zip(self.layers, self.backward_layers, self.norms, strict=True)):
            initial, from_end = self._nothing(x), turned(x, lengths)
            ahead, _ = self._read(layer, x, initial, tokens if i == 0 else None)
            behind, _ = self._read(back, from_end, initial, None)
            x = self.dropout(norm(torch.cat([ahead, turned(behind, lengths)], -1), there))
        return x, {}

    def _nothing(self, x: Tensor) -> tuple[Tensor, ...]:
        """The hidden vectors (1, B, H) before the first of the inputs x (B, T, C)."""
        return tuple(x.new_zeros(1, x.shape[0], self.n_units) for _ in self.vectors)

    def read_parts(self, tokens: Tensor, state: State | None, take: Take) -> State:
        return read_segments(self.read_hidden, tokens, state, take)

    def last_hidden(self, tokens: Tensor) -> tuple[Tensor, State]:
        if len(tokens) > 1:
            return super().last_hidden(tokens)
        last: list[Tensor] = []

        def keep_last(index: Tensor, hidden: Tensor) -> None:
            last[:] = [hidden[-1:, -1]]

        state = self.read_parts(tokens[0], None, keep_last)
        return last[0], state

    def head(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)

    def stepper(self, state: State) -> Callable[[Tensor], Tensor]:
        """As the base class says: in one call of compiled code where that is known to compute the same."""
        is_known = type(self) in (RNN, LSTM, GRU) and has_methods_of(self, type(self))
        fast = compiled_stepper(self, state) if is_known and not needs_gradients(self, state) else None
        return fast or super().stepper(state)

    def _read(
        self, layer: nn.Module, x: Tensor, initial: tuple[Tensor, ...], tokens: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What `layer` makes of x (B, T, C) after the vectors `initial` (1, B, H), and its last ones: in training by
        its loop in compiled code, where there is one. `tokens`: of which `x` are the embeddings; None where they are
        more than that."""
        scanned = None
        if self.training and self.fused and not self.written:
            is_table = self.ngrams is None and not self.dropout.p and is_exact(self.wte, nn.Embedding)
            table = self.wte if is_table and tokens is not None else None
            scanned = scan_layer(layer, x, initial[0], table, tokens)
        return scanned or self._run(layer, x, initial)

    def _run(self, layer: nn.Module, x: Tensor, initial: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        if self.written:
            return layer(x, initial)
        # torch's LSTM takes and returns its two vectors as a pair, the others a single vector.
        x, final = layer(x, initial if len(initial) > 1 else initial[0])
        return x, final if isinstance(final, tuple) else (final,)


class RNN(Recurrent):
    """h' = act(W x + U h + b)."""

    def make_layer(self, n_input: int) -> nn.Module:
        if self.written:
            return RNNCell(n_input, self.n_units, self.activation)
        if self.activation not in ("tanh", "relu"):
            raise ValueError(f"the fused rnn knows tanh and relu, not {self.activation}; use --cells written")
        return nn.RNN(n_input, self.n_units, nonlinearity=self.activation, batch_first=True)


class LSTM(Recurrent):
    """A hidden and a memory vector, with input, forget and output gates. The bias of the forget gate starts at 1, so
    that the memory is kept at first (Gers et al. 2000)."""

    vectors = ("h", "c")

    def make_layer(self, n_input: int) -> nn.Module:
        layer = LSTMCell(n_input, self.n_units) if self.written else nn.LSTM(n_input, self.n_units, batch_first=True)
        nn.init.ones_(layer.get_parameter("bias_hh_l0").data[self.n_units : 2 * self.n_units])
        return layer

    def read_hidden(self, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
        if tokens.shape[1] > 1:
            return super().read_hidden(tokens, state)
        with for_small_work(len(tokens)):  # for one token oneDNN's LSTM takes 1.5 times as long
            return super().read_hidden(tokens, state)


class GRU(Recurrent):
    """One vector, with reset and update gates."""

    def make_layer(self, n_input: int) -> nn.Module:
        return GRUCell(n_input, self.n_units) if self.written else nn.GRU(n_input, self.n_units, batch_first=True)


note(RNN, LSTM, GRU)
