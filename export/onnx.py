"""Any model as an ONNX graph: a whole sequence at once, or one token and a state where the family is recurrent.

Graphs hold no Python: what picks a kernel by looking at shapes is replaced by its plain form first.
"""

import copy
import importlib.util
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from data.errors import UserError
from kernels import Attention
from kernels.attention.reference import sdpa_mask
from makemore.base import LanguageModel, Output
from makemore.counts.ngram import FLOOR, NGram
from makemore.recurrent import Recurrent
from nanogpt.attention import CausalSelfAttention

TOLERANCE = 1e-4  # largest difference between the graph and the model, of the largest logit where that is above 1
MAX_SIZE = 1 << 20  # of the batch or time dimension of a graph
LARGE = 1 << 30  # bytes of weights from which they go into a file of their own


def check_packages() -> None:
    """Raise UserError unless all that `save` needs is installed."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"--to onnx needs {package}: pip install onnx onnxscript onnxruntime")


def save(model: LanguageModel, path: Path) -> list[str]:
    """Write `model` to `path` and check it with onnxruntime, on sizes that tracing did not see. Returns a line for
    each input and output. Raises RuntimeError when the graph computes something else than the model."""
    model = copy.deepcopy(model).float().cpu().eval()
    reference = _Step(model) if isinstance(model, Recurrent) else _Whole(model)
    graph = reference if isinstance(model, Recurrent) else _Whole(_plain(copy.deepcopy(model)))
    inputs = graph.example(2, 3)
    outputs = ["logits", *(f"{name}_after" for name in list(inputs)[1:])]
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # the exporter warns of packages that it could also use
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # and of itself
        torch.onnx.export(
            graph, tuple(inputs.values()), str(path), input_names=list(inputs), output_names=outputs,
            dynamic_shapes=graph.sizes(), dynamo=True, external_data=weights > LARGE, verbose=False,
        )  # fmt: skip
    return _check(reference, path, outputs)


def _plain(model: LanguageModel) -> nn.Module:
    """`model` with everything replaced that a graph cannot hold."""
    if isinstance(model, NGram):
        return _Counts(model)
    for module in model.modules():
        if isinstance(module, CausalSelfAttention):
            module.register_module("attend", _Attention(module.attend))
    return model


@torch.no_grad()
def _check(reference: "_Whole | _Step", path: Path, outputs: list[str]) -> list[str]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch, time in ((1, 1), (3, 7)):
        inputs = reference.example(batch, time)
        expected = reference(*inputs.values())
        results = session.run(outputs, {name: tensor.numpy() for name, tensor in inputs.items()})
        expected = expected if isinstance(expected, tuple) else (expected,)
        for name, ours, theirs in zip(outputs, expected, results, strict=True):
            off = float((ours - torch.from_numpy(theirs)).abs().max())
            if not off <= TOLERANCE * max(1.0, float(ours.abs().max())):
                raise RuntimeError(f"{name} of {path} is off by {off:.2g} at batch {batch}, time {time}")
    both = [*((port, "in") for port in session.get_inputs()), *((port, "out") for port in session.get_outputs())]
    return [f"{way:3} {port.name} {port.type.removeprefix('tensor')} {port.shape}" for port, way in both]


class _Whole(nn.Module):
    """tokens (B, T) int64, from the beginning of a text -> logits (B, T, V)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model: Any = model  # a LanguageModel, or _Counts

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens).logits

    def example(self, batch: int, time: int) -> dict[str, Tensor]:
        """Inputs by name."""
        time = min(time, self.model.context or time)
        return {"tokens": torch.randint(self.model.vocab_size, (batch, time))}

    def sizes(self) -> dict[str, Any]:
        """Which dimensions of the inputs are free, for torch.export."""
        time = self.model.context or MAX_SIZE
        return {"tokens": {0: Dim("batch", max=MAX_SIZE), **({1: Dim("time", max=time)} if time > 1 else {})}}


class _Step(nn.Module):
    """token (B,) int64 and the state's vectors (B, H), zeros at first -> logits (B, V) and the vectors after it."""

    def __init__(self, model: Recurrent):
        super().__init__()
        self.model = model
        self.names = list(model(torch.zeros(1, 1, dtype=torch.int64)).state)

    def forward(self, token: Tensor, *vectors: Tensor) -> tuple[Tensor, ...]:
        out = self.model(token[:, None], state=dict(zip(self.names, vectors, strict=True)))
        return out.logits[:, 0], *(out.state[name] for name in self.names)

    def example(self, batch: int, time: int) -> dict[str, Tensor]:
        """Inputs by name; `time` is always 1."""
        vectors = {name: torch.randn(batch, self.model.n_hidden) for name in self.names}
        return {"token": torch.randint(self.model.vocab_size, (batch,)), **vectors}

    def sizes(self) -> dict[str, Any]:
        """Which dimensions of the inputs are free, for torch.export."""
        batch = Dim("batch", max=MAX_SIZE)
        return {"token": {0: batch}, "vectors": tuple({0: batch} for _ in self.names)}


class _Attention(nn.Module):
    """What `kernels.attention` computes, written out; as many queries as keys."""

    slopes: Tensor | None

    def __init__(self, attend: Attention):
        super().__init__()
        self.causal, self.window, self.softcap = attend.causal, attend.window, attend.softcap
        self.register_buffer("slopes", attend.slopes)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, key_mask: None = None) -> Tensor:
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        T, scores = q.shape[2], q @ k.mT / math.sqrt(q.shape[-1])  # (B, H, T, T)
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        mask = sdpa_mask(T, T, self.causal, self.window, self.slopes, q.device, q.dtype)
        scores = scores.masked_fill(~mask, -math.inf) if self.slopes is None else scores + mask
        return scores.softmax(-1) @ v


class _Counts(nn.Module):
    """What NGram.forward computes, every token of the vocabulary searched for in each context."""

    context = None

    def __init__(self, model: NGram):
        super().__init__()
        self.model, self.order, self.vocab_size = model, model.order, model.vocab_size

    def forward(self, tokens: Tensor) -> Output:
        model, (B, T) = self.model, tokens.shape
        read = torch.cat([tokens.new_full((B, model.history), model.special.bos), tokens], 1)
        vocabulary = torch.arange(self.vocab_size)
        node, alive = torch.zeros_like(tokens), torch.ones_like(tokens, dtype=torch.bool)  # (B, T)
        p = model.uniform.expand(B, T, -1)  # (B, T, V)
        for k in range(self.order):
            if k:
                context_token = read[:, model.history - k + 1 : model.history - k + 1 + T]
                node, found = _search(getattr(model, f"contexts_{k}"), node * self.vocab_size + context_token)
                alive = alive & found
            index, found = _search(getattr(model, f"grams_{k}"), node[..., None] * self.vocab_size + vocabulary)
            discounted = torch.where(found, getattr(model, f"discounted_{k}")[index], 0.0)
            backoff_weight = getattr(model, f"backoff_weight_{k}")[node][..., None]
            p = torch.where(alive[..., None], discounted + backoff_weight * p, p)
        return Output(p.clamp_min(FLOOR).log(), None, None, {})


def _search(keys: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """The index of each of `queries` in the sorted `keys`, and whether it is there: ONNX has no search, so the steps of
    a bisection are unrolled."""
    index = torch.zeros_like(queries)
    for step in reversed(range(len(keys).bit_length())):
        candidate = index + (1 << step)
        inside = candidate < len(keys)
        index = torch.where(inside & (keys[torch.where(inside, candidate, 0)] <= queries), candidate, index)
    return index, keys[index] == queries
