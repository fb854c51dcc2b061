"""N-gram: interpolated modified Kneser-Ney, counted in one pass with NumPy. Nothing is trained by gradient.

Chen & Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling", 1998, section 3.2. The probability
of a token is a discounted count after the longest context seen, plus what the discount freed times the probability
after a context one shorter, down to uniform. Shorter contexts count in how many different places a token occurred
rather than how often.

Contexts form a tree that grows backwards: the node of depth k stands for the last k tokens, its parent for the last
k - 1, so one walk from the root finds every context there is, and keys of any depth fit into 64 bits whatever the
vocabulary: node * V + token.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.batches import IGNORE
from data.tokenizers import Special
from makemore.base import OURS, LanguageModel, Output, State
from makemore.counts.ngram_stepper import FLOOR, CountStepper
from makemore.exact import is_exact, note

MAX_ORDER = 8  # what choosing the order goes up to


@dataclass
class Level:
    """All counts of one context length. Grams are sorted by (context, token)."""

    contexts: np.ndarray  # (contexts,) int64: parent context * V + the token one further back, sorted
    grams: np.ndarray  # (grams,) int64: context * V + token, sorted
    counts: np.ndarray  # (grams,) how often
    continuations: np.ndarray  # (grams,) after how many different tokens further back


def backwards(inputs: np.ndarray, position: np.ndarray, k: int, bos: int = OURS.bos) -> np.ndarray:
    """The token k >= 1 places before each target, (N,): `inputs` (N,) holds those one place before; before a row, where
    `position` (N,) counts from 0, stands `<bos>` as often as needed."""
    return np.where(position >= k - 1, np.roll(inputs, k - 1), bos).astype(np.int64)


def count(
    inputs: np.ndarray, targets: np.ndarray, position: np.ndarray, order: int, vocab_size: int, bos: int = OURS.bos
) -> list[Level]:
    """Count every n-gram up to `order` that ends in one of `targets` (N,)."""
    targets = targets.astype(np.int64)
    context = np.zeros(len(targets), np.int64)
    levels: list[Level] = []
    for k in range(order):
        contexts = np.zeros(1, np.int64)
        if k:
            keys = context * vocab_size + backwards(inputs, position, k)
            contexts, context = np.unique(keys, return_inverse=True)
        grams, counts = np.unique(context * vocab_size + targets, return_counts=True)
        levels.append(Level(contexts, grams, counts, counts))
        if k:
            shorter = contexts[grams // vocab_size] // vocab_size * vocab_size + grams % vocab_size
            places = np.searchsorted(levels[k - 1].grams, shorter)
            levels[k - 1].continuations = np.bincount(places, minlength=len(levels[k - 1].grams))
    return levels


def discounts(counts: np.ndarray) -> np.ndarray:
    """What to take from counts of 0, 1, 2 and at least 3, shape (4,): Chen & Goodman's closed form."""
    n1, n2, n3, n4 = (np.bincount(np.minimum(counts, 5), minlength=6)[1:5]).astype(float)
    if not (n1 and n2 and n3):
        return np.array([0.0, 0.5, 0.5, 0.5])  # too little text to estimate them
    y = n1 / (n1 + 2 * n2)
    found = [0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    return np.clip(found, 0.0, [0.0, 0.99, 1.99, 2.99])


class NGram(LanguageModel):
    """tokens (B, T) -> log-probabilities (B, T, V) under Kneser-Ney. The state is the last `order - 2` tokens.

    Tables of context length k, as buffers: `contexts_k`, `grams_k` (the sorted keys of Level), `share_k` (each gram's
    discounted share of its context), `freed_k` (each context's mass for the shorter one), `total_k` (each context's
    counts)."""

    def __init__(self, vocab_size: int, *, order: int | None, special: Special = OURS):
        super().__init__(vocab_size, special=special)
        self.order = order
        self.register_buffer("base", torch.zeros(vocab_size))
        self._predictable = [i for i in range(vocab_size) if i not in special.never_predicted]
        self.base[self._predictable] = 1 / len(self._predictable)

    @property
    def history(self) -> int:
        """Tokens before a window that its first prediction depends on."""
        return max(0, self.order - 2)

    @property
    def n_counts(self) -> int:
        return sum(len(getattr(self, f"grams_{k}")) for k in range(self.order))

    def fit(self, inputs: np.ndarray, targets: np.ndarray, position: np.ndarray) -> None:
        """Count `targets` (N,), which follow `inputs` (N,), each at its `position` (N,) in its row. Without an order,
        choose it first: count nine tenths, take the order under which the last tenth is likeliest, count everything."""
        if self.order is None:
            self.order = self._choose_order(inputs, targets, position)
        self.smooth(count(inputs, targets, position, self.order, self.vocab_size, self.special.bos))

    def _choose_order(self, inputs: np.ndarray, targets: np.ndarray, position: np.ndarray) -> int:
        rows = np.flatnonzero(position == 0)
        cut = int(len(targets) * 0.9)
        if not cut:
            return 1
        if len(rows) > 1:  # whole lines only
            cut = int(rows[np.searchsorted(rows, cut, "right") - 1]) or int(rows[1])
        levels = count(inputs[:cut], targets[:cut], position[:cut], MAX_ORDER, self.vocab_size, self.special.bos)
        held_out = torch.from_numpy(targets[cut:].astype(np.int64))
        backs = torch.from_numpy(np.stack([backwards(inputs, position, k)[cut:] for k in range(1, MAX_ORDER)]))
        losses = {}
        for order in range(2, MAX_ORDER + 1):
            self.order = order
            self.smooth(levels[:order])
            losses[order] = -self.likelihood(held_out, backs).log().sum().item()
        return min(losses, key=losses.get)

    def smooth(self, levels: list[Level]) -> None:
        """Fill the tables from the counts; the longest contexts keep their raw ones."""
        for name in [name for name in self._buffers if name != "base"]:  # those of an order tried before
            del self._buffers[name]
        for k, level in enumerate(levels):
            counts = level.counts if k == len(levels) - 1 else level.continuations
            context = level.grams // self.vocab_size
            total = np.bincount(context, counts, len(level.contexts))
            taken = discounts(counts)[np.minimum(counts, 3)]
            tables = {
                "contexts": level.contexts,
                "grams": level.grams,
                "share": ((counts - taken) / total[context]).astype(np.float32),
                "freed": (np.bincount(context, taken, len(level.contexts)) / total).astype(np.float32),
                "total": total.astype(np.float32),
            }
            for name, table in tables.items():
                self.register_buffer(f"{name}_{k}", torch.from_numpy(table).to(self.base.device))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest) -> None:
        # The order, where it was chosen, and the tables' sizes are only known from the checkpoint.
        tables = [
            name
            for name in state_dict
            if re.fullmatch(r"(contexts|grams|share|freed|total)_\d+", name.removeprefix(prefix))
        ]
        self.order = sum("contexts_" in name for name in tables) or self.order
        for name in tables:
            self.register_buffer(name.removeprefix(prefix), torch.empty_like(state_dict[name], device=self.base.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(
        self, tokens: Tensor, targets: Tensor | None = None, state: State | None = None, *, want_logits: bool = True
    ) -> Output:
        """As the base class says. The loss alone needs no distribution over the vocabulary, so it looks up only the
        targets' own counts."""
        backs, after = self.contexts(tokens, state)
        logits = nll_sum = n_tokens = None
        if want_logits:
            logits = self.distribution(backs).clamp_min(FLOOR).log().view(*tokens.shape, -1)
        if targets is not None:
            valid = targets.reshape(-1) != IGNORE
            likelihood = self.likelihood(targets.reshape(-1)[valid], backs[:, valid])
            nll_sum, n_tokens = -likelihood.clamp_min(FLOOR).log().sum(), valid.sum()
        return Output(logits, nll_sum, n_tokens, after)

    def read(self, tokens: Tensor, state: State | None = None) -> Output:
        return self(tokens, state=state)

    def read_last(self, tokens: Tensor) -> tuple[Tensor, State]:
        out = self.read(tokens[:, -self.reach() :])
        return out.logits[:, -1], out.state

    def token_nll(self, tokens: Tensor, targets: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        backs, state = self.contexts(tokens[None], state)
        return -self.likelihood(targets, backs).clamp_min(FLOOR).log(), state

    def reach(self) -> int:
        return max(1, self.order - 1)

    def stepper(self, state: State) -> Callable[[Tensor], Tensor]:
        return CountStepper(self, state) if is_exact(self, NGram) else super().stepper(state)

    def start(self, before: Tensor | None, place: Tensor | None) -> State | None:
        return None if before is None else {"tokens": before}

    def contexts(self, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
        """What the next token is predicted from, after each of `tokens` (B, T): (order - 1, B * T), row k holding the
        tokens k places before the last; and the state after all."""
        T = tokens.shape[1]
        before = tokens.new_full((len(tokens), self.history), self.special.bos) if state is None else state["tokens"]
        read = torch.cat([before, tokens], 1)  # (B, history + T)
        backs = [read[:, self.history - k : self.history - k + T].reshape(-1) for k in range(self.order - 1)]
        return torch.stack(backs) if backs else tokens.new_empty(0, tokens.numel()), {"tokens": read[:, T:]}

    def _walk(self, backs: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """The tree walk: for each context length, the rows that have such a context and its number."""
        alive = torch.arange(backs.shape[1], device=self.base.device)
        node = torch.zeros_like(alive)
        for k in range(self.order):
            if k:
                node, found = _find(getattr(self, f"contexts_{k}"), node * self.vocab_size + backs[k - 1][alive])
                node, alive = node[found], alive[found]
            yield k, alive, node

    def likelihood(self, targets: Tensor, backs: Tensor) -> Tensor:
        """Probability of each of `targets` (N,) after `contexts`' `backs` (order - 1, N), float64."""
        p = self.base[targets].double()
        for k, alive, node in self._walk(backs):
            place, seen = _find(getattr(self, f"grams_{k}"), node * self.vocab_size + targets[alive])
            share = torch.where(seen, getattr(self, f"share_{k}")[place], 0.0)
            p[alive] = share + getattr(self, f"freed_{k}")[node] * p[alive]
        return p

    def confidence(self, backs: Tensor) -> Tensor:
        """How much each context length knows, (N, 2 * order): for each the logarithm of 1 + its counts and the mass it
        leaves to the shorter one; 0 and 1 where the context was never seen."""
        found = self.freed_0.new_zeros(self.order, 2, backs.shape[1])
        found[:, 1] = 1
        for k, alive, node in self._walk(backs):
            found[k, 0, alive] = getattr(self, f"total_{k}")[node].log1p()
            found[k, 1, alive] = getattr(self, f"freed_{k}")[node]
        return found.flatten(0, 1).T

    def distribution(self, backs: Tensor) -> Tensor:
        """Probability of every token after each context, (N, V)."""
        p = self.base.expand(backs.shape[1], -1).clone()
        for k, alive, node in self._walk(backs):
            grams = getattr(self, f"grams_{k}")
            first = torch.searchsorted(grams, node * self.vocab_size)
            size = torch.searchsorted(grams, (node + 1) * self.vocab_size) - first
            row = torch.repeat_interleave(torch.arange(len(node), device=p.device), size)
            place = (
                torch.arange(len(row), device=p.device)
                - torch.repeat_interleave(size.cumsum(0) - size, size)
                + first[row]
            )
            here = getattr(self, f"freed_{k}")[node, None] * p[alive]
            here[row, grams[place] % self.vocab_size] += getattr(self, f"share_{k}")[place]
            p[alive] = here
        return p


note(NGram)


def _find(keys: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Where each of `wanted` stands in the sorted `keys`, and whether it does."""
    place = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
    return place, keys[place] == wanted
