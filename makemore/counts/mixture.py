"""A mixture of a neural model and Kneser-Ney counts, weighted by a learned gate.

The probability of a token is g times that under the counts plus 1 - g times that under the neural model: a mixture of
experts (Jacobs et al., "Adaptive Mixtures of Local Experts", 1991) of which one is counted. The gate computes g from
the neural model's features and from the counts of the last tokens as contexts. In training the counts leave out the
fold of the text that a target is in: otherwise the gate would learn to trust counts that contain the answer.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.batches import IGNORE
from makemore.base import LanguageModel, Output, State, precise
from makemore.config import NGramConfig, TrainedConfig
from makemore.counts.folds import leave_one_out
from makemore.counts.inputs import CountInputs
from makemore.counts.left_out import LeftOutCounts
from makemore.counts.levels import count
from makemore.counts.ngram import NGram
from makemore.counts.ngram_stepper import FLOOR, CountStepper
from makemore.exact import has_methods_of, is_exact, needs_gradients, note
from makemore.layers import widened
from makemore.rows import ApartRows, Rows, joined, without
from makemore.small_work import for_small_work, without_gradients

FOLDS = 10  # into which a stream is cut, so that a left-out fold is as long as the validation split
GATE_WIDTH = 64
# In the first steps the counts are better everywhere. A gate that learns this too fast and too far stays there.
GATE_LOGIT_MAX, GATE_LR_SCALE = 4.0, 0.1  # the bound of g's logit, and the factor by which it learns more slowly
NEURAL_PREFIX = "neural."  # of the names of the neural model's part of the state


class Gate(nn.Module):
    """features (..., C) and confidence (..., 2 * order) -> the logarithms of 1 - g and of g, (..., 2)."""

    def __init__(self, width: int, order: int):
        super().__init__()
        self.c_fc = nn.Linear(width + 2 * order, GATE_WIDTH)
        self.c_proj = nn.Linear(GATE_WIDTH, 1)
        nn.init.zeros_(self.c_proj.weight)
        nn.init.zeros_(self.c_proj.bias)

    def forward(self, hidden: Tensor, confidence: Tensor) -> Tensor:
        x = torch.cat([hidden, 0.3 * confidence.type_as(hidden)], -1)  # logarithms of counts reach 13
        x = GATE_LR_SCALE * widened(self.c_proj(F.gelu(self.c_fc(x))))
        logit = GATE_LOGIT_MAX * torch.tanh(x / GATE_LOGIT_MAX)
        return F.logsigmoid(torch.cat([-logit, logit], -1))


class Mixture(LanguageModel):
    """tokens (B, T) -> logarithms of mixed probabilities (B, T, V). The state is the neural model's and the last
    tokens, and in training the position of the next target in the text.

    The gradient is that of the mean of the mixture's loss and the neural model's own: with the mixture's alone the gate
    would choose the counts, which are better at first, and the neural model would never learn. The loss returned is the
    mixture's."""

    fixed = ("counts.",)
    likelihood: Tensor
    confidence: Tensor

    def __init__(self, neural: LanguageModel, order: int, count_inputs: bool = False):
        super().__init__(neural.vocab_size, TrainedConfig(), neural.special)
        head = neural.head_weights()
        width = neural.vocab_size if head is None else head[0].shape[1]
        self.neural, self.context = neural, neural.context
        self.counts = NGram(neural.vocab_size, NGramConfig(order=order), neural.special)
        if count_inputs:
            left_out = LeftOutCounts(neural.vocab_size, NGramConfig(order=order), neural.special)
            neural.ngrams = CountInputs(self.counts, left_out, neural.ngrams, neural.wte.embedding_dim, neural.special)
        self.gate = Gate(width, order)
        self.register_buffer("likelihood", torch.empty(0), persistent=False)  # (N,) of the training text's targets
        self.register_buffer("confidence", torch.empty(0, 2 * order), persistent=False)

    @property
    def inputs(self) -> CountInputs | None:
        """What the neural model reads of the counts, with `count_inputs`."""
        return self.neural.ngrams if isinstance(self.neural.ngrams, CountInputs) else None

    @property
    def history(self) -> int:
        return self.counts.history

    @property
    def held(self) -> int:
        return self.neural.held

    def output_layers(self) -> list[nn.Module]:
        return [self.gate, *self.neural.output_layers()]

    def count(self, inputs: np.ndarray, targets: np.ndarray, position: np.ndarray) -> None:
        """Count a training text, as `NGram.fit` does, and store the leave-one-out probabilities of its targets: without
        the line that a target is in, or for a stream without its tenth."""
        counts = self.counts
        levels = count(inputs, targets, position, counts.order, self.vocab_size, self.special.bos)
        counts.smooth(levels)
        if self.inputs is not None:
            self.inputs.left_out.leave_out(levels, inputs, targets, position)
        row = np.cumsum(position == 0) - 1
        fold = row if row[-1] else np.arange(len(targets)) * FOLDS // len(targets)
        uniform = float(counts.uniform.max())
        arrays = leave_one_out(levels, inputs, targets, position, fold, self.vocab_size, uniform, self.special.bos)
        self.likelihood, self.confidence = (torch.from_numpy(array).to(counts.uniform.device) for array in arrays)

    def start(self, prefix: Tensor | None, position: Tensor | None) -> State | None:
        if prefix is not None:
            return {"tokens": prefix}
        if position is None:
            return None
        return {"tokens": position.new_full((len(position), self.history), self.special.bos), "position": position}

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        state: State | None = None,
        *,
        weight: Tensor | None = None,
        want_logits: bool = True,
    ) -> Output:
        """The output, see LanguageModel.forward. After `start` with a position the loss is that under the counts of the
        other folds; the logits are those under all counts, with `<bos>` before the row."""
        valid = None if targets is None else targets != IGNORE
        position = None
        if state is not None and "position" in state:
            position = state["position"][:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        with self._inputs_without(position):
            hidden, new_state = self.neural.hidden(tokens, _neural_part(state), valid)
        logits, context_tokens, new_state = self._continue(tokens, hidden, state, new_state)
        nll_sum = None
        if targets is not None:
            if position is not None:
                new_state["position"] = position[:, -1] + 1
                position = position.clamp_max(len(self.likelihood) - 1)  # padding may reach past the text
                confidence, known = self.confidence[position], self.likelihood[position]
            else:
                confidence = self._confidence(context_tokens, tokens)
                known = self.counts.likelihood(targets.clamp_min(0).reshape(-1), context_tokens).view(targets.shape)
            nll_sum = self._mixed_nll(logits, targets, self.gate(hidden, confidence), known, weight)
        mixed = self._mixed(tokens, hidden, logits, context_tokens) if want_logits else None
        return Output(mixed, nll_sum, None if valid is None else valid.sum(), new_state)

    def read(self, tokens: Tensor, state: State | None = None) -> Output:
        hidden, new_state = self.neural.read_hidden(tokens, _neural_part(state))
        logits, context_tokens, new_state = self._continue(tokens, hidden, state, new_state)
        return Output(self._mixed(tokens, hidden, logits, context_tokens), None, None, new_state)

    def read_last(self, tokens: Tensor) -> tuple[Tensor, State]:
        hidden, neural_state = self.neural.last_hidden(tokens)
        tail = tokens[:, -self.counts.reach() :]
        _, context_tokens, new_state = self._continue(tail, hidden, None, neural_state)
        context_tokens, hidden = context_tokens.view(self.counts.order - 1, *tail.shape)[..., -1], hidden[:, None]
        return self._mixed(tail[:, -1:], hidden, self.neural.head(hidden), context_tokens)[:, -1], new_state

    def token_nll(self, tokens: Tensor, targets: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        context_tokens, new_state = self.counts.context_tokens(tokens[None], state)
        nll = torch.empty(len(tokens), dtype=precise(tokens.device), device=tokens.device)

        def take(index: Tensor, hidden: Tensor) -> None:
            part_context = context_tokens[:, index.flatten()]
            weights = self.gate(hidden, self.counts.confidence(part_context).view(*index.shape, -1)).to(nll.dtype)
            known = self.counts.likelihood(targets[index.flatten()], part_context).view(index.shape)
            nll[index] = -torch.logsumexp(weights + self._both(self.neural.head(hidden), targets[index], known), -1)

        neural_state = self.neural.read_parts(tokens, _neural_part(state), take)
        return nll, new_state | {NEURAL_PREFIX + name: part for name, part in neural_state.items()}

    def stepper(self, state: State) -> Callable[[Tensor], Tensor]:
        """As the base class says: the fast one where it computes the same, and no gradient is wanted."""
        is_known = has_methods_of(self, Mixture, but=("forward",)) and is_exact(self.counts, NGram)
        return MixtureStepper(self, state) if is_known and not needs_gradients(self, state) else super().stepper(state)

    def rows(self) -> Rows:
        is_known = has_methods_of(self, Mixture, but=("forward",)) and is_exact(self.counts, NGram)
        return MixtureRows(self) if is_known else ApartRows(self)

    def window_start(self, position: int) -> int:
        return self.neural.window_start(position)

    def _inputs_without(self, position: Tensor | None) -> AbstractContextManager[None]:
        """Within it the neural model reads counts without the part of the text around each `position` (B, T)."""
        if self.inputs is None or position is None:
            return nullcontext()
        part = self.inputs.left_out.part
        return self.inputs.without(part[position.clamp_max(len(part) - 1)])

    def _continue(
        self, tokens: Tensor, hidden: Tensor, state: State | None, neural_state: State
    ) -> tuple[Tensor, Tensor, State]:
        """The neural model's logits, the context tokens of the counts, and the state of both."""
        context_tokens, new_state = self.counts.context_tokens(tokens, state)
        new_state |= {NEURAL_PREFIX + name: part for name, part in neural_state.items()}
        return self.neural.head(hidden), context_tokens, new_state

    def _confidence(self, context_tokens: Tensor, tokens: Tensor) -> Tensor:
        return self.counts.confidence(context_tokens).view(*tokens.shape, -1)

    def _mixed(self, tokens: Tensor, hidden: Tensor, logits: Tensor, context_tokens: Tensor) -> Tensor:
        """The logarithms of the mixed probabilities, (B, T, V)."""
        counted = self.counts.distribution(context_tokens).view(logits.shape)
        return mix(self.gate(hidden, self._confidence(context_tokens, tokens)), logits, counted)

    def _mixed_nll(
        self, logits: Tensor, targets: Tensor, gates: Tensor, known: Tensor, weight: Tensor | None
    ) -> Tensor:
        """The mixture's loss, in training with the gradient of its mean with the neural model's. `known` (B, T): the
        probabilities of the targets under the counts."""
        each = -torch.logsumexp(gates + self._both(logits, targets, known), -1)
        each = each if weight is None else each * weight
        nll = each.masked_fill(targets == IGNORE, 0.0).sum()
        if not self.training:
            return nll
        blend = (nll + self.neural._nll(logits, targets, **self.neural._extras(weight))) / 2
        return nll.detach() + blend - blend.detach()

    def _both(self, logits: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        """The log-likelihood of targets (B, T) under the neural model and under the counts, (B, T, 2)."""
        likely = F.log_softmax(widened(logits), -1).gather(-1, targets.clamp_min(0)[..., None])
        return torch.cat([likely, known[..., None].clamp_min(FLOOR).log().type_as(likely)], -1)


note(Mixture)


class MixtureStepper:
    """token (B,) -> logarithms of mixed probabilities (B, V) after `state`, which `Mixture.read` gave for the rows so
    far, and all tokens since."""

    def __init__(self, model: Mixture, state: State):
        self.gate, self.head = model.gate, model.neural.head
        self.neural: Any = model.neural.stepper(_neural_part(state) or {})  # with `features`: it has a `hidden`
        self.counts = CountStepper(model.counts, state)

    @without_gradients
    def __call__(self, token: Tensor) -> Tensor:
        hidden = self.neural.features(token)
        counted, confidence = self.counts.look_up(token)
        with for_small_work(len(token)):
            return mix(self.gate(hidden, confidence), self.head(hidden), counted)


class MixtureRows(MixtureStepper):
    """The rows of a mixture, as `makemore.rows.Rows` says."""

    def __init__(self, model: Mixture):
        self.model, self.gate, self.head, self.neural = model, model.gate, model.neural.head, model.neural.rows()

    def step(self, token: Tensor) -> Tensor:
        return self(token)

    def __len__(self) -> int:
        return len(self.neural)

    def add(self, state: State) -> None:
        counted = {name: part for name, part in state.items() if not name.startswith(NEURAL_PREFIX)}
        if not len(self):
            self.counts = CountStepper(self.model.counts, counted)
        else:
            self.counts.state = joined(self.counts.state, counted)
        self.neural.add(_neural_part(state) or {})

    def remove(self, row: int) -> None:
        self.counts.state = without(self.counts.state, row, len(self) - 1)
        self.neural.remove(row)


def mix(weights: Tensor, logits: Tensor, counted: Tensor) -> Tensor:
    """The logarithms of the mixed probabilities, (..., V). `weights` (..., 2): the gate's; `logits` (..., V): the
    neural model's; `counted` (..., V): the probabilities under the counts."""
    counted = counted.clamp_min(FLOOR).log()
    return torch.logaddexp(weights[..., :1] + F.log_softmax(widened(logits), -1), weights[..., 1:] + counted)


def _neural_part(state: State | None) -> State | None:
    """The neural model's part of the mixture's `state`; None where it begins a text."""
    neural = {n.removeprefix(NEURAL_PREFIX): part for n, part in (state or {}).items() if n.startswith(NEURAL_PREFIX)}
    return neural or None
