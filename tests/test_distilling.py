"""train.py --teacher: a model learns from another one's probabilities, whatever the families of both."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from data.batches import IGNORE
from engine.config.flags import parse
from engine.registry import build_model
from engine.training.distilling import Distilled
from engine.training.trainer import Trainer
from tests.helpers import KILL, at_call, left, metrics, ok, quick, refused
from tests.matrices import matrix

FAMILIES = ("bigram", "mlp", "cnn", "rnn", "gru", "lstm", "transformer")


def model(family: str, seed: int = 0):
    torch.manual_seed(seed)
    config, _ = parse(["--model", family, "--context", "8"])
    return build_model(config, 20)


@pytest.mark.parametrize("family", matrix(FAMILIES, ["gru", "transformer"]))
def test_the_loss_is_that_of_the_targets_and_of_the_teachers_probabilities(family):
    student, teacher = model(family), model("lstm", 1)
    both = Distilled(student, teacher, 0.3, 2.0).train()
    for module in student.modules():
        module.fused = False
    for part in (m for m in student.modules() if isinstance(m, torch.nn.Dropout)):
        part.p = 0.0
    tokens, targets = torch.randint(6, 20, (2, 3, 8))
    targets[0, 5:] = IGNORE
    weight = torch.rand(3, 8)
    found = both(tokens, targets, want_logits=False, weight=weight)
    valid = targets != IGNORE
    ours, theirs = student(tokens).logits[valid], teacher(tokens).logits[valid].detach()
    hard = (F.cross_entropy(ours, targets[valid], reduction="none") * weight[valid]).sum()
    soft = F.kl_div((ours / 2).log_softmax(-1), (theirs / 2).log_softmax(-1), reduction="none", log_target=True).sum(1)
    entropy = torch.distributions.Categorical(logits=theirs / 2).entropy()
    torch.testing.assert_close(found.nll_sum, 0.7 * hard + 0.3 * 4 * ((soft + entropy) * weight[valid]).sum())
    found.nll_sum.backward()
    assert all(p.grad is None for p in teacher.parameters()) and not teacher.training
    both.eval()
    assert both(tokens, targets).nll_sum == student(tokens, targets).nll_sum


def test_a_state_that_is_carried_holds_the_teachers_too():
    both = Distilled(model("gru"), model("lstm", 1), 1.0, 1.0).train()
    tokens, targets = torch.randint(6, 20, (2, 2, 8))
    whole = both(tokens, targets).nll_sum
    first = both(tokens[:, :3], targets[:, :3])
    rest = both(tokens[:, 3:], targets[:, 3:], first.state)
    torch.testing.assert_close(first.nll_sum + rest.nll_sum, whole)


@pytest.fixture
def teacher(cli, names):
    """A run `teacher` of a Transformer on names.txt."""
    ok(cli("train.py", *quick("transformer", data="names.txt", steps=4, out="teacher")))


def test_a_run_with_a_teacher_is_a_run_like_any_other_and_goes_on_exactly(cli, teacher):
    line = ["train.py", *quick("gru", data="names.txt", out="run"), "--teacher", "teacher"]
    ok(cli(*line))
    straight, lines = left(Path("run")), metrics("run")
    assert len(json.loads(Path("run/teacher.json").read_text())["weights"]) == 64
    ok(cli("sample.py", "run", "--num", 2))
    told = json.loads(ok(cli("train.py", "--eval-only", "--out", "run")).out)
    assert told["val_loss"] == pytest.approx(min(each["val_loss"] for each in lines), rel=1e-5)
    with at_call(Trainer, "step", 3, KILL):
        cli(*line, "--overwrite")
    Path("teacher").rename("moved")
    refused(cli("train.py", "--resume", "--out", "run"), "the teacher of run is not in teacher; say with --teacher")
    ok(cli("train.py", "--resume", "--out", "run", "--teacher", "moved"))
    assert left(Path("run")) == straight
    ok(cli("train.py", *quick("gru", data="names.txt", out="alone")))
    assert left(Path("alone")) != straight


def test_a_teacher_that_has_changed_is_refused(cli, teacher):
    ok(cli("train.py", *quick("gru", data="names.txt", out="run"), "--teacher", "teacher"))
    ok(cli("train.py", *quick("transformer", data="names.txt", steps=6, out="teacher"), "--overwrite"))
    refused(cli("train.py", "--resume", "--out", "run", "--steps", 9), "the teacher teacher has other weights")


def test_what_does_not_go_together_is_refused(cli, teacher, tmp_path):
    line = ["train.py", *quick("gru", data="names.txt", out="run")]
    for flags, words in {
        ("--teacher-weight", 0.5): "--teacher-weight means nothing without --teacher",
        ("--teacher", "teacher", "--mix-ngram", 3): "--mix-ngram and --teacher exclude each other",
        ("--teacher", "teacher", "--teacher-temperature", 0): "--teacher-temperature is 0.0; it has to be above 0",
        ("--teacher", "teacher", "--cuda-graph", "on"): "--cuda-graph on and --teacher exclude each other",
        ("--teacher", "nowhere"): "no run directory nowhere",
        ("--teacher", "teacher", "--context", 200): "reads",
        ("--teacher", "teacher", "--tokenizer", "byte"): "--teacher cannot change --tokenizer byte (the run has char)",
    }.items():
        refused(cli(*line, *flags), words)
        assert not Path("run").exists()
    ok(cli("train.py", "--model", "ngram", "--data", "names.txt", "--out", "counts"))
    refused(cli(*line, "--teacher", "counts"), "--teacher counts counts; a teacher is a neural model")
    ok(cli("train.py", *quick("gru", data="names.txt", tokenizer="byte", out="bytes")))
    ok(cli("train.py", *quick("gru", data="names.txt", out="other"), "--init", "bytes"))
    refused(cli(*line, "--init", "bytes", "--teacher", "teacher"), "the vocabulary of --teacher teacher is not that")
    itself = cli(*line, "--out", "bytes", "--teacher", "./bytes", "--overwrite")
    refused(itself, "--teacher ./bytes is the run in --out; name another --out")
    ok(cli(*line, "--teacher", "bytes"))
    assert json.loads(Path("run/config.json").read_text())["config"]["tokenizer"] == "byte"
    refused(cli("-m finetune.instruct", "--teacher", "teacher"), "--teacher")


def test_help_shows_a_teachers_flags_to_who_has_one(cli):
    assert "--teacher" not in ok(cli("train.py", "--help")).out
    assert "--teacher-temperature" in ok(cli("train.py", "--teacher", "x", "--help")).out
