"""Operations of a token by the model's own sizes, the most that a device does in a second, and their quotient (MFU).

Counted are the operations of matrix products in a forward and a backward pass, two for each number that is multiplied:
each weight of a matrix, the head's too where it is the embedding table, and attention's scores and values. Causal
attention counts in full, as in PaLM's appendix B (Chowdhery et al. 2022) and in nanoGPT, a sliding window as long as it
is. Not counted: embeddings, norms, activations, the optimizer, what activation checkpointing computes again, padding.
"""

import functools
import time
from typing import Any

import torch
from torch import nn

from engine import runtime
from engine.config.sections import Config
from engine.training.progress import Progress
from makemore.base import LanguageModel
from nanogpt.attention import CausalSelfAttention

MEASURED_FOR = 0.2  # seconds, of products of matrices
SIDES = {"cuda": 8192, "cpu": 1024}  # of those matrices: large enough that nothing but the product takes time


def multiplied_weights(model: nn.Module) -> list[nn.Parameter]:
    """The weights that each token is multiplied by: matrices, but for tables that are looked up alone."""
    heads = [m.head_weights() for m in model.modules() if isinstance(m, LanguageModel)]
    products = {id(head[0]) for head in heads if head is not None}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)} - products
    return [p for p in model.parameters() if p.dim() > 1 and id(p) not in tables]


def multiplied(model: nn.Module, trained_only: bool = False) -> int:
    """How many weights each token is multiplied by."""
    return sum(p.numel() for p in multiplied_weights(model) if p.requires_grad or not trained_only)


def flops_per_token(model: nn.Module, length: float) -> float:
    """Operations a token of a forward and a backward pass over rows of `length` tokens. A weight that is not trained
    has no gradient of its own: it counts two thirds."""
    attention = 0.0
    for module in model.modules():
        if isinstance(module, CausalSelfAttention):
            window = module.attend.window
            seen = min(length, window) if isinstance(window, int) else length
            attention += 12 * module.n_head * module.head_size * seen
    return 4 * multiplied(model) + 2 * multiplied(model, trained_only=True) + attention


def mean_length(progress: Progress, config: Config) -> float:
    """Tokens a row of the training so far, padding left out; the context before the first step."""
    rows = progress.step * config.optim.batch_size * config.optim.micro_batches
    return progress.tokens / rows if rows and progress.tokens else float(config.net.context or 1)


@functools.cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of products of large matrices of random numbers in `dtype`, measured once a process, in well
    under a second. Torch does not say what a card can do at most, and no list of cards is complete."""
    n, gpu = _side(device, dtype), getattr(torch, device.type, None) if device.type != "cpu" else None
    generator = torch.Generator(device).manual_seed(0)
    a, b = torch.randn(2, n, n, device=device, generator=generator).to(dtype)
    best, began = float("inf"), 0.0
    while not began or time.perf_counter() - began < MEASURED_FOR:
        started = time.perf_counter()
        a @ b
        if gpu is not None:
            gpu.synchronize()
        if began:
            best = min(best, time.perf_counter() - started)
        began = began or time.perf_counter()  # the first product only warms up
    return 2 * n**3 / best


def _side(device: torch.device, dtype: torch.dtype) -> int:
    """The side of the matrices: at the end of a training there may be little memory."""
    n = SIDES.get(device.type, 4096)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        while n > 1024 and 5 * n * n * 4 > torch.cuda.mem_get_info(device)[0]:
            n //= 2
    return n


def utilization(model: nn.Module, progress: Progress, config: Config, device: torch.device, world: int = 1) -> float:
    """The share of the operations of which `world` such devices are capable that the training steps did (MFU)."""
    done = flops_per_token(model, mean_length(progress, config)) * progress.tokens
    dtype = runtime.choose_dtype(config.machine.dtype, device)[0]
    return done / max(progress.seconds, 1e-9) / (world * peak_flops(device, dtype))


def of_gpu(model: nn.Module, progress: Progress, config: Config, device: torch.device, world: int) -> dict[str, Any]:
    """The entries of `summary.json` for a training on a CUDA device: MFU and what it is a share of, in TFLOP/s of one
    device. Elsewhere none: to measure a CPU takes longer than a small training has to spare."""
    if device.type != "cuda" or not progress.tokens:
        return {}
    dtype = runtime.choose_dtype(config.machine.dtype, device)[0]
    return {
        "mfu": round(utilization(model, progress, config, device, world), 4),
        "peak_tflops": round(peak_flops(device, dtype) / 1e12, 1),
    }
