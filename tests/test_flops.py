"""Operations a token, what a device does at most, and what a run says of its speed."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from data.tokenizers import Special
from engine import flops, runtime
from engine.registry import build_model
from engine.run import results
from engine.training.progress import Progress
from tests.helpers import LINES, configure, evaluated, ok, quick, summary

SIZES = {"n_layer": 2, "n_embd": 32, "n_hidden": 24, "n_head": 4, "context": 16, "order": 3}
VOCABULARY, ROWS = 40, 3


def model_of(family: str, **options):
    return build_model(configure(model=family, **(SIZES | options)), VOCABULARY, Special()).train()


def counted_by_torch(model) -> float:
    """Operations a token of a forward and a backward pass, as torch's own counter sees them."""
    tokens = torch.randint(6, VOCABULARY, (ROWS, 16))
    with FlopCounterMode(display=False) as counter:
        model(tokens, tokens, want_logits=False).nll_sum.backward()
    return counter.get_total_flops() / tokens.numel()


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("transformer", {}),
        ("transformer", {"tie_head": False, "activation": "swiglu", "n_kv_head": 2}),
        ("transformer", {"positions": "rope", "hash_ngrams": 3}),
        ("mlp", {}),
        ("cnn", {}),
        ("rnn", {"cells": "written", "activation": "tanh"}),
        ("gru", {"cells": "written"}),
        ("lstm", {"cells": "written"}),
    ],
)
def test_as_many_operations_are_counted_as_torch_does(family, options):
    model = model_of(family, **options)
    mine = flops.flops_per_token(model, 16)
    # The first layer's input has no gradient where nothing trains below it; a cell's first state neither.
    assert counted_by_torch(model) == pytest.approx(mine, rel=0.12)


def test_a_window_a_frozen_weight_and_a_table_count_as_they_are():
    whole = flops.flops_per_token(model_of("transformer"), 16)
    assert whole - flops.flops_per_token(model_of("transformer", window=4), 16) == 12 * 2 * 32 * (16 - 4)
    model = model_of("transformer")
    frozen = model.h[0].mlp.c_fc.weight.requires_grad_(False)
    assert whole - flops.flops_per_token(model, 16) == 2 * frozen.numel()
    assert flops.flops_per_token(model_of("bigram"), 16) == 0


def test_the_peak_is_measured_once_and_quickly(monkeypatch):
    monkeypatch.setitem(flops.SIDES, "cpu", 128)
    flops.peak_flops.cache_clear()
    device = torch.device("cpu")
    assert flops.peak_flops(device, torch.float32) == flops.peak_flops(device, torch.float32) > 1e8
    assert flops.peak_flops.cache_info().misses == 1
    flops.peak_flops.cache_clear()


def test_the_share_is_of_all_the_devices(monkeypatch):
    monkeypatch.setattr(flops, "peak_flops", lambda device, dtype: 1e9)
    model, config = model_of("transformer"), configure(model="transformer", batch_size=4, grad_accum=2, **SIZES)
    progress = Progress(step=5, tokens=5 * 8 * 12, seconds=2.0)
    assert flops.mean_length(progress, config) == 12
    expected = flops.flops_per_token(model, 12) * progress.tokens / 2 / 1e9
    for world in (1, 4):
        found = flops.utilization(model, progress, config, torch.device("cpu"), world)
        assert found == pytest.approx(expected / world)


def test_a_run_on_a_gpu_says_its_share_and_its_memory_and_one_on_a_cpu_measures_nothing(cli, names, monkeypatch):
    words = quick("transformer", **LINES)

    def never(*of):
        raise AssertionError("a CPU is measured")

    monkeypatch.setattr(flops, "peak_flops", never)
    assert "MFU" not in ok(cli("train.py", *words)).out and "mfu" not in summary()
    of_gpu, held = flops.of_gpu, [123_400_000]

    def measured(device, dtype):
        held.append(10**9)  # by the matrices of the measurement
        return 1e12

    monkeypatch.setattr(flops, "peak_flops", measured)
    monkeypatch.setattr(runtime, "choose_dtype", lambda wanted, device: (torch.float32, "faked"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: held[-1])
    cuda = SimpleNamespace(type="cuda")
    monkeypatch.setattr(flops, "of_gpu", lambda m, p, c, device, world: of_gpu(m, p, c, cuda, world))
    of_memory = results.of_memory
    monkeypatch.setattr(results, "of_memory", lambda device: of_memory(cuda))
    said = ok(cli("train.py", *words, "--overwrite")).out
    found = summary()
    assert f"({found['tokens_per_second']:,} tokens/s, MFU {found['mfu']:.0%})" in said
    assert found["mfu"] > 0 and found["peak_tflops"] == 1 and found["gpu_peak_memory_mb"] == 123.4
    assert evaluated(cli).keys() == found.keys()
