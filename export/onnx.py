"""Any model as an ONNX graph, written and checked in onnxruntime against the model itself."""

import copy
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.batches import IGNORE
from data.errors import UserError
from export.onnx_graphs import Labelling, Reading
from finetune.classify.classifier import Classifier
from makemore.base import LanguageModel

TOLERANCE = 1e-4  # largest difference between the graph and the model, of the largest logit where that is above 1
LARGE = 1 << 30  # bytes of weights from which they go into a file of their own
CONTEXT_NODE = "tokens_past_the_context_of_{}"  # what onnxruntime names when there are more


class Ports(NamedTuple):
    """The inputs and outputs of a graph: the name, type and shape of each; a size that is free is a name."""

    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]


def check_packages() -> None:
    """Raise UserError unless all that `save` needs is installed."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"--to onnx needs {package}: pip install onnx onnxscript onnxruntime")


def save(model: LanguageModel | Classifier, path: Path, about: dict[str, Any] | None = None) -> Ports:
    """Write `model` to `path`, with `about` as its metadata, and check it in onnxruntime, on sizes that tracing did not
    see. Returns its inputs and outputs. Raises RuntimeError when the graph computes something else than the model."""
    model = copy.deepcopy(model).float().cpu().eval()
    traced = copy.deepcopy(model)
    graph = Labelling(traced) if isinstance(traced, Classifier) else Reading(traced)
    inputs, sizes = graph.traced()
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # the exporter warns of packages that it could also use
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # and of itself
        program = torch.onnx.export(
            graph.eval(), inputs, input_names=graph.inputs, output_names=graph.outputs, dynamic_shapes=sizes,
            dynamo=True, verbose=False,
        )  # fmt: skip
    assert program is not None  # with dynamo
    program.model.metadata_props.update({name: json.dumps(value) for name, value in (about or {}).items()})
    _tidy(program.model.graph, getattr(getattr(model, "body", model), "context", None))
    program.save(str(path), external_data=weights > LARGE)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    if isinstance(model, Classifier):
        _check_labelling(model, session, path)
    else:
        _check_reading(model, session, path)
    return Ports(_described(session.get_inputs()), _described(session.get_outputs()))


def first_state(session: Any, batch: int) -> dict[str, np.ndarray]:
    """The state before a text's first token, by input."""
    sizes = {"batch": batch, "past": 0}
    return {
        port.name: np.zeros([sizes.get(size, size) for size in port.shape], _dtype(port.type))
        for port in session.get_inputs()[1:]
    }


def read(session: Any, pieces: Iterable[np.ndarray]) -> np.ndarray:
    """The logits (B, T, V) of a text's tokens, given a piece (B, t) a call."""
    state, logits = None, []
    for piece in pieces:
        state = first_state(session, len(piece)) if state is None else state
        some, *after = session.run(None, {"tokens": piece, **state})
        state = dict(zip(state, after, strict=True))
        logits.append(some)
    return np.concatenate(logits, 1)


@torch.no_grad()
def _check_reading(model: LanguageModel, session: Any, path: Path) -> None:
    has_state = len(session.get_inputs()) > 1
    slides = has_state and getattr(model, "window", None) if model.context is None else None
    longest = 8 + slides if slides else min(11, model.context or 11)  # past the end of a window
    for batch, time in ((1, 1), (3, longest)):
        tokens = torch.randint(model.vocab_size, (batch, time))
        pieces = tokens.split([time - time // 3, *[1] * (time // 3)], 1) if has_state else (tokens,)
        found = read(session, (piece.numpy() for piece in pieces))
        _compare(found, model(tokens).logits, path, f"at batch {batch}, time {time}")


@torch.no_grad()
def _check_labelling(model: Classifier, session: Any, path: Path) -> None:
    vocab_size, time = model.body.vocab_size, min(model.body.context or 9, 9)
    tokens, lengths = torch.randint(vocab_size, (3, time)), torch.tensor([time, 1, max(1, time // 2)])
    last = torch.arange(time) == lengths[:, None] - 1
    (found,) = session.run(None, {"tokens": tokens.numpy(), "lengths": lengths.numpy()})
    ours = model(tokens, torch.where(last, 0, IGNORE)).logits
    _compare(found, ours, path, f"on texts of {lengths.tolist()} tokens")


def _compare(theirs: np.ndarray, ours: Tensor | None, path: Path, where: str) -> None:
    """Raise RuntimeError where they differ by more than rounding."""
    assert ours is not None  # logits are given unless they are not wanted
    off = float((ours - torch.from_numpy(theirs)).abs().max())
    if not off <= TOLERANCE * max(1.0, float(ours.abs().max())):
        raise RuntimeError(f"logits of {path} are off by {off:.2g} {where}")


def _tidy(graph: Any, context: int | None) -> None:
    """Give the node that fails past the context a name that says so, and take out where in our files a node is from."""
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        if node.op_type == "Gather" and (node.inputs[0].name or "").endswith("within_context"):
            node.name = CONTEXT_NODE.format(context)


def _described(ports: list[Any]) -> list[dict[str, Any]]:
    types = {"tensor(int64)": "int64", "tensor(float)": "float32"}  # as numpy and JavaScript call them
    return [{"name": port.name, "type": types[port.type], "shape": port.shape} for port in ports]


def _dtype(type_: str) -> type:
    return {"tensor(int64)": np.int64, "tensor(float)": np.float32}[type_]
