"""Classifiers as ONNX: of every family, each text's logits as here, alone and in a padded batch, with the labels."""

import ast
import json
import re

import numpy as np
import onnxruntime
import pytest
import torch

from data.batches import IGNORE
from export import onnx
from finetune.classify.classifier import Classifier
from tests.helpers import ok, summary
from tests.matrices import matrix
from tests.test_export_classifier import MODULE, sms  # noqa: F401 - a fixture
from tests.test_onnx import MODELS, VOCAB, made, programs

CLASSIFIERS = {
    "bigram": {"pooling": "mean"},
    "mlp": {"ngrams": 4},
    "mlp with n-grams": {"pooling": "max"},
    "cnn": {"pooling": "max", "ngrams": 1},
    "rnn": {"pooling": "max"},
    "written rnn": {"ngrams": 2},
    "lstm": {"pooling": "mean"},
    "gru": {"ngrams": 3},
    "lstm both ways": {"pooling": "mean"},
    "transformer": {},
    "transformer both ways": {"pooling": "mean"},
    "modern": {"pooling": "mean", "look_ahead": 2},
    "alibi": {"look_ahead": 3},
    "rope in a window": {"pooling": "max", "look_ahead": 1},
    "a window of one": {"pooling": "mean", "ngrams": 2},
}


@pytest.mark.parametrize("kind", matrix(CLASSIFIERS, ["gru", "lstm both ways", "rope in a window"]))
def test_padding_changes_no_label(tmp_path, kind):
    options = dict(CLASSIFIERS[kind])
    family, both, _ = kind.partition(" both ways")
    wanted_model = {"n_layer": 1} | MODELS[family] | ({"objective": "masked"} if both else {})
    body, ahead = made(**wanted_model), options.pop("look_ahead", 0)
    if ahead:
        body.see_ahead(ahead)
    body.lm_head = None
    model, path = Classifier(body, 3, **options).eval(), tmp_path / "model.onnx"
    model.head.weight.data *= 20
    onnx.save(model, path)
    session = onnxruntime.InferenceSession(str(path))
    texts = [torch.randint(6, VOCAB, (length,)) for length in (16, 1, 2, 9)]
    wanted = []
    for text in texts:
        targets = torch.full((1, len(text)), IGNORE)
        targets[0, -1] = 0
        wanted.append(model(text[None], targets).logits[0].detach())
        found = session.run(None, {"tokens": text[None].numpy(), "lengths": np.array([len(text)])})[0]
        assert (torch.from_numpy(found[0]) - wanted[-1]).abs().max() < 1e-4
    tokens = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    lengths = np.array([len(text) for text in texts])
    for padding in (tokens, torch.cat([tokens[1:3, :2], torch.randint(6, VOCAB, (2, 7))], 1)):
        rows = slice(0, 4) if len(padding) == 4 else slice(1, 3)
        found = session.run(None, {"tokens": padding.numpy(), "lengths": lengths[rows]})[0]
        assert (torch.from_numpy(found) - torch.stack(wanted[rows])).abs().max() < 1e-4
    if body.context is not None:
        with pytest.raises(Exception, match="tokens_past_the_context_of_16"):
            session.run(None, {"tokens": np.full((1, 17), 7), "lengths": np.array([17])})


def test_the_readmes_programs_label_as_predict_does(cli, sms, tmp_path):  # noqa: F811
    few = ("--n-embd", 8, "--n-hidden", 12, "--steps", 20, "--batch-size", 8, "--lr", 0.01)
    ok(cli(MODULE, "--data", sms, *few, "--out", "run"))
    told = ok(cli("-m export", "run", "--to", "onnx", "out")).out
    assert "in  lengths int64 (batch)" in told and "out logits float32 (batch, 2)" in told
    texts = ["claim your free prize", "<eos> see you" * 20]
    ours = ok(cli(MODULE, "--out", "run", "--predict", "-", stdin="\n".join(texts).encode())).out.splitlines()
    wanted = [json.loads(line)["probabilities"] for line in ours]
    in_python, *in_javascript = programs(
        tmp_path / "out", **{'"a text"': json.dumps(texts[0]), '"another one"': json.dumps(texts[1])}
    )
    found = [ast.literal_eval(line) for line in in_python.splitlines()]
    assert found == [{label: pytest.approx(p, abs=1e-5) for label, p in each.items()} for each in wanted]
    for line in in_javascript:
        probabilities = dict(re.findall(r"(\w+): ([\d.e-]+)", line))
        assert {label: float(p) for label, p in probabilities.items()} == pytest.approx(found[0], abs=1e-5)
    labels = ["ham", "spam"]
    assert [list(each) for each in found] == [labels, labels]
    session = onnxruntime.InferenceSession(str(tmp_path / "out/model.onnx"))
    assert json.loads(session.get_modelmeta().custom_metadata_map["labels"]) == labels
    assert json.loads((tmp_path / "out/config.json").read_text("utf-8"))["labels"] == labels
    card = (tmp_path / "out/README.md").read_text("utf-8")
    assert "pipeline_tag: text-classification" in card and "| labels | ham, spam |" in card


def test_a_text_may_have_several_labels_there_too(cli, tmp_path):
    rows = [
        (f"{'win cash ' * (n % 2)}{'see you ' * (n % 3 > 0)}{n}", ["spam"] * (n % 2) + ["ham"] * (n % 3 > 0))
        for n in range(60)
    ]
    (tmp_path / "sms.jsonl").write_text("\n".join(json.dumps({"text": t, "label": of}) for t, of in rows), "utf-8")
    few = ("--n-embd", 8, "--n-hidden", 12, "--steps", 20, "--batch-size", 8, "--lr", 0.01)
    ok(cli(MODULE, "--data", "sms.jsonl", *few, "--out", "run"))
    ok(cli("-m export", "run", "--to", "onnx", "out"))
    ours = ok(cli(MODULE, "--out", "run", "--predict", "win cash see you")).out
    wanted = {name: pytest.approx(p, abs=1e-5) for name, p in json.loads(ours)["probabilities"].items()}
    in_python, *in_javascript = programs(tmp_path / "out", **{'"a text"': '"win cash see you"'})
    assert (
        ast.literal_eval(in_python.splitlines()[0]) == wanted and sum(json.loads(ours)["probabilities"].values()) != 1
    )
    for line in in_javascript:
        assert {name: float(p) for name, p in re.findall(r"(\w+): ([\d.e-]+)", line)} == wanted
    config = json.loads((tmp_path / "out/config.json").read_text("utf-8"))
    assert config["thresholds"] == [each["threshold"] for each in summary()["test"]["classes"].values()]
    assert "the sigmoid of each is its probability" in (tmp_path / "out/README.md").read_text("utf-8")
