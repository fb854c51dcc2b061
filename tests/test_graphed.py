"""`--cuda-graph on`: the step of a training replayed, on a CPU whose graphs know what a CUDA graph knows.

Such a graph is the list of torch's operations with the tensors and numbers that they were called with. Replaying it
runs no other Python: a number that was read at the capture stays what it was, and so does what lies in another tensor
than at the capture.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from bench.gpu import graphs
from data.loaders import Loader
from engine.registry import build_model
from engine.training import graphed, losses, trainer
from engine.training.optimizers import Muon, make_optimizers
from makemore import compiled
from nanogpt.model import Transformer
from tests.helpers import LINES, STREAM, TERM, at_call, configure, left, ok, quick, refused


def waits(func, args) -> bool:
    """Whether a GPU is waited for: for a number, for a size, for a copy from memory that is not pinned."""
    if func is torch.ops.aten.index.Tensor:
        return any(x is not None and x.dtype == torch.bool for x in args[1])
    tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    return func is torch.ops.aten.lift_fresh.default or not tags.isdisjoint(func.tags)


@pytest.fixture(autouse=True)
def texts(names, text):
    """names.txt and text.txt stand where the commands run."""


class Recorder(TorchDispatchMode):
    """Notes each operation: what it is, and the tensors and numbers that it reads and writes."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if waits(func, args):
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        before = tree_map(as_it_is, (args, kwargs or {}))
        out = func(*args, **(kwargs or {}))
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not is_view and torch.Tag.inplace_view not in func.tags:
            self.calls.append((func, *before, tree_map(as_it_is, out)))
        return out


def as_it_is(x):
    """A tensor of the same memory, whose shape stays what it is."""
    return x.detach() if isinstance(x, torch.Tensor) else x


