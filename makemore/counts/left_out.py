"""Counts of a text ten times, each time without one part of it: what a model may read of a text that it trains on.

Nothing is counted again: the n-grams of a part are subtracted. The ten trees lie in the same tables, each below a root
of its own.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from data.tokenizers import Special
from makemore.config import NGramConfig
from makemore.counts.folds import gram_indices
from makemore.counts.levels import Level, continuations, smoothed
from makemore.counts.ngram import NGram

PARTS = 10


class LeftOutCounts(NGram):
    """An `NGram` whose tables are not stored, with a root for each part of a text: below it are the counts of all other
    parts. `part` (N,) uint8: that of each target of the text."""

    part: Tensor

    def __init__(self, vocab_size: int, config: NGramConfig, special: Special):
        super().__init__(vocab_size, config, special)
        self.register_buffer("uniform", self.uniform, persistent=False)
        self.register_buffer("part", torch.empty(0, dtype=torch.uint8), persistent=False)

    def leave_out(self, levels: list[Level], inputs: np.ndarray, targets: np.ndarray, position: np.ndarray) -> None:
        """Fill the tables from all counts of a text, which `count` made of the other three: lines are dealt to the
        parts in turn, a stream is cut into them."""
        row = np.cumsum(position == 0) - 1
        part = row % PARTS if row[-1] else np.arange(len(targets)) * PARTS // len(targets)
        grams = gram_indices(levels, inputs, targets, position, self.vocab_size, self.special.bos)
        trees = []
        for i in range(PARTS):
            inside = part == i
            rest = levels if inside.all() else without(levels, [index[inside] for index in grams], self.vocab_size)
            trees.append(list(smoothed(rest, self.vocab_size)))
        device, before = self.uniform.device, np.zeros(PARTS, np.int64)
        for k in range(len(levels)):
            sizes = [len(tree[k]["contexts"]) for tree in trees]
            offset = np.cumsum([0, *sizes[:-1]])  # of each tree's contexts in the common table; `before`: one shorter
            for name in trees[0][k]:
                shift = {"contexts": before, "grams": offset}.get(name, np.zeros(PARTS, np.int64)) * self.vocab_size
                parts = [tree[k][name] + s.astype(tree[k][name].dtype) for tree, s in zip(trees, shift, strict=True)]
                self.register_buffer(
                    f"{name}_{k}", torch.from_numpy(np.concatenate(parts)).to(device), persistent=False
                )
            before = offset
        self.part, self._dense = torch.from_numpy(part.astype(np.uint8)).to(device), None

    def _save_to_state_dict(self, *_) -> None:
        """Nothing is stored: the text is counted again."""

    def _load_from_state_dict(self, *_) -> None:
        pass


def without(levels: list[Level], removed: Sequence[np.ndarray], vocab_size: int) -> list[Level]:
    """The counts without some of the targets, of which `removed` has the n-grams: for each level, the index of each."""
    rest: list[Level] = []
    number = np.zeros(1, np.int64)  # in `rest`, of each context of the level before
    for k, (level, index) in enumerate(zip(levels, removed, strict=True)):
        counts = level.counts - np.bincount(index, minlength=len(level.grams))
        grams, counts = level.grams[counts > 0], counts[counts > 0]
        used = np.bincount(grams // vocab_size, minlength=len(level.contexts)) > 0
        contexts = level.contexts[used]
        contexts = number[contexts // vocab_size] * vocab_size + contexts % vocab_size
        number = np.cumsum(used) - 1
        grams = number[grams // vocab_size] * vocab_size + grams % vocab_size
        rest.append(Level(contexts, grams, counts, counts))
        if k:
            rest[k - 1].continuations = continuations(rest[k - 1], rest[k], vocab_size)
    return rest
