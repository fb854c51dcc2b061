"""Optimizers and schedules: Muon against torch's, who decays, accumulated gradients, and the learning rate's course."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from data.batches import IGNORE, Batch
from data.loaders import Deal, Loader
from engine import runtime
from engine.config.sections import OPTIMIZERS, SCHEDULES, Config
from engine.registry import build_model
from engine.training import optimizers
from engine.training.lora import add_lora
from engine.training.metrics import Metrics
from engine.training.optimizers import Muon, make_optimizers, orthogonalise, orthogonalise_directly
from engine.training.schedules import lr_factor
from engine.training.trainer import Trainer
from tests.conftest import TINY
from tests.helpers import configure

FIXED = settings(max_examples=60, deadline=None, derandomize=True)
SMALL = {"context": 8, "n_layer": 2, "n_head": 2, "n_embd": 16, "n_hidden": 12, "order": 3, "activation": "tanh"}
VOCAB = 20


def config_of(model: str, **options) -> Config:
    return configure(**{**SMALL, "model": model, **options})


def build(config: Config) -> nn.Module:
    torch.manual_seed(0)
    return build_model(config, VOCAB)


def muons(
    shapes: list[tuple[int, ...]], weight_decay: float, half: bool = False, steps: int = 6
) -> list[tuple[torch.Tensor, ...]]:
    """Parameters of these shapes after `steps` under our Muon, under torch's (flattened), and where both started."""
    random = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=random) for shape in shapes]
    ours, theirs = [nn.Parameter(p.clone()) for p in start], [nn.Parameter(p.flatten(1).clone()) for p in start]
    optimizers = (
        Muon(ours, lr=0.05, momentum=0.9, weight_decay=weight_decay, half=half),
        torch.optim.Muon(theirs, lr=0.05, momentum=0.9, weight_decay=weight_decay),
    )
    for _ in range(steps):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=random)
            b.grad = a.grad.flatten(1)
        for optimizer in optimizers:
            optimizer.step()
    return [(a.detach(), b.detach().view(a.shape), c) for a, b, c in zip(ours, theirs, start, strict=True)]


@pytest.mark.parametrize("shapes", [[(24, 8)], [(8, 24)], [(16, 16), (16, 16), (8, 24)], [(6, 4, 5)]], ids=str)
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
@pytest.mark.parametrize("half", [False, True])
def test_muon_takes_the_same_steps_as_that_of_torch(shapes, weight_decay, half):
    for ours, theirs, start in muons(shapes, weight_decay, half):
        # torch's iterates in bfloat16, which has 3 digits: each step is off by about 1 %
        assert (ours - theirs).norm() < 0.03 * (theirs - start).norm()


def test_muon_takes_parameters_of_one_size_and_different_shapes_together():
    for ours, theirs, start in muons([(4, 6), (4, 2, 3)], 0.0):
        assert (ours - theirs).norm() < 0.03 * (theirs - start).norm()


@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (12, 12)])
def test_an_orthogonalised_matrix_keeps_its_directions_and_loses_its_sizes(shape):
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    y = orthogonalise(x, Muon.COEFFICIENTS, Muon.ITERATIONS)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    inner = torch.diagonal(u.mT @ y @ v.mT, dim1=1, dim2=2)
    assert ((0.5 < inner) & (inner < 1.3)).all()
    assert torch.allclose(u @ torch.diag_embed(inner) @ v, y, atol=1e-4)


class Products(TorchDispatchMode):
    """Notes what CUDA's products are set to at each product, whose factors are rounded to TF32 where they are."""

    def __init__(self):
        super().__init__()
        self.set_to: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.name() in ("aten::bmm", "aten::baddbmm", "aten::mm"):
            self.set_to.append(torch.backends.cuda.matmul.fp32_precision)
            if self.set_to[-1] == "tf32":
                args = (*args[:-2], *map(to_tf32, args[-2:]))
        return function(*args, **kwargs or {})


def to_tf32(x: torch.Tensor) -> torch.Tensor:
    """float32 with 10 of its 23 bits."""
    bits = (x.contiguous().view(torch.int32) + (1 << 12)) & -(1 << 13)
    return bits.view(torch.float32)


