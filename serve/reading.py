"""Requests that read texts and write none: their probability, their features, their label. Each runs in a thread of its
own, beside what is being drawn."""

import asyncio
import base64
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.run.run import Run
from finetune.classify.labeller import Labeller
from serve.bodies import Classification, Embeddings, Scoring
from serve.errors import Refused
from serve.served import Served


class Labels:
    """A classifier under its name."""

    def __init__(self, name: str, folder: Path, labeller: Labeller, created: int):
        self.name, self.folder, self.labeller, self.created = name, folder, labeller, created

    def card(self) -> dict[str, Any]:
        """What /v1/models says of it."""
        config, thresholds = self.labeller.config, self.labeller.thresholds
        return {
            "id": self.name, "object": "model", "created": self.created, "owned_by": "charlm", "family": config.model,
            "labels": self.labeller.labels, **({} if thresholds is None else {"thresholds": thresholds.tolist()}),
        }  # fmt: skip


async def score(served: Served, asked: Scoring) -> dict[str, Any]:
    """The negative log-likelihood of a text, token by token."""
    tokens = await asyncio.to_thread(served.run.token_scores, asked.text)
    nll = sum(each.nll for each in tokens)
    characters = sum(each.characters for each in tokens)
    return {
        "object": "score", "model": served.name, "tokens": [each.text for each in tokens],
        "logprobs": [-each.nll for each in tokens], "loss": nll / len(tokens),
        "bits_per_char": nll / math.log(2) / characters if characters else None,
    }  # fmt: skip


async def embed(served: Served, asked: Embeddings) -> dict[str, Any]:
    """The mean of the last hidden vectors of each text."""
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    if not texts:
        raise Refused(400, "input is empty", "input")
    found = [await asyncio.to_thread(_features, served.run, text) for text in texts]
    data = [
        {"object": "embedding", "index": n, "embedding": _encoded(vector, asked.encoding_format)}
        for n, (vector, _) in enumerate(found)
    ]
    read = sum(count for _, count in found)
    return {
        "object": "list", "model": served.name, "data": data, "usage": {"prompt_tokens": read, "total_tokens": read}
    }  # fmt: skip


async def classify(labels: Labels, asked: Classification) -> dict[str, Any]:
    """The label of each text, or its labels, with the probability of every label."""
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    if not texts:
        raise Refused(400, "input is empty", "input")
    found = await asyncio.to_thread(labels.labeller, texts)
    data = []
    for n, p in enumerate(found):
        by_label = dict(zip(labels.labeller.labels, p.tolist(), strict=True))
        data.append({"index": n, **labels.labeller.answer(p), "probabilities": by_label})
    return {"object": "list", "model": labels.name, "data": data}


def _features(run: Run, text: str) -> tuple[np.ndarray, int]:
    """The mean (C,) float32 of the features of a text's positions, and how many there are."""
    model: Any = getattr(run.model, "neural", run.model)  # of a mixture
    if run.config.net.is_counted:
        raise Refused(400, "a model that counts has no vectors", "model")
    ids = torch.tensor(run.prompt_ids(text), device=run.device)
    sums: list[torch.Tensor] = []
    with torch.inference_mode():
        model.read_parts(ids, None, lambda index, hidden: sums.append(hidden.double().sum((0, 1))))
    return (torch.stack(sums).sum(0) / len(ids)).float().cpu().numpy(), len(ids)


def _encoded(vector: np.ndarray, encoding: str) -> list[float] | str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if encoding == "base64" else vector.tolist()
