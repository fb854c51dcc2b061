"""A neural model and Kneser-Ney counts, mixed by a gate that learns when to trust which.

The probability of a token is g times that under the counts plus 1 - g times that under the neural model: a mixture of
experts (Jacobs et al., "Adaptive Mixtures of Local Experts", 1991) of which one was counted. g follows from the neural
model's features and from how often the counts have seen the last tokens. In training the counts leave out the part of
the text that a target is in, or the gate would learn to trust counts that contain the answer.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.batches import IGNORE
from makemore.base import LanguageModel, Output, State, precise
from makemore.counts.folds import elsewhere
from makemore.counts.ngram import NGram, count
from makemore.counts.ngram_stepper import FLOOR, CountStepper
from makemore.exact import has_methods_of, is_exact, needs_gradients, note
from makemore.small_work import for_small_work, without_gradients

FOLDS = 10  # of a stream: what is left out is as long as a validation text, and like it no neighbour of what is counted
GATE_WIDTH = 64
# In the first steps the counts know more everywhere. A gate that follows too fast and too far shuts for good.
MOST, SLOWNESS = 4.0, 0.1  # of the logarithm of g's odds
OF_NEURAL = "neural."  # how the neural model's part of the state is called


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
        x = SLOWNESS * _wide(self.c_proj(F.gelu(self.c_fc(x))))
        odds = MOST * torch.tanh(x / MOST)
        return F.logsigmoid(torch.cat([-odds, odds], -1))


class Mixture(LanguageModel):
    """tokens (B, T) -> logarithms of mixed probabilities (B, T, V). The state is the neural model's and the last
    tokens, and in training where in the text the next target stands.

    The gradient is that of the mean of the mixture's loss and the neural model's own: by itself the mixture would
    leave all to the counts, which know more at first, and the neural model would never learn. The loss is the
    mixture's."""

    fixed = ("counts.",)

    def __init__(self, neural: LanguageModel, order: int):
        super().__init__(neural.vocab_size, special=neural.special)
        head = neural.head_weights()
        width = neural.vocab_size if head is None else head[0].shape[1]
        self.neural, self.context = neural, neural.context
        self.counts = NGram(neural.vocab_size, order=order, special=neural.special)
        self.gate = Gate(width, order)
        self.register_buffer("likelihood", torch.empty(0), persistent=False)  # (N,) of the training text's targets
        self.register_buffer("confidence", torch.empty(0, 2 * order), persistent=False)

    @property
    def history(self) -> int:
        return self.counts.history

    @property
    def held(self) -> int:
        return self.neural.held

    def output_layers(self) -> list[nn.Module]:
        return [self.gate, *self.neural.output_layers()]

    def count(self, inputs: np.ndarray, targets: np.ndarray, position: np.ndarray) -> None:
        """Count a training text, as `NGram.fit` does, and note what its other parts say of each target: for lines all
        others, for a stream the other tenths."""
        counts = self.counts
        levels = count(inputs, targets, position, counts.order, self.vocab_size, self.special.bos)
        counts.smooth(levels)
        row = np.cumsum(position == 0) - 1
        fold = row if row[-1] else np.arange(len(targets)) * FOLDS // len(targets)
        base = float(counts.base.max())
        found = elsewhere(levels, inputs, targets, position, fold, self.vocab_size, base, self.special.bos)
        self.likelihood, self.confidence = (torch.from_numpy(part).to(counts.base.device) for part in found)

    def start(self, before: Tensor | None, place: Tensor | None) -> State | None:
        if before is not None:
            return {"tokens": before}
        if place is None:
            return None
        return {"tokens": place.new_full((len(place), self.history), self.special.bos), "place": place}

    def forward(
        self, tokens: Tensor, targets: Tensor | None = None, state: State | None = None, *, want_logits: bool = True
    ) -> Output:
        """As the base class says. After `start` with a place the loss is that of the counts that leave its part of the
        text out; logits are of all counts, whatever stands before the row unknown."""
        valid = None if targets is None else targets != IGNORE
        hidden, after = self.neural.hidden(tokens, _neural_part(state), valid)
        logits, backs, after = self._continue(tokens, hidden, state, after)
        nll_sum = None
        if targets is not None:
            if state is not None and "place" in state:
                at = state["place"][:, None] + torch.arange(tokens.shape[1], device=tokens.device)
                after["place"] = at[:, -1] + 1
                at = at.clamp_max(len(self.likelihood) - 1)  # padding may reach past the text
                confidence, known = self.confidence[at], self.likelihood[at]
            else:
                confidence = self._confidence(backs, tokens)
                known = self.counts.likelihood(targets.clamp_min(0).reshape(-1), backs).view(targets.shape)
            nll_sum = self._mixed_nll(logits, targets, self.gate(hidden, confidence), known)
        mixed = self._mixed(tokens, hidden, logits, backs) if want_logits else None
        return Output(mixed, nll_sum, None if valid is None else valid.sum(), after)

    def read(self, tokens: Tensor, state: State | None = None) -> Output:
        hidden, after = self.neural.read_hidden(tokens, _neural_part(state))
        logits, backs, after = self._continue(tokens, hidden, state, after)
        return Output(self._mixed(tokens, hidden, logits, backs), None, None, after)

    def read_last(self, tokens: Tensor) -> tuple[Tensor, State]:
        hidden, neural = self.neural.last_hidden(tokens)
        tail = tokens[:, -self.counts.reach() :]
        _, backs, after = self._continue(tail, hidden, None, neural)
        backs, hidden = backs.view(self.counts.order - 1, *tail.shape)[..., -1], hidden[:, None]
        return self._mixed(tail[:, -1:], hidden, self.neural.head(hidden), backs)[:, -1], after

    def token_nll(self, tokens: Tensor, targets: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        backs, after = self.counts.contexts(tokens[None], state)
        nll = torch.empty(len(tokens), dtype=precise(tokens.device), device=tokens.device)

        def take(index: Tensor, hidden: Tensor) -> None:
            some = backs[:, index.flatten()]
            weights = self.gate(hidden, self.counts.confidence(some).view(*index.shape, -1)).to(nll.dtype)
            known = self.counts.likelihood(targets[index.flatten()], some).view(index.shape)
            nll[index] = -torch.logsumexp(weights + self._both(self.neural.head(hidden), targets[index], known), -1)

        neural = self.neural.read_parts(tokens, _neural_part(state), take)
        return nll, after | {OF_NEURAL + name: part for name, part in neural.items()}

    def stepper(self, state: State) -> Callable[[Tensor], Tensor]:
        """As the base class says: the fast one where it computes the same, and no gradient is wanted."""
        is_known = has_methods_of(self, Mixture, but=("forward",)) and is_exact(self.counts, NGram)
        return MixtureStepper(self, state) if is_known and not needs_gradients(self, state) else super().stepper(state)

    def window_start(self, position: int) -> int:
        return self.neural.window_start(position)

    def _continue(
        self, tokens: Tensor, hidden: Tensor, state: State | None, neural: State
    ) -> tuple[Tensor, Tensor, State]:
        """The neural model's logits, the contexts that the counts go by, and the state after both."""
        backs, after = self.counts.contexts(tokens, state)
        return self.neural.head(hidden), backs, after | {OF_NEURAL + name: part for name, part in neural.items()}

    def _confidence(self, backs: Tensor, tokens: Tensor) -> Tensor:
        return self.counts.confidence(backs).view(*tokens.shape, -1)

    def _mixed(self, tokens: Tensor, hidden: Tensor, logits: Tensor, backs: Tensor) -> Tensor:
        """Logarithms of the mixed probabilities, (B, T, V)."""
        counted = self.counts.distribution(backs).view(logits.shape)
        return mix(self.gate(hidden, self._confidence(backs, tokens)), logits, counted)

    def _mixed_nll(self, logits: Tensor, targets: Tensor, weights: Tensor, known: Tensor) -> Tensor:
        """The mixture's loss, with the gradient that training wants. `known` (B, T): the targets' probability under the
        counts."""
        nll = (
            -torch.logsumexp(weights + self._both(logits, targets, known), -1).masked_fill(targets == IGNORE, 0.0).sum()
        )
        if not self.training:
            return nll
        blend = (nll + self.neural._nll(logits, targets)) / 2
        return nll.detach() + blend - blend.detach()

    def _both(self, logits: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        """The log-likelihood of targets (B, T) under the neural model and under the counts, (B, T, 2)."""
        likely = F.log_softmax(_wide(logits), -1).gather(-1, targets.clamp_min(0)[..., None])
        return torch.cat([likely, known[..., None].clamp_min(FLOOR).log().type_as(likely)], -1)


note(Mixture)


class MixtureStepper:
    """token (B,) -> logarithms of mixed probabilities (B, V) after `state`, which `Mixture.read` gave for the rows so
    far, and all tokens since."""

    def __init__(self, model: Mixture, state: State):
        self.gate, self.head = model.gate, model.neural.head
        self.neural = model.neural.stepper(_neural_part(state))
        self.counts = CountStepper(model.counts, state)

    @without_gradients
    def __call__(self, token: Tensor) -> Tensor:
        hidden = self.neural.features(token)
        counted, confidence = self.counts.look_up(token)
        with for_small_work(len(token)):
            return mix(self.gate(hidden, confidence), self.head(hidden), counted)


def mix(weights: Tensor, logits: Tensor, counted: Tensor) -> Tensor:
    """Logarithms of the mixed probabilities (..., V): `weights` (..., 2) as the gate gives them, the neural model's
    `logits` and the probabilities `counted` (..., V)."""
    counted = counted.clamp_min(FLOOR).log()
    return torch.logaddexp(weights[..., :1] + F.log_softmax(_wide(logits), -1), weights[..., 1:] + counted)


def _neural_part(state: State | None) -> State | None:
    """None where the neural model begins afresh."""
    found = {n.removeprefix(OF_NEURAL): part for n, part in (state or {}).items() if n.startswith(OF_NEURAL)}
    return found or None


def _wide(logits: Tensor) -> Tensor:
    """At least float32."""
    return logits if logits.dtype == torch.float64 else logits.float()