def test_muons_iteration_alone_is_in_tf32_where_the_device_has_it(monkeypatch):
    monkeypatch.setattr(runtime, "multiplies_tf32", lambda device: True)
    before = torch.backends.cuda.matmul.fp32_precision
    weight = nn.Parameter(torch.randn(8, 16))
    optimizer = Muon([weight], lr=0.1)
    with Products() as products:
        (torch.randn(4, 8) @ weight).sum().backward()
        assert products.set_to and set(products.set_to) == {before} and before != "tf32"
        products.set_to.clear()
        optimizer.step()
        assert len(products.set_to) == 3 * Muon.ITERATIONS and set(products.set_to) == {"tf32"}
    assert torch.backends.cuda.matmul.fp32_precision == before
    monkeypatch.setattr(optimizers, "orthogonalise_directly", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_in_tf32_the_iteration_keeps_what_products_of_gram_matrices_lose():
    """Singular values from 1 to 1e-4, as a momentum's may be."""
    torch.manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(2, 64, 64))[0] for _ in range(2))
    x, numbers = (u * torch.logspace(0, -4, 64)) @ v, (Muon.COEFFICIENTS, Muon.ITERATIONS)
    exact = orthogonalise(x, *numbers)
    with runtime.in_tf32(), Products():
        directly, on_gram = orthogonalise_directly(x, *numbers, torch.float32), orthogonalise(x, *numbers)
    assert (directly - exact).norm() < 0.005 * exact.norm()
    assert (on_gram - exact).norm() > 0.02 * exact.norm()


@pytest.mark.parametrize(
    ("device", "capability", "has"), [("cpu", (9, 0), False), ("cuda", (7, 5), False), ("cuda", (8, 0), True)]
)
def test_which_devices_have_tf32(monkeypatch, device, capability, has):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert runtime.multiplies_tf32(torch.device(device)) is has


