"""Translations of many sources at once, greedy or by beam search."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from data.tokenizers import Special, Tokenizer
from engine.evaluate import in_evaluation_mode
from engine.run.writing import until_end
from finetune.translate.beam import search
from finetune.translate.material import source_ids
from makemore.base import LanguageModel

ROWS_AT_ONCE = 256  # rows of a batch, of each as many as there are beams


def translate_all(
    model: LanguageModel, texts: Sequence[str], tokenizer: Tokenizer, longest: int, beams: int, device: torch.device
) -> list[str]:
    """The translation of each text, of at most `longest` tokens, in the order of `texts`. Sources of about one length
    go together."""
    special, sources = tokenizer.special, [source_ids(text, tokenizer) for text in texts]
    answers = [""] * len(texts)
    order, step = sorted(range(len(texts)), key=lambda i: len(sources[i])), max(1, ROWS_AT_ONCE // beams)
    with in_evaluation_mode(model):
        for start in range(0, len(order), step):
            some = order[start : start + step]
            prefix = padded([sources[i] for i in some], special.pad).to(device)
            if beams == 1:
                found = greedy(model, prefix, special, longest)
            else:
                found = search(model, prefix, special, longest, beams)
            for i, ids in zip(some, found, strict=True):
                answers[i] = tokenizer.decode(ids)
    return answers


def greedy(model: LanguageModel, prefix: Tensor, special: Special, longest: int) -> list[list[int]]:
    """The likeliest next token again and again after the sources `prefix` (B, S), until `<eos>` or `longest` tokens:
    the ids of each row, without `<eos>`."""
    state = model.start(prefix, None)
    assert state is not None  # every row has a source
    step, token = model.stepper(state), prefix.new_full((len(prefix),), special.bos)
    written, ended = [], torch.zeros(len(prefix), dtype=torch.bool, device=prefix.device)
    for _ in range(longest):
        logits = step(token)
        logits[:, special.never_predicted] = -torch.inf
        token = logits.argmax(-1)
        written.append(token)
        ended |= token == special.eos
        if ended.all():
            break
    return [until_end(row, special.eos) for row in torch.stack(written, 1).tolist()]


def padded(rows: Sequence[np.ndarray], pad: int) -> Tensor:
    """The rows (B, S), padded on the right."""
    found = torch.full((len(rows), max(map(len, rows))), pad)
    for i, row in enumerate(rows):
        found[i, : len(row)] = torch.from_numpy(row)
    return found
