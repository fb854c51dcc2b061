"""Parts that several families share: activations, normalisation that skips padding, and weight initialisation."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from makemore.config import LayeredConfig
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


def widened(logits: Tensor) -> Tensor:
    """In float32, or in float64 where they are: what a softmax is computed in."""
    return logits if logits.dtype == torch.float64 else logits.float()


def activation_of(name: str) -> Callable[[Tensor], Tensor]:
    """The function of this name. Raises ValueError for one that only a Transformer has."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name} is the Transformer's; the other families have: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


_GAINS: dict[str, Any] = {"sigmoid": "sigmoid", "tanh": "tanh", "relu": "relu", "leaky_relu": "leaky_relu"}


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) of (B, T, C), without padding in its statistics, which are (C,).

    It uses the statistics of the batch in training and running ones in evaluation, so it is causal in evaluation
    only."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, momentum: float = 0.1, eps: float = NORM_EPS):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.total: Callable[[Tensor], Tensor] = here  # of several processes: the sum over all

    def forward(
        self, x: Tensor, valid: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        x = x if residual is None else x + residual
        y = self._normalise(x, valid)
        return y if residual is None else (y, x)

    def _normalise(self, x: Tensor, valid: Tensor | None) -> Tensor:
        mean, var = self._batch_statistics(x, valid) if self.training else (self.running_mean, self.running_var)
        return (x - mean) * (torch.rsqrt(var + self.eps) * self.weight) + self.bias

    def _batch_statistics(self, x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """The mean and variance (C,) of the positions that are not padding, with which the running ones are updated;
        the running ones where there is at most one such position. Padding gets a weight of 0: to cut it out, a GPU
        would have to be waited for."""
        x = widened(x).flatten(0, -2)  # (N, C)
        mask = x.new_ones(len(x), 1) if valid is None else not_padding(valid).flatten()[:, None].type_as(x)
        n = self.total(mask.sum())
        mean = self.total((x * mask).sum(0)) / n.clamp_min(1)
        var = self.total(((x - mean).square() * mask).sum(0)) / n.clamp_min(1)
        enough = n > 1
        mean, var = torch.where(enough, mean, self.running_mean), torch.where(enough, var, self.running_var)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(torch.where(enough, var * n / (n - 1), var), self.momentum)
        return mean, var


def here(total: Tensor) -> Tensor:
    """A sum over what this process has."""
    return total


def not_padding(valid: Tensor) -> Tensor:
    """A mask of the positions that are not padding, from the mask `valid` of those with a target: in (B, T) all up to a
    row's last target; a packed batch (N,) has no padding."""
    return valid.flip(1).cumsum(1).flip(1) > 0 if valid.ndim == 2 else torch.ones_like(valid)


class LayerNorm(kernels.LayerNorm):
    """Layer norm (Ba, Kiros & Hinton 2016). `valid` is ignored: only batch statistics need it."""

    def forward(
        self, x: Tensor, valid: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        return super().forward(x, residual)


class RMSNorm(kernels.RMSNorm):
    """RMS norm (Zhang & Sennrich 2019): a layer norm without the mean. `valid` is ignored."""

    def forward(
        self, x: Tensor, valid: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        return super().forward(x, residual)


class NoNorm(nn.Module):
    """The identity, in place of a norm."""

    def forward(
        self, x: Tensor, valid: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        return x if residual is None else (x + residual, x + residual)


def make_norm(config: LayeredConfig, width: int, bias: bool = True) -> nn.Module:
    """The normalisation of `config`, of C = `width`: `(x (B, T, C), valid (B, T) | None)` -> (B, T, C), and with
    `residual` (B, T, C) -> the norm of x + residual, and that sum."""
    backend = config.norm_kernel
    makers: dict[str, Callable[[], nn.Module]] = {
        "none": NoNorm,
        "batch": lambda: BatchNorm(width),
        "layer": lambda: LayerNorm(width, NORM_EPS, bias, backend),
        "rms": lambda: RMSNorm(width, backend=backend),
    }
    return makers[config.norm]()


def initialise(model: nn.Module, scheme: str, activation: str = "tanh") -> None:
    """Initialise every weight matrix of `model` by `scheme`: 'normal' (std 0.02, GPT-2), 'xavier' (Glorot & Bengio
    2010), 'kaiming' (He et al. 2015, with the activation's gain), 'orthogonal' (Saxe et al. 2014). 'default' keeps that
    of the family, 'torch' that of torch's layers.

    Embedding tables are changed by 'normal' alone, and hashed n-gram tables never: they stay zero, so that n-grams that
    never occurred add nothing."""
    if scheme in ("default", "torch"):
        return
    hashed, tables = sparse_parameters(model), embedding_names(model)
    for name, weight in model.named_parameters():
        if weight.ndim < 2 or name in hashed:
            continue
        if name in tables:
            if scheme == "normal":
                nn.init.normal_(weight, std=INIT_STD)
        elif scheme == "normal":
            nn.init.normal_(weight, std=INIT_STD)
        elif scheme == "xavier":
            nn.init.xavier_uniform_(weight)
        elif scheme == "kaiming":
            nn.init.kaiming_normal_(weight, nonlinearity=_GAINS.get(activation, "relu"))
        else:
            nn.init.orthogonal_(weight)


def sparse_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The parameters with sparse gradients, by name."""
    return {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and module.sparse
    }


def embedding_names(model: nn.Module) -> set[str]:
    """The names of the embedding tables, which get no weight decay and no Muon."""
    return {
        f"{name}.weight" if name else "weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    }