def test_muon_leaves_what_has_no_gradient_and_survives_a_zero_one():
    still, zero = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3, 4))
    zero.grad = torch.zeros(3, 4)
    Muon([still, zero], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(still, torch.ones(3, 4)) and torch.allclose(zero, torch.full((3, 4), 0.95))


MATRICES = {  # what multiplies: these decay, and Muon takes them, but for the head
    "bigram": set(),
    "mlp": {"layers.0.weight", "layers.1.weight", "lm_head.weight"},
    "cnn": {*(f"layers.{i}.{part}.weight" for i in (0, 1) for part in ("taps", "out")), "mix.weight", "lm_head.weight"},
    "gru": {*(f"layers.{i}.weight_{part}_l0" for i in (0, 1) for part in ("ih", "hh")), "lm_head.weight"},
    "transformer": {
        *(f"h.{i}.{part}.weight" for i in (0, 1) for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")),
        "lm_head.weight",
    },
}  # fmt: skip


@pytest.mark.parametrize("model", MATRICES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("tie_head", [True, False])
def test_matrices_decay_and_biases_gains_and_embeddings_do_not(model, optimizer, tie_head):
    config = config_of(model, optimizer=optimizer, weight_decay=0.5, tie_head=tie_head)
    built = build(config)
    for p in built.parameters():
        p.data += 0.1  # a bias of zero could not be seen to decay
        p.grad = torch.zeros_like(p)
    before = {name: p.detach().clone() for name, p in built.named_parameters()}
    for made in make_optimizers(built, config.optim):
        made.step()
    moved = {name for name, p in built.named_parameters() if not torch.equal(p, before[name])}
    assert moved == MATRICES[model] & before.keys()


@pytest.mark.parametrize("model", MATRICES)
def test_muon_gets_the_inner_matrices_and_adamw_the_rest_once_each(model):
    config = config_of(model, optimizer="muon", tie_head=False, lr=0.001, muon_lr=0.02)
    built = build(config)
    taken = {
        type(made).__name__: [p for g in made.param_groups for p in g["params"]]
        for made in make_optimizers(built, config.optim)
    }
    names = {id(p): name for name, p in built.named_parameters()}
    assert {names[id(p)] for p in taken.get("Muon", [])} == MATRICES[model] - {"lm_head.weight"}
    assert sorted(names[id(p)] for ps in taken.values() for p in ps) == sorted(names.values())
    peaks = {
        type(made).__name__: {g["peak_lr"] for g in made.param_groups} for made in make_optimizers(built, config.optim)
    }
    assert peaks == {name: {0.02 if name == "Muon" else 0.001} for name in taken}


def muon_names(model: nn.Module) -> set[str]:
    """The names of the parameters that Muon takes."""
    muon = make_optimizers(model, config_of("transformer", optimizer="muon").optim)[0]
    assert isinstance(muon, Muon)
    taken = {id(p) for group in muon.param_groups for p in group["params"]}
    return {name for name, p in model.named_parameters() if id(p) in taken}


def test_the_model_says_which_matrices_are_hidden_ones_and_not_their_names():
    hidden = MATRICES["transformer"] - {"lm_head.weight"}
    mixed = build(config_of("transformer", tie_head=False, mix_ngram=2))
    assert muon_names(mixed) == {f"neural.{name}" for name in hidden}
    gated = build(config_of("transformer", tie_head=False))
    gated.h[0].mlp.gate = nn.Linear(16, 16)
    assert muon_names(gated) == hidden | {"h.0.mlp.gate.weight"}
    add_lora(gated, 2, 4.0, "c_fc,gate")
    adapted = ("h.0.mlp.c_fc", "h.0.mlp.gate", "h.1.mlp.c_fc")
    assert muon_names(gated) == {f"{name}.lora_{factor}" for name in adapted for factor in "ab"}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss_with_its_defaults(cli, names, tmp_path, optimizer):
    flags = ["--data", names, "--kind", "lines", "--steps", 40, "--eval-interval", 20, "--warmup", 2, "--out", "run"]
    trained = cli("train.py", "--model", "mlp", "--optimizer", optimizer, *TINY["mlp"], *flags)
    assert trained.code == 0, trained.err
    losses = [json.loads(line)["val_loss"] for line in open(tmp_path / "run" / "metrics.jsonl")]
    assert len(losses) == 3 and losses[0] > losses[1] + 0.05 and losses[1] > losses[2]


class Given(Loader):
    """These batches, in this order."""

    def __init__(self, batches: list[Batch]):
        super().__init__(1, 0)
        self.batches = iter(batches)

    def deal(self) -> Deal:
        return Deal(np.arange(1))

    def batch(self, deal: Deal) -> Batch:
        return next(self.batches)


def batch_of(rows: int, valid: int, seed: int) -> Batch:
    """A batch with `valid` targets that count in each row."""
    random = torch.Generator().manual_seed(seed)
    tokens, targets = torch.randint(6, VOCAB, (2, rows, 8), generator=random)
    targets[:, valid:] = IGNORE
    return Batch(tokens, targets, rows * valid)


def train_on(batches: list[Batch], folder, **options) -> tuple[Trainer, dict[str, torch.Tensor]]:
    """The trainer and the weights after one step on these batches."""
    config = config_of("transformer", steps=1, warmup=0, schedule="constant", grad_accum=len(batches), **options)
    folder.mkdir()
    parts = Given(batches), lambda: iter(batches[:1]), torch.ones(VOCAB).long().numpy()
    trainer = Trainer(build(config), *parts, config, folder, torch.device("cpu"), Metrics(folder))
    trainer.train()
    return trainer, {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("valid", [(8, 8), (8, 1), (3, 0)])
@pytest.mark.parametrize("grad_clip", [0.0, 0.1])
def test_two_half_batches_are_one_batch_however_their_targets_are_spread(tmp_path, valid, grad_clip):
    halves = [batch_of(3, count, seed) for seed, count in enumerate(valid)]
    whole = Batch(*(torch.cat(both) for both in zip(*(half[:2] for half in halves), strict=True)), 3 * sum(valid))
    options = {"optimizer": "sgd", "lr": 0.5, "weight_decay": 0.0, "grad_clip": grad_clip}
    (a, one), (b, two) = train_on([whole], tmp_path / "a", **options), train_on(halves, tmp_path / "b", **options)
    start = dict(build(a.config).named_parameters())
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)
    assert any((one[name] - start[name]).abs().max() > 1e-3 for name in one)
    assert a.progress.tokens == b.progress.tokens == 3 * sum(valid)
    assert a.progress.train_loss == pytest.approx(b.progress.train_loss, rel=1e-5)


def test_a_step_with_nothing_to_predict_changes_nothing(tmp_path):
    _, after = train_on([batch_of(3, 0, 0)], tmp_path / "run", optimizer="sgd", weight_decay=0.0)
    before = build(config_of("transformer")).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in after)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_accumulating_on_the_command_line_equals_the_larger_batch(cli, text, tmp_path, optimizer):
    shared = ["--model", "transformer", *TINY["transformer"], "--data", text, "--context", 16, "--optimizer", optimizer]
    weights = []
    for name, flags in {"whole": ["--batch-size", 8], "parts": ["--batch-size", 2, "--grad-accum", 4]}.items():
        trained = cli("train.py", *shared, *flags, "--steps", 5, "--warmup", 1, "--out", name)
        assert trained.code == 0, trained.err
        weights.append(load_file(tmp_path / name / "last" / "model.safetensors"))
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-4) for name in weights[0])