class CpuGraphs:
    """What stands in for `graphed.Graphs`. The capture computes, too, in place of the first replay."""

    def __init__(self, device):
        pass

    def aside(self, act):
        return act()

    def capture(self, act):
        with Recorder() as recorder:
            result = act()
        with open("captures", "a") as file:
            file.write(f"{len(recorder.calls)}\n")
        is_new = True

        def replay():
            nonlocal is_new
            if not is_new:
                for func, args, kwargs, out in recorder.calls:
                    again = func(*args, **kwargs)
                    for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                        if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                            old.copy_(new)
            is_new = False
            return result

        return replay


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The CPU has graphs, and is computed on by torch's operations alone; padding is not left out, losses are read
    late."""
    monkeypatch.setattr(graphed, "has_graphs", lambda device: True)
    monkeypatch.setattr(graphed, "Graphs", CpuGraphs)
    monkeypatch.setattr(compiled, "functions", lambda: None)
    monkeypatch.setattr(Transformer, "_packing", lambda self, valid: None)
    monkeypatch.setattr(trainer, "Losses", lambda ranks, device: read_late(losses.Losses(ranks, device)))


def read_late(each: losses.Losses) -> losses.Losses:
    each.reads_every = 5
    return each


@pytest.fixture
def rounded(monkeypatch):
    """Learning rates are those of float32 without graphs, too."""

    original = trainer.set_lr

    def set_lr(optimizer, factor):
        original(optimizer, factor)
        for group in optimizer.param_groups:
            if isinstance(group["lr"], float):
                group["lr"] = float(np.float32(group["lr"]))

    monkeypatch.setattr(trainer, "set_lr", set_lr)


def captures(folder: Path = Path()) -> list[int]:
    """How many operations each graph has."""
    return [int(line) for line in (folder / "captures").read_text().split()]


LONG = {"steps": 20, "eval_interval": 6, "lr": 0.01, "grad_clip": 0.5}
DROPS = STREAM | LONG | {"model": "transformer", "dropout": 0.2, "grad_accum": 2, "optimizer": "adamw"}
CASES = {
    "transformer": DROPS,
    "unclipped": DROPS | {"grad_clip": 0, "grad_accum": 1, "optimizer": "adam"},
    "recomputed": DROPS | {"dropout": 0, "activation_checkpointing": True},
    "lstm": STREAM | LONG | {"model": "lstm", "cells": "written"},
    "cnn": LINES | LONG | {"model": "cnn", "norm": "batch"},
    "mixture": LINES | LONG | {"model": "transformer", "mix_ngram": 3, "optimizer": "adamw"},
}


@pytest.mark.parametrize("case", CASES)
def test_the_bits_are_those_of_the_plain_loop(cli, tmp_path, as_on_a_gpu, rounded, case):
    ok(cli("train.py", *quick(**CASES[case], out="plain")))
    assert not Path("captures").exists()
    ok(cli("train.py", *quick(**CASES[case]), "--cuda-graph", "on"))
    assert len(captures()) >= 2 and min(captures()) > 0
    assert left(tmp_path / "run") == left(tmp_path / "plain")


def test_muon_steps_as_in_the_plain_loop(cli, tmp_path, as_on_a_gpu):
    flags = DROPS | {"optimizer": "muon", "muon_lr": 0.05}
    ok(cli("train.py", *quick(**flags, out="plain")))
    ok(cli("train.py", *quick(**flags), "--cuda-graph", "on"))
    plain, replayed = (load_file(f"{run}/last/model.safetensors") for run in ("plain", "run"))
    for name, weight in plain.items():
        torch.testing.assert_close(replayed[name], weight, rtol=0, atol=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resume_goes_on_to_the_bit(cli, tmp_path, as_on_a_gpu, optimizer):
    flags = DROPS | {"optimizer": optimizer}
    ok(cli("train.py", *quick(**flags, out="straight"), "--cuda-graph", "on"))
    with at_call(Loader, "deal", 18, TERM):
        assert cli("train.py", *quick(**flags), "--cuda-graph", "on").code == 143
    ok(cli("train.py", "--resume", "--out", "run"))
    assert left(tmp_path / "run") == left(tmp_path / "straight")
    ok(cli("train.py", "--resume", "--out", "run", "--cuda-graph", "off", "--steps", 22))


def test_each_shape_has_a_graph_and_more_than_there_may_be_have_none(cli, tmp_path, as_on_a_gpu, rounded, monkeypatch):
    monkeypatch.setattr(graphed, "WARM_UP", 1)
    flags = LINES | LONG | {"model": "mlp", "grad_accum": 3}
    ok(cli("train.py", *quick(**flags, out="plain")))
    for most, n_graphs in ((1, 3), (9, 5)):
        monkeypatch.setattr(graphed, "MOST_SHAPES", most)
        Path("captures").unlink(missing_ok=True)
        ok(cli("train.py", *quick(**flags), "--overwrite", "--cuda-graph", "on"))
        assert len(captures()) >= n_graphs if most > 1 else len(captures()) == n_graphs
        assert left(tmp_path / "run") == left(tmp_path / "plain")


def test_rows_keep_their_padding(cli, tmp_path, as_on_a_gpu, rounded, monkeypatch):
    flags = LINES | LONG | {"model": "transformer", "optimizer": "adamw", "batch_size": 32}
    ok(cli("train.py", *quick(**flags, out="plain")))
    monkeypatch.setattr(Transformer, "takes_packed", lambda self, device: True)
    ok(cli("train.py", *quick(**flags), "--cuda-graph", "on"))
    assert left(tmp_path / "run") == left(tmp_path / "plain")


def classifying() -> tuple:
    """A command that trains a classifier, but for --out."""
    rows = [f"{'ab'[n % 2]}\t{'see' if n % 2 else 'win'} it {n % 7}" for n in range(80)]
    Path("rows.tsv").write_text("\n".join(rows) + "\n")
    return "-m finetune.classify", "--data", "rows.tsv", "--n-embd", 8, "--steps", 12, "--batch-size", 4


def test_a_classifier_trains_on_them(cli, tmp_path, as_on_a_gpu, rounded):
    ok(cli(*classifying(), "--out", "plain"))
    ok(cli(*classifying(), "--out", "run", "--cuda-graph", "on"))
    assert len(captures()) >= 2 and left(tmp_path / "run") == left(tmp_path / "plain")


ALONE_ON_ITS_DEVICE = [
    {"model": "transformer", "positions": "rope", "norm": "rms", "qk_norm": True},
    {"model": "transformer", "positions": "alibi", "dropout": 0.1, "z_loss": 1e-4, "norm": "batch"},
    {"model": "transformer", "positions": "sinusoidal", "window": 8, "label_smoothing": 0.1, "logit_cap": 30.0},
    {"model": "mlp", "order": 3},
    {"model": "rnn", "activation": "tanh"},
    *({"model": model} for model in ("bigram", "cnn", "lstm", "gru")),
]


@pytest.mark.parametrize("settings", ALONE_ON_ITS_DEVICE, ids=lambda settings: " ".join(map(str, settings.values())))
def test_a_step_reads_nothing_from_the_cpu(settings):
    """On a device without data, for one that could not be waited for: no number is read from it, none comes to it."""
    config = configure(**settings, context=16, optimizer="muon")
    model = build_model(config, 40).train().to("meta")
    tokens = torch.zeros(4, 16, dtype=torch.int64, device="meta")
    muon = [made for made in make_optimizers(model, config.optim) if isinstance(made, Muon)]
    for group in (group for made in muon for group in made.param_groups):
        group["lr"] = torch.zeros((), device="meta")
    weight = {"weight": torch.ones(4, 16, device="meta")} if "z_loss" in settings else {}
    with Recorder() as recorder:
        nll_sum = model(tokens, tokens, None, want_logits=False, **weight).nll_sum
        nll_sum.backward(torch.ones((), device="meta"))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for made in muon:
            made.step()
    assert len(recorder.calls) > 10
    assert {x.device.type for x in tree_leaves(recorder.calls) if isinstance(x, torch.Tensor)} == {"meta"}


def test_what_cannot_be_captured_is_refused_before_there_is_a_run(cli, as_on_a_gpu):
    for flags, reason in (
        ({"model": "lstm", "carry_state": True}, "--carry-state"),
        ({"model": "transformer", "dropout": 0.1, "activation_checkpointing": True}, "--activation-checkpointing"),
        ({"optimizer": "sgd"}, "--optimizer sgd is none of those that can be: adam, adamw, muon"),
        ({"model": "transformer", "hash_ngrams": 3}, "hashed n-grams"),
    ):
        refused(cli("train.py", *quick(**STREAM | flags), "--cuda-graph", "on"), reason, "use --cuda-graph off")
        assert not Path("run").exists()


def test_it_takes_a_gpu(cli):
    refused(cli("train.py", *quick(**STREAM), "--cuda-graph", "on"), "graphs are CUDA's", "on cpu")
    refused(cli("train.py", "--model", "ngram", "--data", "names.txt", "--cuda-graph", "on"), "--cuda-graph")
    ok(cli("train.py", *quick(**STREAM), "--cuda-graph", "auto"))


def test_several_processes_are_refused(ranks, text):
    words = quick(**STREAM)
    together = [each.wait() for each in ranks(2, "train.py", *words, "--cuda-graph", "on", "--device", "cpu")]
    assert all(each.code for each in together) and "graphs are CUDA's" in "".join(each.err for each in together)


def test_a_step_that_waits_for_the_gpu_is_said_with_the_way_out(cli, as_on_a_gpu):
    stopped = cli(*classifying(), "--z-loss", 0.1, "--out", "run", "--cuda-graph", "on")
    refused(stopped, "cannot be captured (operation not permitted when stream is capturing)", "--cuda-graph off")
    ok(cli("-m finetune.classify", "--resume", "--out", "run", "--cuda-graph", "off"))


def test_the_benchmark_says_how_far_the_losses_are_apart(cli, as_on_a_gpu):
    launched, replayed = graphs.measure("baby GPT", "off", smoke=True)
    assert launched.case == "--compile off, launched" and replayed.value > 0 and captures()
    assert float(replayed.note.split("at most ")[1].split()[0]) < 1e-3
