"""float32 or bfloat16: what `--dtype auto` becomes, on a CPU by trying both on the model itself."""

import copy
import time
from typing import Any

import torch
from torch import nn

from data.terminal import show
from engine import runtime
from engine.config.settings import replace
from engine.distributed.ranks import Ranks
from engine.flops import multiplied

LEAST_WORK = 2e10  # operations of a step's matrix products below which half of them gains less than casting costs
PROBE_WORK = 4e10  # operations of one pass of the probe, which has two of each kind; more for the largest models ...
PROBE_TOKENS = 256  # ... since with fewer tokens casting the weights is what is measured
GAIN = 1.1  # how much faster a pass has to be: the probe is short, and a loss in half precision is a little rougher


def settle(config: Any, device: torch.device, model: nn.Module, ranks: Ranks) -> Any:
    """`config` with the arithmetic that `--dtype` becomes for a new run, which keeps it. On a CPU that multiplies
    bfloat16 itself both are tried on `model`, and what came out is printed."""
    if config.machine.dtype != "auto" or config.net.is_counted:
        return config
    chosen = ranks.tell(_choose(config, device, model) if ranks.is_first else None)
    return replace(config, dtype=chosen)


def resumed(config: Any, stored: dict[str, Any]) -> Any:
    """`config` of a run that goes on, where auto is what the run has. A run from before this was kept has auto itself,
    which on a CPU is float32."""
    return replace(config, dtype=stored.get("dtype", "auto")) if config.machine.dtype == "auto" else config


def _choose(config: Any, device: torch.device, model: nn.Module) -> str:
    if device.type != "cpu" or not runtime.multiplies_bfloat16():
        return _name(runtime.choose_dtype("auto", device)[0])
    body = getattr(model, "neural", getattr(model, "body", model))
    context = config.net.context or getattr(body, "context", None) or 64
    a_token = 6 * multiplied(body)  # of a forward and a backward pass
    if a_token * context * config.optim.batch_size < LEAST_WORK:
        return "float32"
    tokens = max(PROBE_TOKENS, min(config.optim.batch_size * context, int(PROBE_WORK / a_token)))
    context = min(context, tokens)
    seconds = {dtype: probe(body, tokens // context, context, dtype) for dtype in (torch.float32, torch.bfloat16)}
    ratio = seconds[torch.float32] / seconds[torch.bfloat16]
    chosen = torch.bfloat16 if ratio > GAIN else torch.float32
    show(f"arithmetic: {_name(chosen)}, since a pass in bfloat16 is {ratio:.2f} times as fast here as one in float32")
    return _name(chosen)


def probe(body: Any, rows: int, context: int, dtype: torch.dtype) -> float:
    """Seconds of the quicker of two forward and backward passes of a copy of `body` over any tokens (rows, context),
    after one of a single row to warm up. Torch's generators are left as they were."""
    model = copy.deepcopy(body).train()
    tokens = torch.arange(rows * context).reshape(rows, context) * 7919 % body.vocab_size
    taken = []
    with torch.random.fork_rng(devices=[]):
        for read in (tokens[:1], tokens, tokens):
            started = time.perf_counter()
            with runtime.autocast(torch.device("cpu"), dtype):
                hidden = model.hidden(read, None, None)[0]
            if hidden.requires_grad:
                hidden.float().sum().backward()
            taken.append(time.perf_counter() - started)
    return min(taken[1:])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
