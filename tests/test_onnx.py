"""Out as ONNX: every family computes in onnxruntime what it computes here, whatever the batch and the length."""

import importlib.util
import json

import numpy as np
import onnxruntime
import pytest
import torch

from data.vocabulary import from_json
from engine import load_run
from engine.registry import build_model
from export import onnx
from makemore.counts.ngram import NGram
from makemore.recurrent import Recurrent
from tests.helpers import configure, ok, refused, trained
from tests.matrices import matrix

VOCAB = 23
SIZES = {"context": 16, "n_embd": 16, "n_hidden": 12, "n_layer": 2, "activation": "tanh", "norm": "layer"}
MODELS = {
    "bigram": {"model": "bigram"},
    "counted bigram": {"model": "bigram", "counts": True},
    "unigram": {"model": "ngram", "order": 1},
    "ngram": {"model": "ngram", "order": 4},
    "mlp": {"model": "mlp", "order": 4, "norm": "batch"},
    "cnn": {"model": "cnn", "n_layer": 3},
    "rnn": {"model": "rnn"},
    "lstm": {"model": "lstm"},
    "gru": {"model": "gru", "norm": "rms"},
    "written gru": {"model": "gru", "cells": "written", "n_layer": 1},
    "transformer": {"model": "transformer", "activation": "gelu", "n_layer": 1},
    "modern": {
        "model": "transformer", "positions": "rope", "norm": "rms", "activation": "swiglu", "n_kv_head": 2,
        "qk_norm": True, "bias": False, "tie_head": False, "logit_cap": 3.0,
    },
    "alibi in a window": {
        "model": "transformer", "positions": "alibi", "window": 4, "activation": "relu2", "n_layer": 1,
    },
    "sinusoidal": {"model": "transformer", "positions": "sinusoidal", "window": 5, "n_layer": 1},
}  # fmt: skip


def made(**options):
    torch.manual_seed(0)
    model = build_model(configure(**SIZES | options), VOCAB)
    if hasattr(model, "fit"):
        text = np.random.default_rng(0).integers(6, 12, 2000)
        model.fit(text[:-1], text[1:], np.arange(1999))
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


@torch.no_grad()
def computed(path, model, tokens):
    """Logits (B, T, V) of the graph: at once, or token by token with the state that it gives back."""
    session = onnxruntime.InferenceSession(str(path))
    if not isinstance(model, Recurrent):
        return torch.from_numpy(session.run(["logits"], {"tokens": tokens.numpy()})[0])
    names = [port.name for port in session.get_inputs()][1:]
    assert session.get_inputs()[0].name == "token" and names
    vectors = [np.zeros((len(tokens), model.n_hidden), np.float32) for _ in names]
    logits = []
    for token in tokens.T:
        some, *vectors = session.run(None, {"token": token.numpy(), **dict(zip(names, vectors, strict=True))})
        logits.append(torch.from_numpy(some))
    return torch.stack(logits, 1)


@pytest.mark.parametrize("kind", matrix(MODELS, ["bigram", "modern"]))
def test_the_graph_computes_what_the_model_does(tmp_path, kind):
    model = made(**MODELS[kind])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ports = onnx.save(model, tmp_path / "model.onnx")
    assert any(line.startswith("in ") for line in ports) and any("logits" in line for line in ports)
    for shape in ((1, 1), (2, 3), (5, 16)):
        tokens = torch.randint(6, VOCAB, shape)
        wanted = model(tokens).logits.detach()
        assert (computed(tmp_path / "model.onnx", model, tokens) - wanted).abs().max() < 2e-5
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_context_of_one_token(tmp_path):
    model = made(**MODELS["transformer"], context=1)
    onnx.save(model, tmp_path / "model.onnx")
    tokens = torch.randint(6, VOCAB, (3, 1))
    assert (computed(tmp_path / "model.onnx", model, tokens) - model(tokens).logits).abs().max() < 2e-5


@pytest.mark.exhaustive
def test_large_logits_may_be_off_by_more(tmp_path):
    model = made(**MODELS["transformer"])
    model.ln_f.weight.data *= 2000
    onnx.save(model, tmp_path / "model.onnx")


class Flat(NGram):
    """Counts with a little of the uniform distribution: not what a graph of n-grams lays out."""

    def distribution(self, context_tokens):
        return 0.5 * super().distribution(context_tokens) + 0.5 / self.vocab_size


@pytest.mark.parametrize("what", matrix(["attention", "scale", "counts"], ["scale"]))
def test_a_graph_that_computes_something_else_is_not_passed_off(tmp_path, monkeypatch, what):
    model = made(**MODELS["ngram" if what == "counts" else "transformer"])
    if what == "attention":
        monkeypatch.setattr(onnx._Attention, "forward", lambda self, q, k, v, *rest: v)
    elif what == "scale":
        model.h[0].attn.attend.scale = 5.0
    else:
        model.__class__ = Flat
    with pytest.raises(RuntimeError, match="logits of .* is off by"):
        onnx.save(model, tmp_path / "model.onnx")


@pytest.mark.parametrize("family", matrix(["gru", "transformer"], ["gru"]))
def test_a_run_goes_out_with_its_tokenizer(cli, names, family):
    trained(cli, family, data=names, kind="lines")
    told = ok(cli("-m export", "run", "--to", "onnx", "out")).out
    assert "wrote out/model.onnx" in told and "out logits" in told
    run = load_run("run")
    tokenizer = from_json(json.load(open("out/tokenizer.json")))
    tokens = torch.tensor([[1, *tokenizer.encode("emma").tolist()]])
    found = computed("out/model.onnx", run.model, tokens)
    assert (found - run.model(tokens).logits.detach()).abs().max() < 2e-5
    refused(cli("-m export", "run", "--to", "onnx", "out"), "out already exists")


def test_a_missing_package_is_named(cli, names, monkeypatch):
    trained(cli, "bigram", data=names, kind="lines")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    refused(cli("-m export", "run", "--to", "onnx", "out"), "needs onnxscript: pip install onnx onnxscript")
