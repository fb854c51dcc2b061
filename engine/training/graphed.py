"""The training step as CUDA graphs: a GPU is told its operations once, and then only to do them again.

A small model's step is hundreds of short operations, and launching each takes longer than computing it. Three pieces
are captured: forward and backward of a micro-batch (a graph for each shape), clipping, and the optimizers with the
zeroing of the gradients. What changes from step to step lies in tensors that stay where they are: the batch, what its
loss is divided by, the learning rates, the gradients. Between the pieces Python goes on as without graphs: dropout is
seeded before each micro-batch, since a replay reads the seed of the device's generator anew, and losses are copied out.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from data.batches import Batch
from data.errors import UserError
from engine import runtime
from engine.distributed.ranks import Ranks
from makemore.layers import sparse_parameters

Act = Callable[[], Tensor | None]
WARM_UP = 3  # calls before a capture, in which libraries choose kernels, and gradients and moments are allocated
MOST_SHAPES = 32  # of batches with a graph of their own
WAY_OUT = "go on with --resume and --cuda-graph off"
OPTIMIZERS = ("adam", "adamw", "muon")  # those that can read the learning rate from the GPU


class Graphs:
    """CUDA graphs on `device` in one pool of memory: they are replayed one after another."""

    def __init__(self, device: torch.device):
        self.device, self.stream, self.pool = device, torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def aside(self, act: Act) -> Tensor | None:
        """The result of `act`, called on the stream that captures."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = act()
        current.wait_stream(self.stream)
        return result

    def capture(self, act: Act) -> Act:
        """What replays `act`, and gives the tensor that then holds its result."""
        graph = torch.cuda.CUDAGraph()
        how: Any = {"pool": self.pool, "stream": self.stream, "capture_error_mode": "thread_local"}  # others may save
        with torch.cuda.device(self.device), torch.cuda.graph(graph, **how):
            result = act()

        def replay() -> Tensor | None:
            graph.replay()
            return result

        return replay


class Replayed:
    """`act`, which is called as it is a few times, then captured and from then on replayed. Its result is a copy: the
    next replay writes over the original. Raises UserError where it cannot be captured."""

    def __init__(self, act: Act, graphs: Graphs):
        self.act, self.graphs, self.calls = act, graphs, 0
        self.replay: Act | None = None

    def __call__(self) -> Tensor | None:
        if self.calls < WARM_UP:
            result = self.graphs.aside(self.act)
            self.calls += 1
            return result
        if self.replay is None:
            self.replay = self._capture()
        result = self.replay()
        return None if result is None else result.clone()

    def _capture(self) -> Act:
        try:
            return self.graphs.capture(self.act)
        except RuntimeError as error:  # CUDA's errors are
            if runtime.is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
            raise UserError(f"--cuda-graph on: this model's step cannot be captured ({reason}); {WAY_OUT}") from error


class GraphedStep:
    """The pieces of a Trainer's step, replayed: `backward`, `clip` and `update` as the trainer has them. A batch of
    more shapes than there is to be a graph for is computed as without graphs."""

    def __init__(self, trainer: Any, graphs: Graphs):
        self.trainer, self.graphs = trainer, graphs
        self.derivative = torch.ones((), device=trainer.device)  # of the step's loss, by the summed loss of a batch
        self.clip: Act = Replayed(trainer.clip, graphs) if trainer.config.optim.grad_clip else trainer.clip
        self.update = Replayed(self._update, graphs)
        self._by_shape: dict[tuple, tuple[Batch, Replayed]] = {}
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = torch.tensor(group["lr"], device=trainer.device)  # float32: what AdamW's kernel reads

    def backward(self, batch: Batch, divisor: float) -> Tensor:
        """As `Trainer.backward`, of a batch that counts."""
        tensors = {name: x for name, x in batch._asdict().items() if isinstance(x, Tensor)}
        key = tuple((name, tuple(x.shape)) for name, x in tensors.items())
        if key not in self._by_shape:
            if len(self._by_shape) == MOST_SHAPES:
                return self.trainer.backward(batch, divisor)
            copies: Any = {name: torch.empty_like(x, device=self.trainer.device) for name, x in tensors.items()}
            held = batch._replace(**copies)
            self._by_shape[key] = held, Replayed(lambda: self._backward(held), self.graphs)
        held, replayed = self._by_shape[key]
        for name, x in tensors.items():
            getattr(held, name).copy_(x, non_blocking=True)
        self.derivative.fill_(1).div_(divisor or 1)
        nll_sum = replayed()
        assert nll_sum is not None
        return nll_sum

    def _backward(self, held: Batch) -> Tensor:
        """Add the gradient of the batch that is held. Returns its summed loss. Raises UserError for a weight that has
        none at first: a new one would lie where the graphs compute."""
        before = self._with_gradient()
        nll_sum, _ = self.trainer.forward(held)
        nll_sum.backward(self.derivative.to(nll_sum.dtype))
        if before and self._with_gradient() != before:
            raise UserError(f"--cuda-graph on: not every batch reaches every weight; {WAY_OUT}")
        return nll_sum.detach()

    def _with_gradient(self) -> int:
        return sum(p.grad is not None for p in self.trainer.model.parameters())

    def _update(self) -> None:
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["capturable"] = self.update.calls == WARM_UP  # torch warns of one that could be and is not
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)


def check(config: Any, device: torch.device, ranks: Ranks, model: nn.Module) -> None:
    """Raise UserError, with the reason, for `--cuda-graph on` where a step cannot be captured."""
    if config.machine.cuda_graph == "on" and (reason := why_not(config, device, ranks, model)):
        raise UserError(f"--cuda-graph on: {reason}; use --cuda-graph off")


def why_not(config: Any, device: torch.device, ranks: Ranks, model: nn.Module) -> str | None:
    """Why the training of `model` cannot be captured; None where it can be."""
    if not has_graphs(device):
        return f"graphs are CUDA's, and this training is on {device}"
    if ranks.world > 1:
        return "several processes exchange gradients within a step, which is not captured"
    if getattr(config.net, "carry_state", False):
        return "with --carry-state each batch begins from another state"
    if getattr(config.net, "activation_checkpointing", False) and config.net.dropout:
        return "--activation-checkpointing reads the generator of dropout within a step"
    if config.optim.optimizer not in OPTIMIZERS:
        return f"--optimizer {config.optim.optimizer} is none of those that can be: {', '.join(OPTIMIZERS)}"
    if any(p.requires_grad for p in sparse_parameters(model).values()):
        return "the tables of hashed n-grams have sparse gradients, of a new size in each step"
    return None


def has_graphs(device: torch.device) -> bool:
    """Whether `device` can be told a sequence of operations at once."""
    return device.type == "cuda"


def graphed_step(trainer: Any) -> GraphedStep | None:
    """The graphs of a Trainer, where `--cuda-graph` is on. Raises UserError where it cannot be."""
    config = trainer.config
    check(config, trainer.device, trainer.ranks, trainer.model)
    return GraphedStep(trainer, Graphs(trainer.device)) if config.machine.cuda_graph == "on" else None
