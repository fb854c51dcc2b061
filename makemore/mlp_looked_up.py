"""The MLP in training on a CPU: its first layer's products are looked up (makemore/tables.py), not computed anew."""

from typing import Any

import torch
from torch import Tensor, nn

from makemore.base import State
from makemore.compiled import training_functions
from makemore.exact import are_exact, note
from makemore.tables import looked_up_windows, pays

note(nn.Embedding, nn.Linear)


def looked_up_hidden(
    model: Any, tokens: Tensor, state: State | None, valid: Tensor | None
) -> tuple[Tensor, State] | None:
    """What `hidden` of an MLP gives, but for the last bits; None where it has to compute it as it is written."""
    first, *others = model.layers
    if not (model.training and model.fused and model.ngrams is None and pays(model.wte, tokens)):
        return None
    if not are_exact([(model.wte, nn.Embedding), (first, nn.Linear)]):
        return None
    library = training_functions(model.wte.weight, first.weight, first.bias)
    if library is None:
        return None
    B, T = tokens.shape
    history = tokens.new_full((B, model.order - 1), model.special.pad) if state is None else state["tokens"]
    tokens = torch.cat([history, tokens], 1)  # (B, order - 1 + T)
    x = looked_up_windows(model.wte, tokens, model.order, first.weight, first.bias, library)  # (B, T, n_hidden)
    x = model.dropout(model.activation(model.norms[0](x, valid)))
    for layer, norm in zip(others, model.norms[1:], strict=True):
        x = model.dropout(model.activation(norm(layer(x), valid)))
    return x, {"tokens": tokens[:, T:]}
