"""What the kernels are measured on: each operation at its sizes, beside what torch has for it."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import kernels
from kernels.attention import reference

# The goal: TFLOP/s on an H200 at 1k, 4k and 16k tokens.
TARGETS = {
    ("forward", 64): (270, 350, 370),
    ("forward", 128): (280, 380, 430),
    ("backward", 64): (180, 250, 280),
    ("backward", 128): (190, 270, 310),
}
# Batch, heads, tokens, head size: the default model on names and on a stream, nanoGPT's baby GPT, GPT-2.
MODELS = ((64, 4, 32, 16), (32, 4, 64, 32), (64, 6, 256, 64), (12, 12, 1024, 64))


class Task(NamedTuple):
    """One operation at one size: `work` is what its forward and backward do, in FLOPs or bytes."""

    operation: str
    shape: str
    unit: str
    work: Mapping[str, float]
    inputs: tuple[Tensor, ...]
    who: dict[str, Callable]
    targets: Mapping[str, float]


def sdpa(backend: SDPBackend) -> Callable:
    """torch's causal attention on one of its backends."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return attend


def with_compiled(who: dict[str, Callable], smoke: bool) -> dict[str, Callable]:
    """`who` and "torch.compile", which is its "torch eager" compiled for the sizes of one task alone: what was compiled
    for others is forgotten, or the compiler would go on with variable sizes, and eagerly after a few more."""
    if smoke:
        return who
    torch.compiler.reset()
    return who | {"torch.compile": torch.compile(who["torch eager"])}


