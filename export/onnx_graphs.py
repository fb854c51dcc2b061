"""What a graph reads and gives: a text's tokens, the state before and after them, their logits; or a text's label.

Inputs and outputs of every family are called alike: `tokens`, then the state, if there is one, each part as `past...`
and `present...`. All of a state is zeros at first, or has no past.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from data.batches import IGNORE
from export.onnx_parts import plain
from finetune.classify.classifier import Classifier
from makemore.base import LanguageModel
from makemore.recurrent import Recurrent
from nanogpt.model import Transformer

BATCH, TIME, PAST = Dim("batch", max=1 << 20), Dim("time", max=1 << 20), Dim("past", min=0, max=1 << 20)
TRACED = {BATCH: 2, TIME: 3, PAST: 4}  # sizes that torch.export sees; the model's context does not matter to it


class StatePart(NamedTuple):
    """A part of a state: what the model calls it, what the graph calls it before and after, and its shape."""

    name: str
    before: str
    after: str
    shape: tuple[Any, ...]
    dtype: torch.dtype

    def example(self) -> Tensor:
        """Zeros of the sizes that are traced."""
        return torch.zeros([TRACED.get(size, size) for size in self.shape], dtype=self.dtype)


class Reading(nn.Module):
    """tokens (B, T) int64 and the parts of the state before them -> logits (B, T, V), and the state after them. Without
    a state they are read from the beginning of a text."""

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.parts = parts_of(model)
        self.pad = model.special.pad
        self.model: Any = plain(model)

    @property
    def inputs(self) -> list[str]:
        return ["tokens", *(part.before for part in self.parts)]

    @property
    def outputs(self) -> list[str]:
        return ["logits", *(part.after for part in self.parts)]

    def forward(self, tokens: Tensor, *past: Tensor) -> Tensor | tuple[Tensor, ...]:
        if not self.parts:
            return self.model(tokens).logits
        state = {part.name: tensor for part, tensor in zip(self.parts, past, strict=True)}
        if "history" in state:  # of hashed n-grams is padding at first, which need not be 0
            state["history"] = state["history"] + self.pad
        hidden, after = self.model.hidden(tokens, state, None)
        if "history" in after:
            after["history"] = after["history"] - self.pad
        if "position" in state:
            after["position"] = state["position"] + tokens.shape[1]
        return self.model.head(hidden), *(after[part.name] for part in self.parts)

    def traced(self) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """Example inputs, and which of their dimensions are free, for torch.export."""
        tokens = torch.zeros(TRACED[BATCH], TRACED[TIME], dtype=torch.int64)
        sizes: dict[str, Any] = {"tokens": {0: BATCH, 1: TIME}}
        if self.parts:
            sizes["past"] = tuple(
                {i: size for i, size in enumerate(part.shape) if isinstance(size, Dim)} for part in self.parts
            )
        return (tokens, *(part.example() for part in self.parts)), sizes


class Labelling(nn.Module):
    """tokens (B, T) int64, padded on the right, and how many of each row are a text, lengths (B,) int64, from 1 to T ->
    logits (B, classes)."""

    inputs, outputs = ["tokens", "lengths"], ["logits"]

    def __init__(self, model: Classifier):
        super().__init__()
        self.model = plain(model)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        last = torch.arange(tokens.shape[1]) == lengths[:, None] - 1
        return self.model(tokens, torch.where(last, 0, IGNORE)).logits

    def traced(self) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """As of `Reading`."""
        batch, time = TRACED[BATCH], TRACED[TIME]
        inputs = torch.zeros(batch, time, dtype=torch.int64), torch.full((batch,), time)
        return inputs, {"tokens": {0: BATCH, 1: TIME}, "lengths": {0: BATCH}}


def parts_of(model: LanguageModel) -> list[StatePart]:
    """The state of a model's graph; [] for a family whose logits depend on a few last tokens, which are read anew."""
    parts = []
    if isinstance(model, Recurrent):
        shape: tuple[Any, ...] = (BATCH, model.n_hidden)
        names = [f"{vector}{i}" for i in range(len(model.layers)) for vector in model.vectors]
        parts = [StatePart(name, f"past.{name}", f"present.{name}", shape, torch.float32) for name in names]
    elif isinstance(model, Transformer):
        past = PAST if model.context is not None else model.window - 1
        shape = (BATCH, model.h[0].attn.n_kv_head, past, model.head_size)
        for i in range(len(model.h)):
            for letter, word in (("k", "key"), ("v", "value")):
                before, after = f"past_key_values.{i}.{word}", f"present.{i}.{word}"
                parts.append(StatePart(f"{letter}{i}", before, after, shape, torch.float32))
        if model.context is None:
            parts.append(StatePart("position", "past.position", "present.position", (1,), torch.int64))
    if parts and model.ngrams is not None:
        shape = (BATCH, model.ngrams.n - 1)
        parts.append(StatePart("history", "past.history", "present.history", shape, torch.int64))
    return parts
