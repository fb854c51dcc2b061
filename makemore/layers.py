"""What several families are made of: activations, normalisation that skips padding, and weight initialisation."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from makemore.constants import INIT_STD, NORM_EPS

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),  # GPT-2's own; on CPU slower than the exact one
    "silu": F.silu,
    "relu2": lambda x: F.relu(x).square(),  # So et al. 2021, Primer
}
_GAINS = {"sigmoid": "sigmoid", "tanh": "tanh", "relu": "relu", "leaky_relu": "leaky_relu"}


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) over the last dimension of (B, T, C), padding left out of the
    statistics.

    Uses the batch's statistics in training and running ones in evaluation, so causality holds in evaluation only."""

    def __init__(self, width: int, momentum: float = 0.1, eps: float = NORM_EPS):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(
        self, x: Tensor, valid: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        x = x if residual is None else x + residual
        y = self._normalise(x, valid)
        return y if residual is None else (y, x)

    def _normalise(self, x: Tensor, valid: Tensor | None) -> Tensor:
        mean, var = self._of_batch(x, valid) if self.training else (self.running_mean, self.running_var)
        return (x - mean) * (torch.rsqrt(var + self.eps) * self.weight) + self.bias

    def _of_batch(self, x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and variance (C,) of what is not padding, which the running ones follow; those themselves where it is
        one position or none. Padding weighs nothing rather than being cut out: on a GPU how much is left would have to
        come back first."""
        x = x.float().flatten(0, -2)  # (N, C)
        there = x.new_ones(len(x), 1) if valid is None else _read(valid).flatten()[:, None].type_as(x)
        n = there.sum()
        mean = (x * there).sum(0) / n.clamp_min(1)
        var = ((x - mean).square() * there).sum(0) / n.clamp_min(1)
        enough = n > 1
        mean, var = torch.where(enough, mean, self.running_mean), torch.where(enough, var, self.running_var)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(torch.where(enough, var * n / (n - 1), var), self.momentum)
        return mean, var


def _read(valid: Tensor) -> Tensor:
    """What is not padding, in the shape of `valid`, which marks the positions where something is predicted: all up to a
    row's last one (B, T); what was packed already (N,) has no padding."""
    return valid.flip(1).cumsum(1).flip(1) > 0 if valid.ndim == 2 else torch.ones_like(valid)


class LayerNorm(kernels.LayerNorm):
    """Ba, Kiros & Hinton 2016. Takes the mask of valid positions that batch statistics need, and has no use for it."""

    def forward(
        self, x: Tensor, valid: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        return super().forward(x, residual)


class RMSNorm(kernels.RMSNorm):
    """Zhang & Sennrich 2019: a layer norm without the mean. The mask goes unused."""

    def forward(
        self, x: Tensor, valid: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        return super().forward(x, residual)


class NoNorm(nn.Module):
    """x as it is."""

    def forward(
        self, x: Tensor, valid: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        return x if residual is None else (x + residual, x + residual)


def make_norm(kind: str, width: int, bias: bool = True, backend: str = "auto") -> nn.Module:
    """A module for kind 'none', 'batch', 'layer' or 'rms': `(x (B, T, C), valid (B, T) | None)` -> (B, T, C), and with
    `residual` (B, T, C) -> the norm of x + residual, and that sum. `backend`: whose kernels layer and rms run on."""
    makers = {
        "none": NoNorm,
        "batch": lambda: BatchNorm(width),
        "layer": lambda: LayerNorm(width, NORM_EPS, bias, backend),
        "rms": lambda: RMSNorm(width, backend=backend),
    }
    return makers[kind]()


def initialise(model: nn.Module, how: str, activation: str = "tanh") -> None:
    """Draw every weight matrix of `model` anew: 'normal' (std 0.02, GPT-2), 'xavier' (Glorot & Bengio 2010), 'kaiming'
    (He et al. 2015, by the activation's gain), 'orthogonal' (Saxe et al. 2014). 'default' leaves the family's own,
    'torch' that of torch's layers.

    Embedding tables are drawn from a normal of std 0.02 under 'normal' and left as they are otherwise; the hashed ones
    always: what no batch has met is to add nothing."""
    if how in ("default", "torch"):
        return
    hashed, tables = sparse_parameters(model), embedding_names(model)
    for name, weight in model.named_parameters():
        if weight.ndim < 2 or name in hashed:
            continue
        if name in tables:
            if how == "normal":
                nn.init.normal_(weight, std=INIT_STD)
        elif how == "normal":
            nn.init.normal_(weight, std=INIT_STD)
        elif how == "xavier":
            nn.init.xavier_uniform_(weight)
        elif how == "kaiming":
            nn.init.kaiming_normal_(weight, nonlinearity=_GAINS.get(activation, "relu"))
        else:
            nn.init.orthogonal_(weight)


def sparse_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters whose gradients are sparse, by name."""
    return {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and module.sparse
    }


def embedding_names(model: nn.Module) -> set[str]:
    """Names of the parameters that are lookup tables: never decayed, never orthogonalised."""
    return {
        f"{name}.weight" if name else "weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    }
