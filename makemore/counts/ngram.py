"""N-gram: interpolated modified Kneser-Ney, counted in one pass with NumPy. Nothing is trained by gradient.

Chen & Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling", 1998, section 3.2. The probability
of a token is its discounted relative frequency after the longest known context, plus the backoff weight of that context
times the probability after the context one shorter, and so on down to the uniform distribution. For shorter contexts
the counts are continuation counts: after how many different longer contexts a token occurred, not how often.

How the tree of contexts is laid out: see `makemore/counts/levels.py`.
"""

import re
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from data.batches import IGNORE
from data.tokenizers import Special
from makemore.base import OURS, LanguageModel, Output, State
from makemore.config import NGramConfig
from makemore.counts.levels import Level, context_token, count, held_out, smoothed
from makemore.counts.ngram_stepper import FLOOR, CountStepper
from makemore.exact import is_exact, note

DENSE = 1 << 22  # numbers, up to which the distributions of all contexts of a length are written out
MAX_ORDER = 8  # the highest order that is tried when the order is chosen
# The names of the buffers in checkpoints, since format 1, where they differ from those here.
STORED_NAMES = {"uniform": "base", "discounted": "share", "backoff_weight": "freed"}


class NGram(LanguageModel):
    """tokens (B, T) -> log-probabilities (B, T, V) under Kneser-Ney. The state is the last `order - 2` tokens.

    The buffers: `uniform` (V,), the distribution below all contexts, and for context length k `contexts_k` and
    `grams_k` (the sorted keys of Level), `discounted_k` (each gram's discounted relative frequency), `backoff_weight_k`
    (each context's weight of the shorter one) and `total_k` (each context's counts)."""

    uniform: Tensor
    backoff_weight_0: Tensor

    def __init__(self, vocab_size: int, config: NGramConfig, special: Special = OURS):
        super().__init__(vocab_size, config, special)
        self.order = config.order or 0  # 0: `fit` chooses it
        self._dense: list[Tensor] | None = None  # see `_dense_levels`
        self.register_buffer("uniform", torch.zeros(vocab_size))
        self._predictable = [i for i in range(vocab_size) if i not in special.never_predicted]
        self.uniform[self._predictable] = 1 / len(self._predictable)

    @property
    def history(self) -> int:
        """The number of tokens before a window that its first prediction depends on."""
        return max(0, self.order - 2)

    @property
    def n_counts(self) -> int:
        return sum(len(getattr(self, f"grams_{k}")) for k in range(self.order))

    def fit(self, inputs: np.ndarray, targets: np.ndarray, position: np.ndarray) -> None:
        """Count `targets` (N,), which follow `inputs` (N,), each at its `position` (N,) in its row. Without an order,
        choose the one under which a tenth is likeliest after counting the rest, and count everything."""
        if not self.order:
            self.order = self._choose_order(inputs, targets, position)
        self.smooth(count(inputs, targets, position, self.order, self.vocab_size, self.special.bos))

    def _choose_order(self, inputs: np.ndarray, targets: np.ndarray, position: np.ndarray) -> int:
        held = held_out(position)
        if held.all():
            return 1
        known, bos = ~held, self.special.bos
        levels = count(inputs[known], targets[known], position[known], MAX_ORDER, self.vocab_size, bos)
        wanted = torch.from_numpy(targets[held].astype(np.int64))
        context_tokens = np.stack([context_token(inputs, position, k)[held] for k in range(1, MAX_ORDER)])
        losses = {}
        for order in range(2, MAX_ORDER + 1):
            self.order = order
            self.smooth(levels[:order])
            losses[order] = -self.likelihood(wanted, torch.from_numpy(context_tokens)).log().sum().item()
        return min(losses, key=losses.__getitem__)

    def smooth(self, levels: list[Level]) -> None:
        """Fill the buffers from the counts."""
        for name in [name for name in self._buffers if name != "uniform"]:  # those of an order tried before
            del self._buffers[name]
        self._dense = None
        for k, table in enumerate(smoothed(levels, self.vocab_size)):
            for name, array in table.items():
                self.register_buffer(f"{name}_{k}", torch.from_numpy(array).to(self.uniform.device))

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self._buffers:
            destination[prefix + _renamed(name, STORED_NAMES)] = destination.pop(prefix + name)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest) -> None:
        names = {stored: name for name, stored in STORED_NAMES.items()}
        own = {_renamed(n.removeprefix(prefix), names): part for n, part in state_dict.items() if n.startswith(prefix)}
        # The order, where it was chosen, and the sizes of the buffers are known only from the checkpoint.
        tables = [n for n in own if re.fullmatch(r"(contexts|grams|discounted|backoff_weight|total)_\d+", n)]
        self.order = sum("contexts_" in name for name in tables) or self.order
        for name in tables:
            self.register_buffer(name, torch.empty_like(own[name], device=self.uniform.device))
        self._dense = None
        super()._load_from_state_dict({prefix + name: part for name, part in own.items()}, prefix, *rest)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        state: State | None = None,
        *,
        weight: Tensor | None = None,
        want_logits: bool = True,
    ) -> Output:
        """The output, see LanguageModel.forward. Without logits only the counts of the targets are looked up."""
        context_tokens, state = self.context_tokens(tokens, state)
        logits = nll_sum = n_tokens = None
        if want_logits:
            logits = self.distribution(context_tokens).clamp_min(FLOOR).log().view(*tokens.shape, -1)
        if targets is not None:
            valid = targets.reshape(-1) != IGNORE
            likelihood = self.likelihood(targets.reshape(-1)[valid], context_tokens[:, valid])
            log_p = likelihood.clamp_min(FLOOR).log()
            log_p = log_p if weight is None else log_p * weight.reshape(-1)[valid]
            nll_sum, n_tokens = -log_p.sum(), valid.sum()
        return Output(logits, nll_sum, n_tokens, state)

    def read(self, tokens: Tensor, state: State | None = None) -> Output:
        return self(tokens, state=state)

    def read_last(self, tokens: Tensor) -> tuple[Tensor, State]:
        out = self.read(tokens[:, -self.reach() :])
        assert out.logits is not None
        return out.logits[:, -1], out.state

    def token_nll(self, tokens: Tensor, targets: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        context_tokens, state = self.context_tokens(tokens[None], state)
        return -self.likelihood(targets, context_tokens).clamp_min(FLOOR).log(), state

    def reach(self) -> int:
        return max(1, self.order - 1)

    def stepper(self, state: State) -> Callable[[Tensor], Tensor]:
        return CountStepper(self, state) if is_exact(self, NGram) else super().stepper(state)

    def start(self, prefix: Tensor | None, position: Tensor | None) -> State | None:
        return None if prefix is None else {"tokens": prefix}

    def context_tokens(self, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
        """The tokens from which the next one is predicted, after each of `tokens` (B, T): (order - 1, B * T), of which
        row k has the tokens k positions before the last one; and the state after all."""
        T = tokens.shape[1]
        prefix = tokens.new_full((len(tokens), self.history), self.special.bos) if state is None else state["tokens"]
        read = torch.cat([prefix, tokens], 1)  # (B, history + T)
        rows = [read[:, self.history - k : self.history - k + T].reshape(-1) for k in range(self.order - 1)]
        return torch.stack(rows) if rows else tokens.new_empty(0, tokens.numel()), {"tokens": read[:, T:]}

    def _walk(self, context_tokens: Tensor, root: Tensor | None = None) -> Iterator[tuple[int, Tensor, Tensor]]:
        """The walk through the tree from its `root`, or of several trees from the root (N,) of each column: for each
        context length k, the columns of `context_tokens` (order - 1, N) whose context of that length is known, and its
        node."""
        alive = torch.arange(context_tokens.shape[1], device=self.uniform.device)
        node = torch.zeros_like(alive) if root is None else root
        for k in range(self.order):
            if k:
                keys = node * self.vocab_size + context_tokens[k - 1][alive]
                node, found = _search(getattr(self, f"contexts_{k}"), keys)
                node, alive = node[found], alive[found]
            yield k, alive, node

    def likelihood(self, targets: Tensor, context_tokens: Tensor) -> Tensor:
        """The probability of each of `targets` (N,) after `context_tokens` (order - 1, N): (N,) float64."""
        p = self.uniform[targets].double()
        for k, alive, node in self._walk(context_tokens):
            index, found = _search(getattr(self, f"grams_{k}"), node * self.vocab_size + targets[alive])
            discounted = torch.where(found, getattr(self, f"discounted_{k}")[index], 0.0)
            p[alive] = discounted + getattr(self, f"backoff_weight_{k}")[node] * p[alive]
        return p

    def confidence(self, context_tokens: Tensor) -> Tensor:
        """The evidence for the predictions, (N, 2 * order): for each context length the logarithm of 1 + the counts of
        the context, and its backoff weight; 0 and 1 for an unknown context."""
        confidence = self.backoff_weight_0.new_zeros(self.order, 2, context_tokens.shape[1])
        confidence[:, 1] = 1
        for k, alive, node in self._walk(context_tokens):
            confidence[k, 0, alive] = getattr(self, f"total_{k}")[node].log1p()
            confidence[k, 1, alive] = getattr(self, f"backoff_weight_{k}")[node]
        return confidence.flatten(0, 1).T

    def distribution(self, context_tokens: Tensor, root: Tensor | None = None) -> Tensor:
        """The probability of every token after each context, (N, V). `root` (N,): see `_walk`."""
        dense, N = self._dense_levels(), context_tokens.shape[1]
        p = self.uniform.expand(N, -1).clone()
        for k, alive, node in self._walk(context_tokens, root):
            if k < len(dense):
                p = dense[k][node] if len(alive) == N else p.index_copy_(0, alive, dense[k][node])
                continue
            grams = getattr(self, f"grams_{k}")
            first = torch.searchsorted(grams, node * self.vocab_size)
            size = torch.searchsorted(grams, (node + 1) * self.vocab_size) - first
            row = torch.repeat_interleave(alive, size)
            index = torch.arange(len(row), device=p.device)
            index = index - torch.repeat_interleave(size.cumsum(0) - size - first, size)
            p *= p.new_ones(N).index_copy_(0, alive, getattr(self, f"backoff_weight_{k}")[node])[:, None]
            p.view(-1)[row * self.vocab_size + grams[index] % self.vocab_size] += getattr(self, f"discounted_{k}")[
                index
            ]
        return p

    def _dense_levels(self) -> list[Tensor]:
        """The distributions (contexts, V) of all contexts of the shortest lengths, as many as are small when written
        out: most known tokens are in them. Made at the first use."""
        if self._dense is None or not _alike(self._dense[0], self.uniform):
            self._dense, shorter = [], self.uniform[None]
            for k in range(self.order):
                contexts = getattr(self, f"contexts_{k}")
                if k and len(contexts) * self.vocab_size > DENSE:
                    break
                parent = contexts // self.vocab_size if k else torch.zeros_like(contexts)
                shorter = getattr(self, f"backoff_weight_{k}")[:, None] * shorter[parent]
                shorter.view(-1)[getattr(self, f"grams_{k}")] += getattr(self, f"discounted_{k}")
                self._dense.append(shorter)
        return self._dense


note(NGram)


def _search(keys: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """The index of each of `queries` in the sorted `keys`, and whether it is there."""
    index = torch.searchsorted(keys, queries).clamp_max(len(keys) - 1)
    return index, keys[index] == queries


def _alike(a: Tensor, b: Tensor) -> bool:
    return (a.device, a.dtype) == (b.device, b.dtype)


def _renamed(name: str, names: dict[str, str]) -> str:
    """The name of a buffer, maybe with a context length as in 'grams_3', by another name for its table."""
    match = re.fullmatch(r"(.*?)(_\d+)?", name, re.DOTALL)
    assert match is not None  # whatever the name
    table, length = match.groups("")
    return names.get(table, table) + length
