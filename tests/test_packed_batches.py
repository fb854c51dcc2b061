"""Rows laid end to end, without padding: they hold what the padded batch holds, cost the same, and wait for nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from data import end_to_end as laying
from data.batches import IGNORE, Batch
from data.end_to_end import end_to_end, rounded_up
from engine.run import report
from engine.training import trainer
from engine.training.metrics import Metrics
from engine.training.trainer import Trainer
from finetune.classify.classifier import Classifier
from kernels import Attention
from nanogpt.block import Block
from nanogpt.model import Transformer
from tests.helpers import configure, ok
from tests.kernel_helpers import DEVICE
from tests.matrices import matrix
from tests.test_backends import NARROW, losses
from tests.test_contract import gradients
from tests.variants import VOCAB, build

FIXED = settings(max_examples=60, deadline=None, derandomize=True)
T = 10
SMALL = {"context": T, "n_layer": 1, "n_head": 2}
TRITON_ATTENTION = {**SMALL, "attention": "triton"}
interpreted = pytest.mark.skipif(DEVICE != "cpu", reason="tensors without values stand for a GPU's")


def padded(lengths: list[int], width: int = T, holes: float = 0.2, weighted: bool = False) -> Batch:
    """A batch of rows whose last target stands at these lengths (0: a row without one), some targets before missing."""
    random = torch.Generator().manual_seed(sum(lengths))
    tokens, targets = torch.randint(6, VOCAB, (2, len(lengths), width), generator=random)
    hole = torch.rand(targets.shape, generator=random) < holes
    for row, (length, missing) in enumerate(zip(lengths, hole, strict=True)):
        targets[row, : max(0, length - 1)][missing[: max(0, length - 1)]] = IGNORE
        targets[row, length:] = IGNORE
    weight = torch.rand(targets.shape, generator=random) if weighted else None
    count = int((targets != IGNORE).sum())
    return Batch(tokens.numpy(), targets.numpy(), count, weight=None if weight is None else weight.numpy())


@pytest.fixture
def small_steps(monkeypatch):
    """Sizes of a few positions, so that few rows do."""
    monkeypatch.setattr(laying, "MIN_STEP", 8)


@FIXED
@given(st.lists(st.integers(0, T), min_size=1, max_size=70), st.booleans())
def test_rows_end_to_end_are_the_rows_without_their_padding(lengths, weighted):
    batch = padded(lengths, weighted=weighted)
    packed = end_to_end(batch)
    if packed is batch:
        assert packed.starts is None and rounded_up(sum(lengths)) >= batch.tokens.size
        return
    assert packed.starts.dtype == np.int32 and np.diff(packed.starts).tolist() == lengths
    assert packed.tokens.shape == packed.targets.shape == (1, rounded_up(sum(lengths)))
    assert packed.n_tokens == batch.n_tokens and packed.divisor == pytest.approx(batch.divisor)
    for name in ("tokens", "targets", "weight") if weighted else ("tokens", "targets"):
        rows = np.split(getattr(packed, name)[0], packed.starts[1:].tolist())[:-1]
        wanted = [row[:length] for row, length in zip(getattr(batch, name), lengths, strict=True)]
        assert all(np.array_equal(a, b) for a, b in zip(rows, wanted, strict=True)), name
    assert (packed.targets[0, sum(lengths) :] == IGNORE).all()


def test_few_sizes_occur_and_little_is_added():
    sizes = [rounded_up(count) for count in range(1, 8193)]
    assert all(0 <= size - count < max(128, size / 8) for count, size in enumerate(sizes, 1))
    assert len(set(sizes[4096:])) == 8 and len(set(sizes)) == 32


def loss_of(batch: Batch, model: torch.nn.Module) -> list[torch.Tensor]:
    """The loss, the number of targets, the gradients and the running statistics after a training step's forward and
    backward on `batch`."""
    there = batch.to(torch.device(DEVICE))
    options = {name: x for name in ("starts", "weight") if (x := getattr(there, name)) is not None}
    out = model(there.tokens, there.targets, want_logits=False, **options)
    out.nll_sum.backward()
    return [out.nll_sum.detach(), out.n_tokens, *gradients(model), *model.state_dict().values()]


CASES = {
    "learned": {},
    "sinusoidal": {"positions": "sinusoidal", "norm": "layer", "label_smoothing": 0.1},
    "rope, grouped, window": {"positions": "rope", "n_kv_head": 1, "window": 3, "qk_norm": True, "norm": "rms"},
    "alibi, window, capped": {"positions": "alibi", "window": 4, "attention_cap": 0.5, "n_kv_head": 1},
    "values": {"value_embeddings": True, "value_residual": True, "positions": "rope", "n_kv_head": 2},
    "statistics of the batch": {"norm": "batch"},
}
EVERYDAY = {"rope, grouped, window", "alibi, window, capped", "values", "statistics of the batch"}


@pytest.mark.parametrize("case", matrix(CASES, EVERYDAY.__contains__))
def test_rows_end_to_end_cost_what_the_padded_batch_costs(case, small_steps):
    batch = padded([3, 10, 0, 1, 4], weighted=case.startswith("rope"))
    packed = end_to_end(batch)
    spare = packed.tokens.shape[1] - int(packed.starts[-1])
    assert spare > 0 and packed.tokens.size < batch.tokens.size
    found, computed = [], []
    for some, options in ((packed, TRITON_ATTENTION), (batch, {**SMALL, "attention": "torch"})):
        model = build("transformer", **CASES[case], **options).float().to(DEVICE).train()
        model.h[0].mlp.register_forward_hook(lambda module, given, result: computed.append(given[0].shape))
        assert model.takes_packed(torch.device(DEVICE)) == (some is packed)
        found.append(loss_of(some, model))
    assert computed[0] == (1, packed.tokens.size, model.n_embd)
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=1e-5, atol=1e-5 * max(1, float(b.abs().max())))


def test_attention_drops_what_it_drops_of_a_padded_batch():
    lengths = [3, 10, 0, 7]
    attend = Attention(dropout=0.5, backend="triton").train()
    q, k, v = torch.randn(3, len(lengths), 2, T, 8, device=DEVICE)
    kept = torch.arange(T) < torch.tensor(lengths)[:, None]
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    torch.manual_seed(0)
    whole = attend(q, k, v).transpose(1, 2)[kept]
    torch.manual_seed(0)
    packed = attend.packed(*(x.transpose(1, 2)[kept].transpose(0, 1)[None] for x in (q, k, v)), starts)
    assert torch.allclose(packed[0].transpose(0, 1), whole, atol=1e-5)
    assert not torch.equal(whole, attend.eval()(q, k, v).transpose(1, 2)[kept])


@pytest.mark.parametrize(
    ("name", "change"),
    {
        "torch's attention": lambda model: setattr(model.h[0].attn.attend, "backend", "torch"),
        "auto, which is torch's": lambda model: setattr(model.h[0].attn.attend, "backend", "auto"),
        "later tokens are seen": lambda model: model.see_ahead(3),
        "a hook on a block": lambda model: model.h[0].register_forward_hook(lambda *_: None),
        "a hook on an attention": lambda model: model.h[0].attn.attend.register_forward_hook(lambda *_: None),
        "another class of block": lambda model: setattr(model.h[0], "__class__", type("B", (Block,), {})),
        "another block": lambda model: model.h.__setitem__(0, torch.nn.Identity()),
        "another model": lambda model: setattr(model, "__class__", type("M", (Transformer,), {})),
        "another embed": lambda model: setattr(model, "embed", model.embed),
    }.items(),
)
def test_the_plain_way_is_taken_where_rows_end_to_end_would_not_be_the_same(name, change):
    model = build("transformer", **TRITON_ATTENTION)
    assert model.takes_packed(torch.device(DEVICE))
    change(model)
    assert not model.takes_packed(torch.device(DEVICE))


@pytest.mark.parametrize("name", ["transformer hashed", "transformer mixed", "gru fused", "ngram 2"])
def test_other_families_and_options_keep_their_padding(name):
    assert not build(name, **TRITON_ATTENTION).takes_packed(torch.device(DEVICE))


def test_what_rows_end_to_end_cannot_be_is_refused(small_steps):
    model = build("transformer", **TRITON_ATTENTION).float().to(DEVICE)
    packed = end_to_end(padded([2, T + 1, 1], T + 1)).to(torch.device(DEVICE))
    tokens = packed.tokens
    with pytest.raises(ValueError, match="a row of 11 tokens is longer than the context of 10"):
        model(tokens, starts=packed.starts)
    with pytest.raises(ValueError, match="have no state before them"):
        model(tokens, state={"tokens": tokens}, starts=packed.starts)


class Watch(TorchDispatchMode):
    """Takes note of every copy from one device to another, and whether it blocks; of the sizes of products, too."""

    def __init__(self):
        super().__init__()
        self.blocking, self.rows = [], set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        if function.name() == "aten::_to_copy" and args[0].device != result.device:
            self.blocking.append(not (kwargs or {}).get("non_blocking", False))
        if function.name() in ("aten::addmm", "aten::mm"):
            self.rows.add(args[-2].shape[0])
        return result


def trainer_of(model: torch.nn.Module, folder, device: str) -> Trainer:
    config = configure(model="transformer", dtype="float32", context=T, optimizer="adamw")
    return Trainer(model, None, list, np.ones(VOCAB), config, folder, torch.device(device), Metrics(folder))


@interpreted
@pytest.mark.parametrize("case", matrix(CASES, EVERYDAY.__contains__))
def test_training_on_another_device_lays_rows_end_to_end_and_waits_for_nothing(case, small_steps, tmp_path):
    """A tensor on the device "meta" has no values: whatever asks for one fails, as on a GPU it would wait."""
    model = build("transformer", **CASES[case], **TRITON_ATTENTION, dropout=0.1).float().to("meta").train()
    training, batch = trainer_of(model, tmp_path, "meta"), padded([3, 10, 0, 1, 4, 2, 10])
    laid = end_to_end(batch).to(torch.device("meta"))
    assert laid.tokens.device.type == "meta" and laid.starts.device.type == "cpu"
    with Watch() as watch:
        training.backward(training.prepare(batch), batch.divisor)
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert watch.rows and batch.tokens.size not in watch.rows
    before = 2 + 1  # tokens and targets, which a GPU gets from pinned memory without blocking, and the trainer's starts
    assert len(watch.blocking) == before + len(model.h) and not any(watch.blocking[2:])


def test_a_fine_tuned_model_of_another_kind_trains_with_its_padding(small_steps, tmp_path):
    made = Classifier(build("transformer", **TRITON_ATTENTION).float(), 3, pooling="last").to(DEVICE)
    batch = padded([3, 2, 9])
    batch.targets[batch.targets != IGNORE] %= 3
    training = trainer_of(made, tmp_path, DEVICE)
    loss = training.backward(training.prepare(batch), batch.divisor)
    assert float(loss) > 0


def test_a_compiler_takes_the_whole_and_a_new_size_is_the_same_to_it(small_steps):
    model = build("transformer", **CASES["rope, grouped, window"], **TRITON_ATTENTION).float().to(DEVICE).train()
    sizes = []

    def counted(graph, inputs):
        sizes.append(len(inputs))
        return graph.forward

    compiled = torch.compile(model.forward, backend=counted, fullgraph=True)
    for lengths in ([3, 10, 0, 1], [10, 10, 1, 6], [1, 1, 1, 1]):
        packed = end_to_end(padded(lengths)).to(torch.device(DEVICE))
        found = [
            f(packed.tokens, packed.targets, want_logits=False, starts=packed.starts).nll_sum for f in (compiled, model)
        ]
        assert torch.allclose(*found, rtol=1e-5)
    assert len(sizes) == 2  # the first size, then any


@interpreted
def test_a_run_on_triton_lays_its_lines_end_to_end(cli, names, small_steps, monkeypatch, tmp_path):
    """Through the command line: the losses of torch's attention on the padded lines."""
    laid = tmp_path / "laid"

    def noted(batch):
        packed = end_to_end(batch)
        with laid.open("a") as file:
            print(packed.tokens.size, batch.tokens.size, file=file)
        return packed

    monkeypatch.setattr(trainer, "end_to_end", noted)
    monkeypatch.setattr(report, "samples", lambda *run: ("", {}))
    flags = ("--data", names, "--kind", "lines", *NARROW, "--steps", 4, "--batch-size", 4, "--eval-interval", 4)
    for backend in ("torch", "triton"):
        ok(cli("train.py", *flags, "--eval-tokens", 20, "--attention", backend, "--out", backend))
        assert laid.exists() == (backend == "triton")
    sizes = [tuple(map(int, line.split())) for line in laid.read_text().splitlines()]
    assert len(sizes) == 4 and any(packed < padded for packed, padded in sizes)
    assert losses(tmp_path / "torch") == pytest.approx(losses(tmp_path / "triton"), abs=1e-4)