def attention_tasks(device: str, smoke: bool) -> Iterator[Task]:
    """Causal attention of 16k tokens in sequences of 1k, 4k and 16k, 2,048 wide; and of this project's models."""
    lengths = (1024, 4096, 16384)
    sizes = [(16384 // T, 2048 // D, T, D) for D, T in itertools.product((64, 128), lengths)]
    for B, H, T, D in [(1, 2, 32, 16)] if smoke else [*sizes, *MODELS]:
        q, k, v = (torch.randn(B, H, T, D, device=device, dtype=_half(device), requires_grad=True) for _ in range(3))
        who: dict[str, Callable] = {"ours": partial(kernels.attention, backend="triton")}
        who |= {"SDPA": partial(F.scaled_dot_product_attention, is_causal=True)}
        if device != "cpu":
            who |= {"SDPA flash": sdpa(SDPBackend.FLASH_ATTENTION), "SDPA cuDNN": sdpa(SDPBackend.CUDNN_ATTENTION)}
        if B * H * T * T <= 2**30:  # beyond, the tables of scores do not fit
            who = with_compiled(who | {"torch eager": _definition}, smoke)
        flops = 4 * B * H * T * T * D / 2
        has_target = (B, H, T, D) in sizes and not smoke
        targets = {way: TARGETS[way, D][lengths.index(T)] for way in ("forward", "backward")} if has_target else {}
        work = {"forward": flops, "backward": 2.5 * flops}
        yield Task("attention", f"B{B} H{H} T{T} D{D}", "TFLOP/s", work, (q, k, v), who, targets)
    yield from attention_option_tasks(device, smoke)


def attention_option_tasks(device: str, smoke: bool) -> Iterator[Task]:
    """Attention as it is asked for otherwise: padding, a window to both sides, a soft cap; and one query that reads the
    keys of a long text, as in decoding."""
    B, H, T, D = (2, 2, 32, 16) if smoke else (8, 16, 2048, 64)
    dtype = _half(device)
    q, k, v = (torch.randn(B, H, T, D, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
    lengths = torch.arange(T // 2, T + 1, max(1, T // 2 // B), device=device)[:B, None]
    key_mask = torch.arange(T, device=device) < lengths  # (B, T)
    options: dict[str, dict] = {
        "attention, padded": {"causal": False, "key_mask": key_mask},
        "attention, window to both sides": {"causal": False, "window": (T // 8, T // 16)},
        "attention, capped": {"softcap": 50.0},
    }
    whole = 4 * B * H * T * T * D
    flops = {
        "attention, padded": whole * float(key_mask.float().mean()),
        "attention, window to both sides": whole * (T // 8 + T // 16 + 1) / T,
        "attention, capped": whole / 2,
    }
    for kind, given in options.items():
        theirs = partial(_definition, **given)
        who = with_compiled(
            {"ours": partial(kernels.attention, **given, backend="triton"), "torch eager": theirs}, smoke
        )
        if "softcap" not in given:
            who["SDPA"] = partial(kernels.attention, **given, backend="torch")
        work = {"forward": flops[kind], "backward": 2.5 * flops[kind]}
        yield Task(kind, f"B{B} H{H} T{T} D{D}", "TFLOP/s", work, (q, k, v), who, {})
    for T in (600,) if smoke else (1024, 16384):
        q = torch.randn(1, 12, 1, D, device=device, dtype=dtype)
        k, v = (torch.randn(1, 12, T, D, device=device, dtype=dtype) for _ in range(2))
        who = {"ours": partial(kernels.attention, backend="triton"), "SDPA": F.scaled_dot_product_attention}
        work = {"forward": 2 * k.numel() * k.element_size()}
        yield Task("attention, one query", f"B1 H12 T{T} D{D}", "GB/s", work, (q, k, v), who, {})


def _definition(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    return reference.attention(q, k, v, **options)[0]


def norm_tasks(device: str, smoke: bool) -> Iterator[Task]:
    """4,096 rows of layer norm and RMS norm, and of layer norm with the residual add."""

    def layer(x, w, b):
        return F.layer_norm(x, x.shape[-1:], w, b)

    def rms(x, w):
        return F.rms_norm(x, x.shape[-1:], w, 1e-5)

    def added(x, w, b, r):
        return layer(x + r, w, b), x + r

    def ours_added(x, w, b, r):
        return kernels.layer_norm(x, w, b, residual=r, backend="triton")

    N, widths = (8, (32,)) if smoke else (4096, (64, 128, 384, 768, 1024, 2048, 4096, 8192, 16384))
    for C in widths:
        x, r = (torch.randn(N, C, device=device, dtype=_half(device), requires_grad=True) for _ in range(2))
        w, b = (torch.randn(C, device=device, dtype=_half(device), requires_grad=True) for _ in range(2))
        for kind, inputs, ours, plain, passes in (
            ("layer_norm", (x, w, b), partial(kernels.layer_norm, backend="triton"), layer, (2, 3)),
            ("rms_norm", (x, w), partial(kernels.rms_norm, eps=1e-5, backend="triton"), rms, (2, 3)),
            ("add + layer_norm", (x, w, b, r), ours_added, added, (4, 4)),
        ):
            size = x.numel() * x.element_size()
            work = {"forward": passes[0] * size, "backward": passes[1] * size}
            who = with_compiled({"ours": ours, "torch eager": plain}, smoke)
            yield Task(kind, f"{N} x {C}", "GB/s", work, inputs, who, {})


def cross_entropy_tasks(device: str, smoke: bool) -> Iterator[Task]:
    """Losses over 8,192 rows: of logits, and of a linear layer to GPT-2's vocabulary."""
    N, C = (8, 16) if smoke else (8192, 768)

    def plain(logits, targets):
        return F.cross_entropy(logits.float(), targets, reduction="sum")

    def capped(logits, targets):
        logits = 30 * torch.tanh(logits.float() / 30)
        return plain(logits, targets) + 1e-4 * logits.logsumexp(-1).square().sum()

    def linear(hidden, weight, targets):
        return plain(hidden @ weight.T, targets)

    def each(hidden, weight, targets):
        return F.cross_entropy((hidden @ weight.T).float(), targets, reduction="none")

    for V in (65,) if smoke else (65, 50257):
        logits = torch.randn(N, V, device=device, dtype=_half(device), requires_grad=True)
        targets = torch.randint(V, (N,), device=device)
        size = logits.numel() * logits.element_size()
        work = {"forward": size, "backward": 2 * size}
        ours = partial(kernels.cross_entropy, backend="triton")
        for kind, function, theirs in (
            ("cross_entropy", ours, plain),
            ("cross_entropy, capped, z-loss", partial(ours, softcap=30.0, z_loss=1e-4), capped),
        ):
            who = with_compiled({"ours": function, "torch eager": theirs}, smoke)
            yield Task(kind, f"{N} x {V}", "GB/s", work, (logits, targets), who, {})
    hidden, weight = (torch.randn(n, C, device=device, dtype=_half(device), requires_grad=True) for n in (N, V))
    shape, inputs = f"{N} x {C} to {V}", (hidden, weight, targets)
    over_linear = partial(kernels.linear_cross_entropy, backend="triton")
    who = with_compiled({"ours": over_linear, "torch eager": linear}, smoke)
    # Ours makes the gradients in the forward, so only the sum of both directions compares.
    yield Task("linear_cross_entropy", shape, "TFLOP/s", {"both": 6 * N * C * V}, inputs, who, {})
    who = with_compiled({"ours": partial(over_linear, reduction="none"), "torch eager": each}, smoke)
    # Ours computes the logits again in the backward, which is not counted as work.
    work = {"forward": 2 * N * C * V, "backward": 4 * N * C * V}
    yield Task("linear_cross_entropy a row", shape, "TFLOP/s", work, inputs, who, {})


def _half(device: str) -> torch.dtype:
    return torch.float32 if device == "cpu" else torch.bfloat16


# The operations by kind, each with its sizes.
TASKS: dict[str, Callable[[str, bool], Iterator[Task]]] = {
    "attention": attention_tasks, "norm": norm_tasks, "cross_entropy": cross_entropy_tasks,
}  # fmt: skip