STEPS, WARMUPS, FLOORS = st.integers(1, 500), st.integers(0, 100), st.floats(0, 1)


@pytest.mark.parametrize("schedule", SCHEDULES)
@FIXED
@given(steps=STEPS, warmup=WARMUPS, floor=FLOORS)
def test_the_warm_up_counts_steps_whatever_comes_after(schedule, steps, warmup, floor):
    rise = [lr_factor(schedule, step, steps, warmup, floor) for step in range(warmup)]
    assert rise == [(step + 1) / (warmup + 1) for step in range(warmup)]
    if warmup < steps:
        assert lr_factor(schedule, warmup, steps, warmup, floor) == pytest.approx(1)


@pytest.mark.parametrize("schedule", SCHEDULES)
@FIXED
@given(steps=STEPS, warmup=WARMUPS, floor=FLOORS)
def test_after_the_warm_up_it_only_falls_smoothly_and_ends_at_its_floor(schedule, steps, warmup, floor):
    course = [lr_factor(schedule, step, steps, warmup, floor) for step in range(warmup, max(steps, warmup + 1) + 1)]
    falls = [a - b for a, b in zip(course, course[1:], strict=False)]
    assert min(falls) >= -1e-12
    end = {"constant": 1.0, "step": 0.01}.get(schedule, floor)
    assert course[-1] == pytest.approx(end) == lr_factor(schedule, 10 * (steps + warmup), steps, warmup, floor)
    steepest = {"constant": 0, "linear": 1, "cosine": math.pi / 2, "wsd": 5, "step": math.inf}[schedule]
    assert max(falls) <= steepest * (1 - floor) / (len(course) - 1) + 1e-12


def test_step_falls_to_a_tenth_after_each_third_and_wsd_over_the_last_fifth():
    assert [lr_factor("step", s, 9, 0, 0.1) for s in range(9)] == pytest.approx([1] * 3 + [0.1] * 3 + [0.01] * 3)
    course = [lr_factor("wsd", s, 100, 0, 0.2) for s in range(101)]
    assert (
        course[:81] == pytest.approx([1] * 81)
        and course[90] == pytest.approx(0.6)
        and course[100] == pytest.approx(0.2)
    )


def test_the_run_follows_its_schedule(cli, text, tmp_path):
    flags = ["--schedule", "linear", "--lr-floor", 0.5, "--warmup", 3, "--lr", 0.4, "--steps", 7, "--eval-interval", 1]
    trained = cli("train.py", "--model", "bigram", "--data", text, *flags, "--out", "run")
    assert trained.code == 0, trained.err
    rates = [json.loads(line)["lr"] for line in open(tmp_path / "run" / "metrics.jsonl")]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.35, 0.3, 0.25, 0.2])
