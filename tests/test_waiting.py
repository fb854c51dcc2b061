"""What must not wait for a GPU, checked without one: a fake tensor has a shape and no values, so that whatever asks for
a value, or makes a shape of values, fails. On a GPU that is where the host would wait."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import nanogpt.graph_stepper
from data.batches import IGNORE
from engine.training.optimizers import make_optimizers
from finetune.classify.classifier import POOLINGS, Classifier
from nanogpt.graph_stepper import GraphStepper
from nanogpt.model import Transformer
from tests.helpers import configure
from tests.matrices import matrix
from tests.variants import VOCAB, B, build, every_neural, every_transformer, longest


def without_values(model: torch.nn.Module, mode: FakeTensorMode) -> torch.nn.Module:
    """`model` with fake tensors for its weights and buffers."""
    fakes: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                fake = fakes.setdefault(id(weight), torch.nn.Parameter(mode.from_tensor(weight).detach()))
                module._parameters[name] = fake
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else mode.from_tensor(buffer)
    return model


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(Transformer, "_packing", lambda model, valid: None)  # on CPU alone, and it waits


def take_step(model: torch.nn.Module, name: str, optimizer: str) -> None:
    """Forward, backward, clipping and the optimizers' steps."""
    model.float().train()
    options = {"optimizer": optimizer, "lr": 1e-3, "weight_decay": 0.1, "momentum": 0.9, "muon_lr": 1e-2}
    with FakeTensorMode() as mode:
        without_values(model, mode)
        optimizers = make_optimizers(model, configure(model=name.split()[0], **options).optim)
        tokens = torch.randint(6, VOCAB, (B, longest(getattr(model, "body", model))))
        targets = torch.full_like(tokens, IGNORE)
        start = getattr(model, "start", None)
        state = start and start(None, torch.zeros(B, dtype=torch.int64))
        model(tokens, targets, state, want_logits=False).nll_sum.backward()
        clipped = [p for p in model.parameters() if p.grad is not None and not p.grad.is_sparse]
        torch.nn.utils.clip_grad_norm_(clipped, 1.0)
        for made in optimizers:
            if not isinstance(made, torch.optim.SparseAdam):  # finds out how many rows a batch has met
                made.step()


@every_neural
@pytest.mark.parametrize("optimizer", matrix(["adamw", "muon"], ["muon"]))
def test_a_training_step_waits_for_nothing(name, optimizer):
    if "read" in name:
        pytest.skip("counts that are read are walked, and how many are known is waited for")
    take_step(build(name), name, optimizer)


@pytest.mark.parametrize("name", ["transformer default", "lstm", "mlp batch"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_neither_does_a_classifiers(name, pooling):
    weights = torch.ones(3)
    made = Classifier(build(name), 3, pooling=pooling, ngrams=3, dropout=0.1, class_weights=weights, lm_weight=0.5)
    take_step(made, name, "muon")


@every_transformer
def test_a_decoding_step_waits_for_nothing(name, monkeypatch):
    monkeypatch.setattr(nanogpt.graph_stepper, "EAGER", 1)
    monkeypatch.setattr(nanogpt.graph_stepper, "capture", lambda step, device: (lambda: None, step()))
    if "read" in name:
        pytest.skip("counts that are read are walked; no graph is made of such a step")
    model = build(name)
    model = getattr(model, "neural", model).float().requires_grad_(False)
    read = model.read(torch.zeros(B, min(2, longest(model)), dtype=torch.int64))
    with torch.inference_mode(), FakeTensorMode() as mode:
        without_values(model, mode)
        state = {key: mode.from_tensor(part) for key, part in read.state.items()}
        if "position" in state:  # asked for once, before the first step
            state["position"] = torch.tensor([2])
        step = GraphStepper(model, state)
        token = torch.zeros(B, dtype=torch.int64)
        for _ in range(12):
            assert step(token).shape == (B, model.vocab_size)
