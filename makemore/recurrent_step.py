"""A step of an RNN, LSTM or GRU on a CPU as one call of compiled code, for a small model in float32."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kernels.step.draws import Draws
from kernels.step.library import Library
from kernels.step.program import ACTIVATIONS, EMBED, GRU, LSTM, RNN, Decoded, Program
from makemore.base import State
from makemore.cells import GRUCell, LSTMCell, RNNCell
from makemore.compiled import NORMS, add_norm, compiled_functions
from makemore.exact import are_exact, note
from makemore.small_work import without_gradients

Recurrent = Any  # its module imports this one
KINDS = {RNNCell: RNN, nn.RNN: RNN, LSTMCell: LSTM, nn.LSTM: LSTM, GRUCell: GRU, nn.GRU: GRU}

note(nn.Embedding, nn.Linear, nn.Dropout, *KINDS, *NORMS)


def compiled_stepper(model: Recurrent, state: State) -> "CompiledStepper | None":
    """The stepper of `model` in compiled code; None where a part of it is not the known one, or torch takes it."""
    if model.training or model.ngrams is not None or model.written or not are_exact(_parts_of(model)):
        return None
    functions = compiled_functions(model, len(state["h0"]))
    return None if functions is None else CompiledStepper(model, state, functions)


def _parts_of(model: Recurrent) -> Iterator[tuple[nn.Module, type[nn.Module]]]:
    """The modules of a step, each with the class that it has to be of: for a strange one a class that it is not."""
    yield model.wte, nn.Embedding
    yield model.lm_head, nn.Linear
    yield model.dropout, nn.Dropout
    for layer in model.layers:
        yield layer, type(layer) if type(layer) in KINDS else nn.Linear
    for norm in model.norms:
        yield norm, type(norm) if type(norm) in NORMS else nn.Linear


class CompiledStepper:
    """token (B,) -> logits (B, V), after `state` and all tokens since, as `makemore.base.Stepper`. The rows of `state`
    may change between two tokens; for more than there is room for, what is called is built anew."""

    def __init__(self, model: Recurrent, state: State, functions: Library):
        self.model, self.functions = model, functions
        self._rows = 0
        self.state = state

    @property
    def state(self) -> State:
        """A copy of the hidden vectors, {name: (B, H)}."""
        return {name: part.clone() for name, part in self._state.items()}

    @state.setter
    def state(self, state: State) -> None:
        self._state = {name: part.contiguous().clone() for name, part in state.items()}
        rows = len(state["h0"])
        if rows > self._rows:
            self._rows = max(rows, 8, 2 * self._rows)
            self._build()
        for i, (number, norm) in enumerate(zip(self.recurrences, self.reads, strict=True)):
            h = self._state[f"h{i}"]
            self.program.point(number, out=h)
            self.program.point(number - 1, x=h)
            self.program.point(norm, x=h)
            if "c" in self.model.vectors:
                self.program.point(number, state2=self._state[f"c{i}"])

    @without_gradients
    def __call__(self, token: Tensor) -> Tensor:
        result = torch.empty(len(token), self.model.vocab_size)
        self.program.call(token, result)
        return result

    @without_gradients
    def features(self, token: Tensor) -> Tensor:
        """The features (B, C) that the head reads, instead of its logits."""
        self.program.call(token, None, self.features_end)
        return self.hidden[: len(token)].clone()

    @without_gradients
    def decode(self, token: Tensor, draws: Draws, steps: int) -> Decoded:
        """Read `token` (B,) and draw up to `steps` tokens of each row, as `draws` says."""
        return self.program.decode(token, self.model.vocab_size, draws, steps)

    def _build(self) -> None:
        model, H = self.model, self.model.n_hidden
        self.program = program = Program(self.functions, self._rows)
        x = program.buffer(model.wte.embedding_dim)
        program.add(EMBED, x.shape[1], x.shape[1], weight=model.wte.weight.detach(), out=x)
        self.recurrences, self.reads = [], []
        for layer, norm in zip(model.layers, model.norms, strict=True):
            gates = layer.weight_ih_l0.shape[0]
            from_x, from_h, h = program.buffer(gates), program.buffer(gates), program.buffer(H)
            program.product(x, layer.weight_ih_l0, layer.bias_ih_l0, from_x)
            program.product(h, layer.weight_hh_l0, layer.bias_hh_l0, from_h)
            variant = ACTIVATIONS.index(model.activation)
            number = program.add(KINDS[type(layer)], gates, H, variant=variant, x=from_x, out=h, scratch=from_h)
            self.recurrences.append(number)
            x = program.buffer(H)
            self.reads.append(add_norm(program, norm, h, x))
        self.hidden, self.features_end = x, len(program.ops)
        program.product(x, model.lm_head.weight, model.lm_head.bias)
