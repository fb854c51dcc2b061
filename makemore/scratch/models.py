"""The families in NumPy: each is a list of layers, and its parameters have torch's names and shapes."""

from collections.abc import Callable
from functools import partial

import numpy as np

from makemore.config import BigramConfig, CNNConfig, MLPConfig, RecurrentConfig, RNNConfig
from makemore.constants import IMPROBABLE, INIT_STD, MAX_DILATION
from makemore.scratch import functions as f
from makemore.scratch import recurrent
from makemore.scratch.base import Model
from makemore.scratch.functions import ACTIVATIONS, Array
from makemore.scratch.layers import Gradients, Layer, across, in_turn, layer, residual
from nanogpt.config import TransformerConfig


class Bigram(Model):
    """A table of logits, a row for each token that may come before. Its row is all that a token is embedded as."""

    config: BigramConfig

    def initialise(self) -> None:
        self.parameters["table.weight"] = np.zeros((self.vocab_size, self.vocab_size), self.dtype)
        self.parameters["table.weight"][:, self.special.never_predicted] = IMPROBABLE

    def layers(self, kept: Array) -> list[Layer]:
        return [self.embedding("table")]

    def head(self) -> list[Layer]:
        return []


class MLP(Model):
    """The vectors of the last `order` tokens beside each other through hidden layers. Bengio et al. 2003."""

    config: MLPConfig

    def initialise(self) -> None:
        c = self.config
        assert c.order is not None  # engine/config/presets.py gives one
        self.new_normal("wte.weight", self.vocab_size, c.n_embd)
        for i in range(c.n_layer):
            self.new_linear(f"layers.{i}", c.n_hidden if i else c.order * c.n_embd, c.n_hidden, c.norm != "batch")
            self.new_norm(f"norms.{i}", c.n_hidden)
        self.new_head(c.n_hidden)

    def inputs(self, tokens: Array, kept: Array) -> Array:
        """The last `order` tokens at each position, (N, order), `<pad>` before the beginning."""
        order = self.config.order or 1  # engine/config/presets.py gives one
        before = np.full((len(tokens), order - 1), self.special.pad)
        windows = np.lib.stride_tricks.sliding_window_view(np.concatenate([before, tokens], 1), order, 1)
        return windows[kept]

    def layers(self, kept: Array) -> list[Layer]:
        hidden = [
            [self.linear(f"layers.{i}"), self.norm(f"norms.{i}"), self.activation(), self.dropout()]
            for i in range(self.config.n_layer)
        ]
        return [self.embedding("wte"), layer(f.beside, {}), *sum(hidden, [])]


class CNN(Model):
    """Gated causal convolutions of two taps, the second 1, 2, 4, ... tokens back; what each skips to the end is summed.
    van den Oord et al. 2016, WaveNet."""

    config: CNNConfig

    def initialise(self) -> None:
        C = self.config.n_embd
        self.new_normal("wte.weight", self.vocab_size, C)
        for i in range(self.config.n_layer):
            self.new_norm(f"layers.{i}.norm", C)
            self.new_linear(f"layers.{i}.taps", 2 * C, 2 * C)
            self.new_linear(f"layers.{i}.out", C, 2 * C)
        self.new_linear("mix", C, C)
        self.new_norm("norm", C)
        self.new_head(C)

    def layers(self, kept: Array) -> list[Layer]:
        relu = layer(f.relu, {})
        return [self.embedding("wte"), self.skips(kept), self.norm("norm"), relu, self.linear("mix"), relu]

    def skips(self, kept: Array) -> Layer:
        """Each layer adds to the stream x, and to the sum of what skips the others."""
        gated = [self.gated(i, kept) for i in range(self.config.n_layer)]

        def run(x: Array) -> tuple[Array, Callable[[Array, Gradients], Array]]:
            skips, backs = np.zeros_like(x), []
            for one in gated:
                y, back = one(x)
                more, skip = np.split(y, 2, -1)
                x, skips = x + more, skips + skip
                backs.append(back)

            def back_(dskips: Array, gradients: Gradients) -> Array:
                dx = np.zeros_like(dskips)  # after the last layer nobody reads the stream
                for back in reversed(backs):
                    dx = dx + back(np.concatenate([dx, dskips], -1), gradients)
                return dx

            return skips, back_

        return run

    def gated(self, i: int, kept: Array) -> Layer:
        """(N, C) -> (N, 2C): what is added to the stream, and what skips to the end."""
        convolution = partial(f.two_taps, dilation=2 ** (i % MAX_DILATION.bit_length()))
        taps = layer(convolution, self.parameters, f"layers.{i}.taps.weight", f"layers.{i}.taps.bias")
        gate = layer(partial(f.gate, activation=ACTIVATIONS[self.config.activation]), {})
        return in_turn(
            self.norm(f"layers.{i}.norm"), across(kept, taps), gate, self.dropout(), self.linear(f"layers.{i}.out")
        )


