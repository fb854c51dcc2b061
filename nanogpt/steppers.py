"""Which stepper a Transformer gets: the fast one only where every module is exactly the known one, when the stepper is
made. What is changed after that, the next stepper hears."""

from collections.abc import Iterator

import torch
from torch import nn

from makemore.base import State
from makemore.counts.inputs import CountInputs
from makemore.exact import are_exact, needs_gradients, note
from makemore.hashing import HashedNGrams
from nanogpt.graph_stepper import GraphStepper
from nanogpt.stepper import Transformer, TransformerStepper
from nanogpt.stepper_layer import evaluates, norm_class, norm_evaluates, parts_of

note(nn.Embedding, nn.Linear, HashedNGrams, CountInputs)


def make_stepper(model: Transformer, state: State) -> "TransformerStepper | None":
    """The fast stepper for `model`, a Transformer whose own methods are the known ones; None where a part of it is not,
    in training, and where a gradient is wanted, which the fast one does not have."""
    if not knows(model) or needs_gradients(model, state):
        return None
    has_fixed_shapes = not isinstance(model.ngrams, CountInputs)  # of counts each token looks up another number
    is_captured = model.wte.weight.is_cuda and has_fixed_shapes
    return (GraphStepper if is_captured else TransformerStepper)(model, state)


def knows(model: Transformer) -> bool:
    """Whether the fast stepper computes what the modules of `model` do."""
    return not model.training and are_exact(_parts_of(model)) and _evaluates(model)


def _parts_of(model: Transformer) -> Iterator[tuple[nn.Module, type[nn.Module]]]:
    """The modules that the fast stepper computes or calls, each with the class that it has to be of."""
    tables = [(table, nn.Embedding) for table in _tables_of(model)]
    added = CountInputs if isinstance(model.ngrams, CountInputs) else HashedNGrams
    optional = (*tables, (model.ngrams, added), (model.lm_head, nn.Linear))
    yield from (part for part in optional if part[0] is not None)
    yield model.drop, nn.Dropout
    yield model.ln_f, norm_class(model.ln_f)
    for block in model.h:
        yield from parts_of(block)


def _tables_of(model: Transformer) -> list[nn.Module | None]:
    return [model.wte, model.wpe, *model.vte.values()]


def _evaluates(model: Transformer) -> bool:
    """Whether those modules are set as the fast stepper computes them."""
    slopes = [block.attn.attend.slopes for block in model.h]
    if model.positions == "alibi":
        has_usual_slopes = all(each is not None and torch.equal(each, slopes[0]) for each in slopes)
    else:
        has_usual_slopes = all(each is None for each in slopes)
    return (
        not model.drop.training
        and norm_evaluates(model.ln_f)
        and all(evaluates(block, model.window) for block in model.h)
        and has_usual_slopes
        and all(table is None or table.max_norm is None for table in _tables_of(model))
    )
