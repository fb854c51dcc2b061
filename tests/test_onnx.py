"""Out as ONNX: every family computes in onnxruntime what it computes here, whatever the batch, the length and how much
of it was read before; what stands beside the graph is what a program needs to call it."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tokenizers
import torch

from data.tokenizers import AFTER_EOS
from engine import load_run
from engine.registry import build_model
from engine.run.sampling import Sampling
from export import onnx, onnx_folder, onnx_parts
from finetune.classify.classifier import Classifier
from makemore.counts.ngram import NGram
from tests.helpers import LINES, MODULES, STREAM, configure, ok, refused, trained
from tests.matrices import matrix
from tests.test_web import HARD, PROSE, TOKENIZERS

VOCAB = 23
SIZES = {"context": 16, "n_embd": 16, "n_hidden": 12, "n_layer": 2, "activation": "tanh", "norm": "layer"}
HASHED = {"hash_ngrams": 3, "hash_rows": 50}
MODELS = {
    "bigram": {"model": "bigram"},
    "counted bigram": {"model": "bigram", "counts": True},
    "unigram": {"model": "ngram", "order": 1},
    "ngram": {"model": "ngram", "order": 4},
    "mlp": {"model": "mlp", "order": 4, "norm": "batch"},
    "mlp with n-grams": {"model": "mlp", "order": 3, **HASHED},
    "cnn": {"model": "cnn", "n_layer": 3},
    "rnn": {"model": "rnn"},
    "written rnn": {"model": "rnn", "cells": "written", "activation": "gelu"},
    "lstm": {"model": "lstm"},
    "lstm with n-grams": {"model": "lstm", **HASHED},
    "gru": {"model": "gru", "norm": "rms"},
    "written gru": {"model": "gru", "cells": "written", "n_layer": 1},
    "transformer": {"model": "transformer", "activation": "gelu", "n_layer": 1},
    "with n-grams": {"model": "transformer", "positions": "sinusoidal", "n_layer": 1, **HASHED},
    "modern": {
        "model": "transformer", "positions": "rope", "norm": "rms", "activation": "swiglu", "n_kv_head": 2,
        "qk_norm": True, "bias": False, "tie_head": False, "logit_cap": 3.0, "attention_cap": 2.0,
        "value_embeddings": True, "value_residual": True,
    },
    "alibi": {"model": "transformer", "positions": "alibi", "n_layer": 1},
    "alibi in a window": {
        "model": "transformer", "positions": "alibi", "window": 4, "activation": "relu2", "n_layer": 1,
    },
    "learned in a window": {"model": "transformer", "window": 4, "n_layer": 1},
    "sinusoidal in a window": {"model": "transformer", "positions": "sinusoidal", "window": 5, "n_layer": 1},
    "rope in a window": {"model": "transformer", "positions": "rope", "window": 3, "n_layer": 1, **HASHED},
    "a window of one": {"model": "transformer", "positions": "rope", "window": 1, "n_layer": 1},
    "a context of one": {"model": "transformer", "context": 1, "n_layer": 1},
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


def computed(path, tokens, pieces):
    """Logits (B, T, V) of the graph, which gets the tokens in pieces of these lengths."""
    session = onnxruntime.InferenceSession(str(path))
    sizes, dtypes = {"batch": len(tokens), "past": 0}, {"tensor(int64)": np.int64, "tensor(float)": np.float32}
    first, *state = session.get_inputs()
    assert first.name == "tokens" and (state or len(pieces) == 1)
    values = [np.zeros([sizes.get(size, size) for size in port.shape], dtypes[port.type]) for port in state]
    logits = []
    for piece in tokens.split(pieces, 1):
        given = {port.name: value for port, value in zip(state, values, strict=True)}
        some, *values = session.run(None, {"tokens": piece.numpy(), **given})
        logits.append(torch.from_numpy(some))
    return torch.cat(logits, 1)


@pytest.mark.parametrize("kind", matrix(MODELS, ["bigram", "gru", "modern", "rope in a window"]))
def test_the_graph_computes_what_the_model_does(tmp_path, kind):
    model, path = made(**MODELS[kind]), tmp_path / "model.onnx"
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ports = onnx.save(model, path, {"about": ["ä"]})
    session = onnxruntime.InferenceSession(str(path))
    assert json.loads(session.get_modelmeta().custom_metadata_map["about"]) == ["ä"]
    assert os.fsencode(Path(onnx.__file__).parent) not in path.read_bytes()  # no path of this machine
    longest = model.context or 16
    for batch, pieces in ((1, [1]), (2, [3]), (5, [16]), (2, [1, 7, *[1] * 6, 2]), (1, [1] * 16)):
        if sum(pieces) > longest or (len(pieces) > 1 and len(ports.inputs) == 1):
            continue
        tokens = torch.randint(6, VOCAB, (batch, sum(pieces)))
        wanted = model(tokens).logits.detach()
        assert (computed(path, tokens, pieces) - wanted).abs().max() < 5e-5
    if model.context is not None:
        node = f"'tokens_past_the_context_of_{longest}'"
        for pieces in ([longest + 1], [longest, 1]):
            with pytest.raises(Exception, match=f"INVALID_ARGUMENT.*{node}.*out of data bounds, idx={longest} "):
                computed(path, torch.full((1, longest + 1), 7), pieces)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.exhaustive
def test_large_logits_may_be_off_by_more(tmp_path):
    model = made(**MODELS["transformer"])
    model.ln_f.weight.data *= 2000
    onnx.save(model, tmp_path / "model.onnx")


class Flat(NGram):
    """Counts with a little of the uniform distribution: not what a graph of n-grams lays out."""

    def distribution(self, context_tokens):
        return 0.5 * super().distribution(context_tokens) + 0.5 / self.vocab_size


@pytest.mark.parametrize("what", matrix(["attention", "scale", "counts", "bag"], ["scale"]))
def test_a_graph_that_computes_something_else_is_not_passed_off(tmp_path, monkeypatch, what):
    model = made(**MODELS[{"counts": "ngram", "bag": "bigram"}.get(what, "transformer")])
    if what == "attention":
        monkeypatch.setattr(onnx_parts.PlainAttention, "forward", lambda self, q, k, v, *rest: q)
    elif what == "scale":
        model.h[0].attn.attend.scale = 5.0
    elif what == "bag":
        model = Classifier(model, 2, ngrams=2)
        monkeypatch.setattr(onnx_parts, "row_of", lambda hashed, n, rows: hashed % rows)
        model.bag.table.weight.data *= 100
    else:
        model.__class__ = Flat
    with pytest.raises(RuntimeError, match="logits of .* are off by"):
        onnx.save(model, tmp_path / "model.onnx")


def programs(folder, **values):
    """What the programs of the folder's README print, in Python and, where node has what it takes, in JavaScript: with
    these texts in the place of its own."""
    readme = (folder / "README.md").read_text("utf-8")
    sources = {kind: re.search(rf"```{kind}\n(.*?)```", readme, re.DOTALL)[1] for kind in ("python", "js")}
    for kind, source in sources.items():
        for old, new in values.items():
            assert old in source or kind == "js"  # which labels one text
            sources[kind] = source = source.replace(old, new)
    printed = [subprocess.check_output([sys.executable, "-c", sources["python"]], cwd=folder, text=True)]
    packages = ("onnxruntime-web", "@huggingface/tokenizers")
    if shutil.which("node") and all(Path(MODULES, name).is_dir() for name in packages):
        if not (folder.parent / "node_modules").exists():
            (folder.parent / "node_modules").symlink_to(MODULES)
        script = folder.parent / "program.mjs"
        script.write_text(sources["js"].replace("onnxruntime-node", "onnxruntime-web"), "utf-8")
        printed.append(subprocess.check_output(["node", script], cwd=folder, text=True))
    return printed


RUNS = {
    "mlp": ("mlp", LINES),
    "gru": ("gru", LINES),
    "transformer": ("transformer", LINES),
    "pieces": ("transformer", STREAM | {"tokenizer": "bpe:300"}),
}


@pytest.mark.parametrize("name", matrix(RUNS, ["pieces"]))
def test_the_readmes_programs_write_what_the_run_writes(cli, tmp_path, names, text, name):
    family, flags = RUNS[name]
    trained(cli, family, **flags)
    told = ok(cli("-m export", "run", "--to", "onnx", "out")).out
    assert "wrote out/model.onnx" in told and "out logits float32 (batch, time, " in told
    run = load_run("run")
    config = json.loads((tmp_path / "out/config.json").read_text("utf-8"))
    prompt = "em"
    length = 9 if config["context"] is None else config["context"] + 1 - len(run.prompt_ids(prompt))
    ids = run.generate_ids(prompt, max_new_tokens=length, sampling=Sampling(temperature=0))
    ours = prompt + run.tokenizer.decode(int(id_) for id_ in ids)
    longest = " 9" if config["context"] is None else " 99"
    for theirs in programs(tmp_path / "out", **{'""': f'"{prompt}"', " 100": longest}):
        assert theirs == ours + "\n" and len(ours) > 3
    readme = (tmp_path / "out/README.md").read_text("utf-8")
    assert "library_name: onnx" in readme and "`<bos>` 1, `<eos>` 2" in readme
    assert f"| trained on | {flags['data'][:-4]} |" in readme
    assert ("Past the context** of" in readme) == (config["context"] is not None) and "bytes |" in readme
    refused(cli("-m export", "run", "--to", "onnx", "out"), "out already exists")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_tokenizer_reads_as_ours(tmp_path, name):
    ours = TOKENIZERS[name]()
    draw, alphabet = np.random.default_rng(0), sorted({*PROSE, *HARD, "☃"})
    texts = [PROSE, HARD, "", "<eos>", "<user>a<bos>", *("".join(draw.choice(alphabet, 30)) for _ in range(40))]
    special = ours.special
    for starts, first in (("<bos>", [special.bos]), (AFTER_EOS, [special.eos]), ("", [])):
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(onnx_folder.tokenizer_file(ours, starts)), "utf-8")
        theirs = tokenizers.Tokenizer.from_file(str(path))
        for text in texts:
            ids = ours.encode(text, "mask").tolist()
            assert theirs.encode(text).ids == [*first, *ids]
            if special.unk not in ids:
                assert theirs.decode(ids) == ours.decode(ids)


def test_a_missing_package_is_named(cli, names, monkeypatch):
    trained(cli, "bigram", data=names, kind="lines")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    refused(cli("-m export", "run", "--to", "onnx", "out"), "needs onnxscript: pip install onnx onnxscript")