class Recurrent(Model):
    """Recurrent layers, a norm after each."""

    config: RecurrentConfig
    gates = 1  # times n_hidden: the rows of the weights
    vectors = 1  # that a layer remembers

    def cell(self) -> Callable:
        raise NotImplementedError

    def initialise(self) -> None:
        c, rows = self.config, self.gates * self.config.n_hidden
        self.new_normal("wte.weight", self.vocab_size, c.n_embd)
        for i in range(c.n_layer):
            shapes = (rows, c.n_hidden if i else c.n_embd), (rows, c.n_hidden), (rows,), (rows,)
            for name, shape in zip(self.names(i), shapes, strict=True):
                self.new_uniform(name, *shape, bound=c.n_hidden**-0.5)
            self.new_norm(f"norms.{i}", c.n_hidden)
        self.new_head(c.n_hidden)

    def names(self, i: int) -> list[str]:
        return [f"layers.{i}.{part}_l0" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]

    def layers(self, kept: Array) -> list[Layer]:
        from_zero = recurrent.from_zero(self.cell(), self.vectors)
        cells = [
            [across(kept, layer(from_zero, self.parameters, *self.names(i))), self.norm(f"norms.{i}"), self.dropout()]
            for i in range(self.config.n_layer)
        ]
        return [self.embedding("wte"), self.dropout(), *sum(cells, [])]


class RNN(Recurrent):
    config: RNNConfig

    def cell(self) -> Callable:
        return partial(recurrent.rnn, activation=self.config.activation)


class LSTM(Recurrent):
    gates, vectors = 4, 2

    def cell(self) -> Callable:
        return recurrent.lstm

    def initialise(self) -> None:
        super().initialise()
        for i in range(self.config.n_layer):  # the memory is kept at first: Gers et al. 2000
            n = self.config.n_hidden
            self.parameters[f"layers.{i}.bias_hh_l0"][n : 2 * n] = 1


class GRU(Recurrent):
    gates = 3

    def cell(self) -> Callable:
        return recurrent.gru


class Transformer(Model):
    """GPT-2: positions are learned, and a block is x + attention(norm(x)), then x + mlp(norm(x))."""

    config: TransformerConfig

    def initialise(self) -> None:
        c, C = self.config, self.config.n_embd
        assert c.context is not None  # engine/texts.py gives one
        self.new_normal("wte.weight", self.vocab_size, C, std=INIT_STD)
        self.new_normal("wpe.weight", c.context, C, std=INIT_STD)
        for i in range(c.n_layer):
            self.new_norm(f"h.{i}.ln_1", C, c.bias)
            self.new_projection(f"h.{i}.attn.c_attn", C, 3 * C)
            self.new_projection(f"h.{i}.attn.c_proj", C, C, smaller=True)
            self.new_norm(f"h.{i}.ln_2", C, c.bias)
            self.new_projection(f"h.{i}.mlp.c_fc", C, 4 * C)
            self.new_projection(f"h.{i}.mlp.c_proj", 4 * C, C, smaller=True)
        self.new_norm("ln_f", C, c.bias)
        if not c.tie_head:
            self.new_head(C, c.bias)
            self.new_normal("lm_head.weight", self.vocab_size, C, std=INIT_STD)

    def new_projection(self, name: str, n_in: int, n_out: int, smaller: bool = False) -> None:
        """What adds to the stream is smaller with depth, since every block adds."""
        self.new_normal(
            f"{name}.weight", n_out, n_in, std=INIT_STD / (2 * self.config.n_layer) ** 0.5 if smaller else INIT_STD
        )
        if self.config.bias:
            self.parameters[f"{name}.bias"] = np.zeros(n_out, self.dtype)

    def layers(self, kept: Array) -> list[Layer]:
        positions = across(kept, layer(f.plus_positions, self.parameters, "wpe.weight"))
        blocks = [block for i in range(self.config.n_layer) for block in self.block(f"h.{i}", kept)]
        return [self.embedding("wte"), positions, self.dropout(), *blocks, self.norm("ln_f")]

    def block(self, name: str, kept: Array) -> list[Layer]:
        heads = partial(f.attention_of_heads, n_head=self.config.n_head)
        if self.training and self.config.dropout:
            heads = partial(heads, p=self.config.dropout, rng=self.rng)
        linear, activation, dropout = self.linear, self.activation(), self.dropout()
        attention = [linear(f"{name}.attn.c_attn"), across(kept, layer(heads, {})), linear(f"{name}.attn.c_proj")]
        mlp = [linear(f"{name}.mlp.c_fc"), activation, linear(f"{name}.mlp.c_proj")]
        return [
            residual(self.norm(f"{name}.ln_1"), *attention, dropout),
            residual(self.norm(f"{name}.ln_2"), *mlp, dropout),
        ]

    def head(self) -> list[Layer]:
        return [layer(f.linear, self.parameters, "wte.weight")] if self.config.tie_head else super().head()


MODELS: dict[str, type[Model]] = {
    "bigram": Bigram, "mlp": MLP, "cnn": CNN, "rnn": RNN, "lstm": LSTM, "gru": GRU, "transformer": Transformer,
}  # fmt: skip
