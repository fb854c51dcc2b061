"""The optimizers: torch's and Muon, and the parameters of each."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from engine import runtime
from engine.config.sections import Optim
from engine.distributed.muon import iterate, iterate_sharded
from engine.distributed.ranks import ALONE, Ranks
from engine.distributed.sharding import is_sharded, local
from makemore.base import LanguageModel
from makemore.layers import embedding_names, sparse_parameters


class AdamW(torch.optim.AdamW):
    """torch's AdamW on a CPU, to the bit, without what torch does around its one pass over all weights: sorting the
    tensors by device and type takes 0.1 ms, where a whole step of a small model takes one of 0.5."""

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # without a closure
        for group in self.param_groups:
            params, grads, first, second, steps = [], [], [], [], []
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p] or self._begin(p)
                    params.append(p)
                    grads.append(p.grad)
                    first.append(state["exp_avg"])
                    second.append(state["exp_avg_sq"])
                    steps.append(state["step"])
            if params:
                torch._foreach_add_(steps, 1)
                beta1, beta2 = group["betas"]
                torch._fused_adamw_(
                    params, grads, first, second, [], steps, lr=group["lr"], beta1=beta1, beta2=beta2,
                    weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False, maximize=False,
                )  # fmt: skip

    def _begin(self, p: Tensor) -> dict[str, Tensor]:
        zeros = [torch.zeros_like(p, memory_format=torch.preserve_format) for _ in range(2)]
        step = torch.zeros((), dtype=torch.float32, device=p.device)  # whatever the default is, as torch has it
        self.state[p] |= {"step": step, "exp_avg": zeros[0], "exp_avg_sq": zeros[1]}
        return self.state[p]


class Muon(torch.optim.Optimizer):
    """SGD with momentum whose update is orthogonalised by a Newton-Schulz iteration, for hidden matrices. Jordan et
    al., "Muon: An optimizer for hidden layers in neural networks", 2024.

    `torch.optim.Muon` takes the same steps up to rounding. Here the iteration is in float32 and not bfloat16, works on
    Gram matrices (see `orthogonalise`), takes all matrices of one shape together, and flattens what has more than two
    dimensions. `half`: in bfloat16 as there, for a CPU that multiplies it. `python -m bench.muon`, CPU time over
    torch's: 0.2 where the CPU does not; where it does (AMX), 0.9 to 1.1 for 4 layers of width 128 and 2.1 to 3.1 for 6
    layers of width 384, of which `half` takes two thirds away. On CUDA that multiplies TF32, in that.

    Several processes (`ranks`) each do a share of the iterations; of sharded parameters each holds its rows of the
    momentum."""

    COEFFICIENTS = (3.4445, -4.7750, 2.0315)
    ITERATIONS = 5

    def __init__(
        self,
        params,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        ranks: Ranks = ALONE,
        half: bool = False,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.ranks, self.half = ranks, half

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # without a closure
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[(len(p), p.numel() // len(p))].append(p)
            for shape, params in by_shape.items():
                self._step_shape(group, shape, params)

    def _step_shape(self, group: dict, shape: tuple[int, int], params: list[Tensor]) -> None:
        grads = [local(p.grad) for p in params if p.grad is not None]
        buffers = [local(self._momentum(p)) for p in params]
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        nesterov = [n.view(len(n), shape[1]) for n in torch._foreach_lerp(grads, buffers, group["momentum"])]
        if is_sharded(params[0]):
            update = iterate_sharded(nesterov, shape, self._orthogonalise, self.ranks)
        else:
            update = list(iterate(torch.stack(nesterov), self._orthogonalise, self.ranks))
        scale = max(1.0, shape[0] / shape[1]) ** 0.5
        weights, lr = [local(p) for p in params], group["lr"]
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
        update = [u.view_as(w) for u, w in zip(update, weights, strict=True)]
        if isinstance(lr, Tensor):  # a captured step reads it there
            torch._foreach_add_(weights, torch._foreach_mul(update, -lr * scale))
        else:
            torch._foreach_add_(weights, update, alpha=-lr * scale)

    def _orthogonalise(self, matrices: Tensor) -> Tensor:
        if self.half:
            return orthogonalise_directly(matrices, self.COEFFICIENTS, self.ITERATIONS, torch.bfloat16)
        if runtime.multiplies_tf32(matrices.device):
            with runtime.in_tf32():
                return orthogonalise_directly(matrices, self.COEFFICIENTS, self.ITERATIONS, torch.float32)
        return orthogonalise(matrices, self.COEFFICIENTS, self.ITERATIONS)

    def _momentum(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        return state["momentum_buffer"]


def orthogonalise(matrices: Tensor, coefficients: tuple[float, float, float], iterations: int) -> Tensor:
    """Approximately the closest semi-orthogonal matrix of each of `matrices` (N, R, C), computed in float32: singular
    values end between about 0.7 and 1.2.

    Each iteration multiplies x by a polynomial p(g) of its Gram matrix g = x x', and so g by p(g)². So all of them are
    done on the square g, and x is multiplied once, at the end. Counted in products of two squares of the shorter side,
    with k as the longer side over the shorter: 17 + 2 k instead of 5 + 10 k."""
    a, b, c = coefficients
    x = matrices.float()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    gram = x @ x.mT
    identity = a * torch.eye(gram.shape[1], device=x.device)
    product = None
    for i in range(iterations):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c).add_(identity)
        product = polynomial if product is None else polynomial @ product
        if i + 1 < iterations:
            gram = polynomial @ gram @ polynomial
    x = product @ x
    return (x.mT if tall else x).to(matrices.dtype)


def orthogonalise_directly(
    matrices: Tensor, coefficients: tuple[float, float, float], iterations: int, dtype: torch.dtype
) -> Tensor:
    """As `orthogonalise`, for arithmetic that rounds more, in `dtype`: each iteration on x itself, which forgives the
    rounding of the one before, as products of Gram matrices do not."""
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)).to(dtype)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def make_optimizers(
    model: LanguageModel, config: Optim, ranks: Ranks = ALONE, half: bool = False
) -> list[torch.optim.Optimizer]:
    """The optimizers of `model`: one, or for muon two, and a SparseAdam for tables with sparse gradients. `half`: see
    `Muon`.

    Matrices get weight decay; biases, gains and embedding tables get none. Muon takes the hidden matrices, all but
    those of the model's `output_layers`, and AdamW the rest. The schedule scales each group's `peak_lr`."""
    tables, sparse = embedding_names(model), sparse_parameters(model)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad and name not in sparse]
    matrices = {name: p for name, p in named if p.ndim >= 2 and name not in tables}
    others = [p for name, p in named if name not in matrices]
    optimizers: list[torch.optim.Optimizer] = []
    is_plain = all(p.device.type == "cpu" and not is_sharded(p) for _, p in named)
    adamw = AdamW if is_plain else torch.optim.AdamW
    if config.optimizer == "muon":
        output = {id(p) for layer in model.output_layers() for p in layer.parameters()}
        hidden = [p for p in matrices.values() if id(p) not in output]
        if hidden:
            optimizers.append(Muon(hidden, config.muon_lr, config.momentum, config.weight_decay, ranks, half))
        if groups := _groups([p for p in matrices.values() if id(p) in output], others, config):
            optimizers.append(adamw(groups, lr=config.lr, betas=_betas(config), fused=True))
    else:
        optimizers.append(_torch_optimizer(_groups(list(matrices.values()), others, config), config, adamw))
    if sparse_trained := [p for p in sparse.values() if p.requires_grad]:  # only the rows that a batch has met move
        optimizers.append(torch.optim.SparseAdam(sparse_trained, lr=config.lr, betas=_betas(config)))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's learning rate to `factor` times its `peak_lr`; one that is a tensor stays where it is."""
    for group in optimizer.param_groups:
        lr = group["peak_lr"] * factor
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def _groups(decayed: Sequence[Tensor], others: Sequence[Tensor], config: Optim) -> list[dict]:
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _betas(config: Optim) -> tuple[float, float]:
    return config.beta1, config.beta2


def _torch_optimizer(groups: list[dict], config: Optim, adamw: type[torch.optim.AdamW]) -> torch.optim.Optimizer:
    lr = config.lr
    match config.optimizer:
        case "sgd":
            return torch.optim.SGD(groups, lr=lr)
        case "momentum":
            return torch.optim.SGD(groups, lr=lr, momentum=config.momentum)
        case "adagrad":
            return torch.optim.Adagrad(groups, lr=lr)
        case "rmsprop":
            return torch.optim.RMSprop(groups, lr=lr, alpha=config.beta2)
        case "adam":
            return torch.optim.Adam(groups, lr=lr, betas=_betas(config), fused=True)
        case _:  # fused: one pass over all weights, on CPU too several times faster than a loop over tensors
            return adamw(groups, lr=lr, betas=_betas(config), fused=True)
