"""The activations of a model's hidden units over texts: of a Transformer's feed-forward layers after their activation,
of the hidden vectors of RNN, LSTM and GRU, of the layers of MLP and CNN."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.errors import UserError, warn
from explain.subject import MOST_TOKENS, Subject
from makemore.cnn import CNN
from makemore.mlp import MLP
from makemore.recurrent import Recurrent
from nanogpt.model import Transformer

MOST_READ = 20_000  # tokens of a file: the activations of all are held at once


class Read(NamedTuple):
    """Texts as the model read them, one after the other: N tokens, each with the one that comes next, its place in its
    row, and the number of its row. A row is a text, or a window of a text longer than the context."""

    tokens: Tensor
    next: Tensor
    place: Tensor
    row: Tensor


def read_texts(subject: Subject, texts: list[str]) -> Read:
    """The tokens of `texts`; of more than `MOST_READ` tokens those of some texts, drawn at random, of which it warns.
    UserError where there are none."""
    special, longest = subject.tokenizer.special, subject.model.context or MOST_TOKENS
    if sum(map(len, texts)) > MOST_READ:
        texts = [texts[n] for n in np.random.default_rng(0).permutation(len(texts))]  # the file may be sorted
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    count = unknown = 0
    for text in texts:
        ids = np.concatenate(
            [[special.bos] * subject.begins, subject.tokenizer.encode(text, "mask"), [special.eos]]
        ).astype(np.int64)
        for start in range(0, len(ids) - 1, longest):
            if count >= MOST_READ:
                break
            end = min(start + longest, len(ids) - 1, start + MOST_READ - count)
            rows = np.full(end - start, len(parts))
            parts.append((ids[start:end], ids[start + 1 : end + 1], np.arange(end - start), rows))
            count, unknown = count + end - start, unknown + int((ids[start:end] == special.unk).sum())
    if not parts:
        raise UserError("there is no text to look at")
    if count >= MOST_READ:
        which = f"those of some texts of {len(texts):,}, drawn at random" if len(texts) > 1 else "the first ones"
        warn(f"{MOST_READ:,} tokens are looked at, {which}")
    if unknown:
        warn(f"{unknown:,} of {count:,} tokens are not in the vocabulary: <unk>")
    return Read(*(torch.from_numpy(np.concatenate(each)) for each in zip(*parts, strict=True)))


def activations(subject: Subject, read: Read) -> list[Tensor]:
    """The activations of each layer over the tokens of `read`: (N, units) float32 a layer. UserError for a family
    without hidden units."""
    model: Any = subject.model
    kept: list[list[Tensor]] = []  # of each row, of each layer
    hooks = [module.register_forward_hook(keep(kept)) for module, keep in _watched(subject)]
    try:
        with torch.inference_mode():
            for row in read.tokens.split(torch.bincount(read.row).tolist()):
                kept.append([])
                model.hidden(row[None], None, None)
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.cat(layer).float() for layer in zip(*kept, strict=True)]


def _watched(subject: Subject) -> list[tuple[Any, Any]]:
    """The modules that a layer's activations go into or come out of, in order, each with what keeps them."""
    model: Any = subject.model

    def incoming(kept: list[list[Tensor]]) -> Any:
        return lambda _, inputs, __: kept[-1].append(inputs[0][0].clone())

    def outgoing(kept: list[list[Tensor]]) -> Any:
        return lambda _, __, out: kept[-1].append((out[0] if isinstance(out, tuple) else out)[0].clone())

    if isinstance(model, Transformer):
        return [(block.mlp.c_proj, incoming) for block in model.h]
    if isinstance(model, Recurrent):
        return [(layer, outgoing) for layer in model.layers]
    if isinstance(model, MLP):
        return [(model.dropout, incoming)]  # called once a layer
    if isinstance(model, CNN):
        return [(layer.out, incoming) for layer in model.layers]
    raise UserError(f"{subject.name} is a {subject.family}: a table, which has no hidden units")
