"""What a Transformer's heads look at in a text."""

import asyncio
from typing import Any

import torch

from nanogpt.maps import attention_maps
from nanogpt.model import Transformer
from serve.bodies import Attention
from serve.errors import Refused
from serve.served import Served

MOST_TOKENS = 64  # a map has their square


async def attention(served: Served, asked: Attention) -> dict[str, Any]:
    """The weights of each layer and head: row i has those of token i on tokens 0 to i."""
    model = served.transformer
    if model is None:
        raise Refused(400, f"{served.name} is no Transformer: it has no attention", "model")
    ids = served.run.prompt_ids(asked.text)
    most = min(MOST_TOKENS, served.run.config.net.context)
    if len(ids) > most:
        raise Refused(400, f"text has {len(ids)} tokens; at most {most} are shown", "text")
    weights = await asyncio.to_thread(_weights, model, torch.tensor(ids, device=served.run.device))
    names = {id_: name for name, id_ in served.run.tokenizer.specials.items()}
    tokens = [names.get(id_) or served.run.token_text(id_) for id_ in ids]
    return {"object": "attention", "model": served.name, "tokens": tokens, "weights": weights}


def _weights(model: Transformer, ids: torch.Tensor) -> list[list[list[list[float]]]]:
    """By layer, head and row."""
    return [
        [[[round(p, 4) for p in row[: n + 1]] for n, row in enumerate(head)] for head in layer]
        for layer in attention_maps(model, ids).tolist()
    ]
