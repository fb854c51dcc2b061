"""One step of a Transformer on a GPU, where each operation waits to be launched: captured once as a CUDA graph, and
replayed."""

import math
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from data.errors import warn
from makemore.base import State
from nanogpt.stepper import Transformer, TransformerStepper, into
from nanogpt.stepper_layer import StaticCacheIndex

EAGER = 32  # steps before a capture, which costs a synchronisation and several steps: too much for a name

_lock = threading.Lock()  # one capture at a time


class GraphStepper(TransformerStepper):
    """`TransformerStepper` on a GPU. The captured step has fixed shapes: attention is to the whole capacity, what is
    not to be seen masked. It is captured anew where the capacity has grown. Where it cannot be captured, a warning says
    so, and the operations are launched one by one."""

    def __init__(self, model: Transformer, state: State):
        self.captured, self.taken = 0, 0  # the capacity that the graph has; steps so far
        self.eager: float = EAGER  # of them without a graph
        super().__init__(model, state)

    def _compiled(self) -> None:
        return None

    def _step(self, token: Tensor) -> Tensor:
        self.taken += 1
        if self.taken > self.eager and self.captured != self.capacity:
            self._capture(token)
        if self.taken <= self.eager:
            return super()._step(token)
        self.token.copy_(token)
        self.index.fill_(self.length)
        self.replay()
        return self.result

    def _capture(self, token: Tensor) -> None:
        self.token, self.index = token.clone(), token.new_full((1,), self.length)
        history = {name: part.clone() for name, part in self.history.items()}
        try:
            self.replay, self.result = capture(self._static_step, token.device)
        except RuntimeError as error:  # CUDA's errors and too little memory are RuntimeErrors too
            reason = str(error).partition("\n")[0]
            warn(f"decoding goes on without a CUDA graph, which is slower: capturing a step failed with '{reason}'")
            self.eager, self.history = math.inf, history
        else:
            self.history = {name: into(self.history[name], part) for name, part in history.items()}
            self.captured = self.capacity

    def _leave_inference_mode(self) -> None:
        super()._leave_inference_mode()
        self.captured = 0  # the graph reads the old tables

    def _static_step(self) -> Tensor:
        back = self.index - torch.arange(self.capacity, device=self.index.device)
        bias = torch.zeros_like(back) if self.slopes is None else -self.slopes * back
        bias = bias.type_as(self.model.wte.weight).masked_fill((back < 0) | (back >= self.window), -torch.inf)
        return self._read(self.token, StaticCacheIndex(self.index, bias.view(1, *bias.shape[-3:-1], self.capacity)))


def capture(step: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
    """`step` as a CUDA graph: what replays it, and the tensor that then holds its result."""
    with _lock, torch.cuda.device(device):
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):  # libraries choose kernels and allocate at first, which cannot be captured
            for _ in range(2):
                step()
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
            result = step()
    return graph.replay, result
