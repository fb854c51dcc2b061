"""The contract of every language model here: one `forward`, one shape of output, an explicit state.

A family implements `hidden` (tokens to feature vectors, with its state) and `head`. The loss and the incremental
reading of texts of any length are here, once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.batches import IGNORE
from data.tokenizers import Special
from kernels import cross_entropy, linear_cross_entropy
from makemore.config import LayeredConfig, ModelConfig
from makemore.constants import IMPROBABLE
from makemore.exact import is_exact, note
from makemore.hashing import HashedNGrams
from makemore.layers import widened
from makemore.rows import Rows, State, StateRows
from makemore.segments import Take, read_in_order

OURS = Special()  # the ids of the specials in vocabularies made here
PART = 4096  # tokens of a long text that are read at a time
LOGITS_AT_ONCE = 1 << 20  # numbers, where only the likelihood of the targets is computed
SMALL_VOCABULARY = 4096  # up to this size the logits of a whole batch take little memory

note(nn.Linear)


class Output(NamedTuple):
    """The output of `forward`, always these four."""

    logits: Tensor | None  # (B, T, V); None when not wanted
    nll_sum: Tensor | None  # scalar: negative log-likelihood in nats, summed over valid targets; None without targets
    n_tokens: Tensor | None  # scalar int64: valid targets; None without targets
    state: State  # goes into the next call as `state`


class LanguageModel(nn.Module):
    """Base of all families.

    `causal`: whether what it says at a token comes from that one and those before it. Of one that is not, `forward`
    takes rows that are whole, padded with `<pad>` on the right, and has no state.
    `context`: the most tokens that one `forward` takes, state included (nanoGPT: block_size); None when unbounded.
    `logit_cap`: the soft cap of the logits, which `head` applies to its product; None without.
    `fixed`: prefixes of the names of buffers that training does not change.
    `fused`: whether training may compute in ways that are faster and give other last bits than the layers themselves.
    `wte`: the embedding table that `embed` reads; families without one have an `embed`, or a `hidden`, of their own.
    """

    causal: bool = True
    context: int | None = None
    logit_cap: float | None = None
    fixed: tuple[str, ...] = ()
    fused: bool = True
    wte: nn.Embedding

    def __init__(self, vocab_size: int, config: ModelConfig, special: Special = OURS):
        super().__init__()
        self.vocab_size, self.special = vocab_size, special
        self.label_smoothing = getattr(config, "label_smoothing", 0.0)  # models that count have neither
        self.z_loss = getattr(config, "z_loss", 0.0)
        self.ngrams: Any = None  # HashedNGrams, or what takes their place: counts

    @property
    def held(self) -> int:
        """The most tokens of which a stepper holds the state, where the state grows with each (1: it does not grow)."""
        return 1

    @property
    def history(self) -> int:
        """The number of tokens before a window that the model sees in evaluation (0 for neural ones)."""
        return 0

    def hidden(self, tokens: Tensor, state: State | None, valid: Tensor | None) -> tuple[Tensor, State]:
        """The features of each position, (B, T, C), and the state after the last one. `valid` (B, T) is a mask of the
        positions with a target, for batch statistics; None means all. What follows the last of them in a row is
        padding."""
        raise NotImplementedError

    def takes_packed(self, device: torch.device) -> bool:
        """Whether `forward` takes rows laid end to end in one (1, R), with the keyword `starts` of their `Batch`, and
        trains on `device` better with them than with padding."""
        return False

    def embed(self, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
        """The embeddings (B, T, C) of `tokens` (B, T), with those of hashed n-grams, and the state of the latter."""
        x = self.wte(tokens)
        if self.ngrams is None:
            return x, {}
        added, new_state = self.read_ngrams(tokens, state)
        return x + added, new_state

    def read_ngrams(self, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
        """The embeddings of the hashed n-grams that end in each token, (B, T, C), and the state: the last n - 1 tokens,
        at the beginning `<pad>`."""
        n = self.ngrams.n - 1
        history = tokens.new_full((tokens.shape[0], n), self.special.pad) if state is None else state["history"]
        read = torch.cat([history, tokens], 1)
        return self.ngrams(read), {"history": read[:, read.shape[1] - n :]}

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of features (..., C)."""
        raise NotImplementedError

    def head_weights(self) -> tuple[Tensor, Tensor | None] | None:
        """The weight (V, C) and bias (V,) of `head`, if it is a linear map but for the soft cap; else None."""
        head = getattr(self, "lm_head", None)
        return None if head is None else (head.weight, head.bias)

    def output_layers(self) -> list[nn.Module]:
        """The layers between the features and the outputs. Their matrices are no hidden ones, so Muon leaves them to
        AdamW."""
        head = getattr(self, "lm_head", None)
        return [] if head is None else [head]

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        state: State | None = None,
        *,
        weight: Tensor | None = None,
        want_logits: bool = True,
    ) -> Output:
        """Read `tokens` (B, T) int64 after `state` (None: from the beginning).

        `targets` (B, T) int64, IGNORE (-1) where nothing is predicted. `weight` (B, T): what the loss of each target is
        multiplied by in the sum; None: 1. Label smoothing and z-loss apply in training mode only. Raises ValueError for
        more tokens than `context`."""
        valid = None if targets is None else targets != IGNORE
        hidden, state = self.hidden(tokens, state, valid if self.causal else tokens != self.special.pad)
        return self._output(hidden, targets, state, weight, want_logits)

    def _output(
        self, hidden: Tensor, targets: Tensor | None, state: State, weight: Tensor | None, want_logits: bool
    ) -> Output:
        """What `forward` gives after these features and this state."""
        logits = self.head(hidden) if want_logits else None
        if targets is None:
            return Output(logits, None, None, state)
        if logits is None:
            nll_sum = self.nll(hidden, targets, **self._extras(weight))
        else:
            nll_sum = self._nll(logits, targets, **self._extras(weight))
        return Output(logits, nll_sum, (targets != IGNORE).sum(), state)

    def nll(self, hidden: Tensor, targets: Tensor, **options: Any) -> Tensor:
        """The negative log-likelihood of `targets` (...) after features (..., C), in nats: the sum over those that are
        not IGNORE. Of a large vocabulary a chunk of the logits exists at a time, forward and backward. `options`: those
        of `kernels.cross_entropy`; with reduction="none" each, (...)."""
        if self.vocab_size <= SMALL_VOCABULARY or not self._head_is_a_product():
            return self._nll(self.head(hidden), targets, **options)
        weights = self.head_weights()
        assert weights is not None  # `_head_is_a_product`
        matrix, bias = weights
        return linear_cross_entropy(
            hidden, matrix, targets, bias, ignore_index=IGNORE, softcap=self.logit_cap, **options
        )

    def read(self, tokens: Tensor, state: State | None = None) -> Output:
        """The output for any number of tokens, even more than the context: `forward` for decoding."""
        hidden, state = self.read_hidden(tokens, state)
        return Output(self.head(hidden), None, None, state)

    def read_hidden(self, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
        """`hidden` for any number of tokens."""
        return self.hidden(tokens, state, None)

    def read_last(self, tokens: Tensor) -> tuple[Tensor, State]:
        """The logits (B, V) after the last of `tokens` (B, T >= 1), and the state, as `read` computes them. Only the
        tokens that they depend on are read, a part at a time, so that memory does not grow with T."""
        hidden, state = self.last_hidden(tokens)
        return self.head(hidden), state

    def last_hidden(self, tokens: Tensor) -> tuple[Tensor, State]:
        """The features (B, C) of the last of `tokens`, and the state."""
        state: State | None = None
        reach = self.reach()
        for part in tokens[:, -reach if reach else 0 :].split(max(1, PART // len(tokens)), 1):
            hidden, state = self.read_hidden(part, state)
        assert state is not None  # there is a token
        return hidden[:, -1], state

    def token_nll(self, tokens: Tensor, targets: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """The negative log-likelihood (T,) of each of `targets` (T,) after `tokens` (T,), and the state. Computed from
        the logits of `read`, which are never all held."""
        nll = torch.empty(len(tokens), dtype=precise(tokens.device), device=tokens.device)

        def take(index: Tensor, hidden: Tensor) -> None:
            size = max(1, LOGITS_AT_ONCE // self.vocab_size)
            for some, part in zip(index.flatten().split(size), hidden.flatten(0, 1).split(size), strict=True):
                log_p = self.head(part).to(nll.dtype).log_softmax(-1)
                nll[some] = -log_p.gather(-1, targets[some, None])[:, 0]

        return nll, self.read_parts(tokens, state, take)

    def read_parts(self, tokens: Tensor, state: State | None, take: Take) -> State:
        """Read `tokens` (T,) as `read` does, and give `take` the index of some of them (B, T) and their features
        (B, T, C), a part at a time, in any order. Returns the state after all."""
        return read_in_order(self.read_hidden, tokens, state, take, 0, PART // 4)

    def reach(self) -> int | None:
        """The number of last tokens that the logits after them, and the state, depend on; None: all."""
        return None

    def stepper(self, state: State) -> Callable[[Tensor], Tensor]:
        """A function that reads one more token of each row after `state` and all tokens since: token (B,) -> logits
        (B, V). That of a model with `hidden` has the method `features` too, as `Stepper` has."""
        return Stepper(self, state)

    def rows(self) -> Rows:
        """A batch without rows, which texts join and leave between two steps."""
        return StateRows(self)

    def start(self, prefix: Tensor | None, position: Tensor | None) -> State | None:
        """The initial state of rows from somewhere in a text. Models with counts use the tokens before each row,
        `prefix` (B, history), and in training the position of its first target in the training text, `position`
        (B,)."""
        return None

    def window_start(self, position: int) -> int:
        """The first token that the logits of `read` after token `position` depend on, apart from the `history` before
        it."""
        return 0

    def _nll(self, logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
        """`nll` of logits (..., V)."""
        if options.keys() - {"label_smoothing"}:
            return cross_entropy(logits, targets, ignore_index=IGNORE, **options)
        logits = logits.reshape(-1, self.vocab_size)  # torch's own sum: its order gives the last bits
        return F.cross_entropy(widened(logits), targets.reshape(-1), ignore_index=IGNORE, reduction="sum", **options)

    def _head_is_a_product(self) -> bool:
        """Whether `head` does nothing but multiply by `head_weights`: a hook on it is to be heard."""
        head = getattr(self, "lm_head", None)
        return self.head_weights() is not None and (head is None or is_exact(head, nn.Linear))

    def _extras(self, weight: Tensor | None) -> dict[str, Any]:
        """The options of the loss that are in use."""
        found: dict[str, Any] = {} if weight is None else {"weights": weight}
        if self.training and self.label_smoothing:
            found["label_smoothing"] = self.label_smoothing
        if self.training and self.z_loss:
            found["z_loss"] = self.z_loss
        return found


def keep_bits(model: nn.Module) -> None:
    """Let every model in `model` train as its layers are written, to the last bit (see `LanguageModel.fused`)."""
    for module in model.modules():
        if getattr(module, "fused", False):
            module.fused = False  # type: ignore[assignment]


def precise(device: torch.device) -> torch.dtype:
    """The dtype of log-likelihoods: float64, or float32 on Apple's GPUs, which lack it."""
    return torch.float32 if device.type == "mps" else torch.float64


class Stepper:
    """`LanguageModel.read`, one token of each row at a time."""

    def __init__(self, model: LanguageModel, state: State):
        self.model, self.state = model, state

    def __call__(self, token: Tensor) -> Tensor:
        out = self.model.read(token[:, None], self._state())
        self.state = out.state
        assert out.logits is not None  # `read` gives them always
        return out.logits[:, -1]

    def features(self, token: Tensor) -> Tensor:
        """The features (B, C) that the head reads, instead of its logits; good until the next token."""
        hidden, self.state = self.model.read_hidden(token[:, None], self._state())
        return hidden[:, -1]

    def _state(self) -> State:
        """The state; copied where a step in inference mode left what a gradient cannot pass."""
        if not torch.is_grad_enabled():
            return self.state
        return {name: part.clone() if part.is_inference() else part for name, part in self.state.items()}


def make_ngrams(config: LayeredConfig) -> HashedNGrams | None:
    """The hashed embeddings of n-grams up to `hash_ngrams` tokens, for `embed`; None for 0. ValueError for 1."""
    if config.hash_ngrams == 1:
        raise ValueError("hash_ngrams 1 is what the embedding of a token is already; 2 or more, or 0 for none")
    return HashedNGrams(config.hash_ngrams, config.hash_rows, config.n_embd) if config.hash_ngrams else None


def make_head(width: int, vocab_size: int, special: Special, bias: bool = True) -> nn.Linear:
    """The last layer. With a bias, the specials that are never targets start with a low one, so that the first steps
    are not spent on learning it."""
    head = nn.Linear(width, vocab_size, bias)
    if bias:
        with torch.no_grad():
            head.bias.zero_()
            head.bias[special.never_predicted] = IMPROBABLE
    return head


def count_parameters(model: nn.Module) -> int:
    """The number of parameters, or of stored counts of a model that counts."""
    counted = getattr(model, "n_counts", None)
    return counted if counted is not None else sum(p.numel() for p in model.parameters())
