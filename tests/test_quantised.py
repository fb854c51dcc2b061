"""Rounded runs: what rounding loses and what not, a run directory that is read wherever a run is, damage."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import UserError
from engine import load_run
from engine.run import checkpoint
from engine.run.identity import identity
from engine.run.quantised import GROUP, KINDS, dequantise, quantise, shapes
from tests.conftest import ROOT
from tests.helpers import FAMILIES, LINES, QUICK, STREAM, evaluated, ok, refused, summary, trained_any
from tests.matrices import matrix

HERE = Path("some/best")
VOCAB = 7
CASES = [(model, kind) for model in FAMILIES for kind in KINDS]
TASKS = ["instruct", "instruct-lora", "transformer-mixture", "transformer-format-2", "bigram-counts", "cnn-batch-norm"]


def matrices():
    """Matrices with rows and groups of very different sizes, zeros among them."""

    def make(seed: int, rows: int, columns: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(rows, columns, generator=generator)
        return (
            weight
            * 10.0 ** torch.randint(-20, 20, (rows, 1), generator=generator)
            * (torch.arange(rows) % 4 > 0)[:, None]
        )

    return st.builds(make, st.integers(0, 999), st.integers(1, 9), st.integers(1, 70))


def back(weights: dict, kind: str, vocab_size: int = VOCAB) -> dict:
    stored = quantise(weights, kind, vocab_size)
    assert shapes({name: tuple(part.shape) for name, part in stored.items()}) == {
        n: tuple(w.shape) for n, w in weights.items()
    }
    return dequantise(stored, HERE)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(weight=matrices(), kind=st.sampled_from(["int8", "int4"]), is_table=st.booleans())
def test_each_group_is_as_close_as_its_bits_allow(weight, kind, is_table):
    found = back({"a.weight": weight}, kind, len(weight) if is_table else 1000)["a.weight"]
    assert found.dtype == torch.float32 and found.shape == weight.shape
    bits = 8 if kind == "int8" or is_table or weight.shape[1] % 2 else 4
    for some, theirs in zip(weight.split(GROUP, 1), found.split(GROUP, 1), strict=True):
        plain = some.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)  # to the nearest, at the scale that fits
        assert ((theirs - some).square().mean(1) <= (0.52 * plain[:, 0]).square()).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_matrix_loses_nothing_or_half_its_bits(kind):
    keys, odd = torch.tensor([0, 0, 3, 5, 70_000, 2**40]), torch.tensor([5, 3])
    short, long = torch.randn(1024), torch.rand(1025)
    weights = {
        "keys": keys[:5],
        "far": keys,
        "odd": odd,
        "negative": -keys,
        "no": keys[:0],
        "n": keys[4],
        "short": short,
        "long": long,
    }
    stored, found = quantise(weights, kind, VOCAB), back(weights, kind)
    assert stored["keys.steps"].dtype == torch.uint32 and stored["far"].dtype == torch.int64
    for name in ("keys", "far", "odd", "negative", "no", "n"):
        assert torch.equal(found[name], weights[name]) and found[name].dtype == torch.int64
    assert torch.equal(found["short"], short.bfloat16().float() if kind == "bf16" else short)
    assert torch.equal(found["long"], long.bfloat16().float())


@pytest.mark.parametrize("case", matrix(CASES, [("transformer", "int4"), ("gru", "int8"), ("ngram", "bf16")]))
def test_a_rounded_run_is_a_run(cli, names, text, case):
    model, kind = case
    trained_any(cli, model, **(STREAM if model == "gru" else LINES))
    own = evaluated(cli)
    told = ok(cli("-m export", "run", "--to", kind, "small")).out
    (before, after) = re.findall(r"^(?:float32|\w+) +([\d,]+) +([\d.]+)", told, re.MULTILINE)
    size = Path("small/best/model.safetensors").stat().st_size
    assert int(after[0].replace(",", "")) == size and float(before[1]) == round(own["val_loss"], 4)
    shutil.rmtree("run")
    Path("small").rename("run")
    rounded = evaluated(cli)
    assert f"{rounded['val_loss']:.4f}" == after[1] and summary()["val_loss"] == pytest.approx(rounded["val_loss"])
    assert rounded["params"] == own["params"] and abs(rounded["val_loss"] - own["val_loss"]) < 0.02
    assert ok(cli("sample.py", "run", "--seed", 1, "--num", 2)).out.strip()
    assert cli("sample.py", "run", "--score", "emma").code == 0
    run = load_run("run")
    assert run.facts["weights"] == kind and {w.dtype for w in run.model.state_dict().values()} <= {
        torch.float32,
        torch.int64,
    }


def test_the_loss_is_that_of_the_file_that_is_there(cli, names):
    trained_any(cli, "gru", **LINES)
    ok(cli("-m export", "run", "--to", "int4", "small"))
    assert {line.split(".")[-1] for line in checkpoint.shapes(Path("small/best"))} >= {"int4", "int8", "scale"}


def test_nothing_is_trained_in_a_rounded_run_and_a_new_one_starts_from_it(cli, names):
    trained_any(cli, "gru", **LINES)
    ok(cli("-m export", "run", "--to", "int8", "small"))
    for flag in ("--resume", "--go-on"):
        refused(cli("train.py", flag, "--out", "small"), "is a run of python -m export", "--init small")
    refused(
        cli("-m export", "small", "--to", "int4", "smaller"),
        "small is rounded to int8",
        "the run that it was made from",
    )
    refused(cli("-m export", "run", "--to", "int4", "small"), "small already exists")
    refused(cli("-m export", "run", "--to", "int8", "other", "--checkpoint", "best", "--data", "no.txt"), "no.txt")
    assert not Path("other").exists()
    refused(cli("-m export", "run", "--to", "onnx", "other", "--data", "names.txt"), "--data is for int8, int4, bf16")
    ok(cli("train.py", "--init", "small", *QUICK, "--data", "names.txt", "--out", "tuned"))
    assert load_run("tuned").config.run.init == "small"


def test_a_text_that_is_not_there_is_said(cli, names, monkeypatch, tmp_path):
    trained_any(cli, "mlp", **LINES)
    monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / "empty"))
    other = names.rename("other.txt")
    told = ok(cli("-m export", "run", "--to", "int4", "small")).out
    assert "not measured: the loss, since the run's text is not there" in told and "--data TEXT" in told
    assert summary("small")["val_loss"] is None
    told = ok(cli("-m export", "run", "--to", "int4", "smaller", "--data", other)).out
    assert "not measured" not in told and re.search(r"^int4 .*[+-]\d\.\d{4}$", told, re.MULTILINE)


@pytest.mark.parametrize("name", matrix(TASKS, ["instruct-lora", "transformer-mixture"]))
def test_runs_of_older_formats_and_of_tasks(cli, name):
    run = ROOT / "tests/old_runs" / name
    told = ok(cli("-m export", run, "--to", "int8", "small")).out
    if name.startswith("instruct"):
        assert "not measured: the loss, which is another one" in told
        answers = [ok(cli("sample.py", each, "--chat", "--message", "hi", "--json")).out for each in (run, "small")]
        assert all("text" in json.loads(answer) for answer in answers)
    ids = torch.tensor([[1, 7, 8, 9]])
    ours, theirs = (load_run(each).model for each in (run, "small"))
    assert (ours(ids).logits.softmax(-1) - theirs(ids).logits.softmax(-1)).abs().max() < 0.05


def refuse_file(change) -> str:
    """What is said of a rounded run whose file was changed by a stranger who knows how a manifest is made."""
    stored, facts = checkpoint.load(Path("small/best"), ("model",))
    weights = stored["model"]
    change(weights)
    own = checkpoint.belongs_to(Path("small/best"))
    checkpoint.save(Path("small/best"), {"model": weights}, facts, own)
    with pytest.raises(UserError) as said:
        load_run("small")
    return str(said.value)


NAME = "layers.0.weight_hh_l0"
DAMAGE = {
    "no scale": (lambda w: w.pop(f"{NAME}.scale"), "needs a scale"),
    "short scale": (lambda w: w.update({f"{NAME}.scale": w[f"{NAME}.scale"][1:]}), "needs a scale"),
    "scale of whole numbers": (lambda w: w.update({f"{NAME}.scale": w[f"{NAME}.scale"].long()}), "needs a scale"),
    "infinite": (lambda w: w[f"{NAME}.scale"].fill_(torch.inf), "not finite"),
    "floats": (lambda w: w.update({f"{NAME}.int4": w[f"{NAME}.int4"].float()}), "not a matrix in torch.uint8"),
    "a cube": (lambda w: w.update({f"{NAME}.int4": w[f"{NAME}.int4"][None]}), "asks for"),
    "a number": (lambda w: w.update({f"{NAME}.int4": w[f"{NAME}.int4"][0, 0]}), "asks for"),
    "other shape": (lambda w: w.update({f"{NAME}.int4": w[f"{NAME}.int4"][:, 1:]}), "has the shape"),
    "a scale alone": (lambda w: w.pop(f"{NAME}.int4"), "not a checkpoint of this run's model"),
    "steps": (lambda w: w.update({"x.steps": torch.ones(2, 2, dtype=torch.uint8)}), "not steps"),
    "unknown": (lambda w: w.update({"x.int8": w.pop(f"{NAME}.int4").to(torch.int8)}), "needs a scale"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_a_strangers_file_is_one_message(cli, names, case):
    trained_any(cli, "gru", **LINES)
    ok(cli("-m export", "run", "--to", "int4", "small"))
    change, words = DAMAGE[case]
    said = refuse_file(change)
    assert words in said and "small" in said
    refused(cli("sample.py", "small"), words)


def test_a_rounded_checkpoint_of_another_run_is_refused(cli, names):
    trained_any(cli, "gru", **LINES)
    for folder in ("one", "two"):
        ok(cli("-m export", "run", "--to", "int4", folder))
    shutil.rmtree("one/best")
    shutil.copytree("two/best", "one/best")
    refused(cli("sample.py", "one"), "is the checkpoint of another run")


def test_an_identity_says_what_it_did(cli, names):
    """The key of rounded weights is none of what a run's identity is made of."""
    trained_any(cli, "gru", **LINES)
    ok(cli("-m export", "run", "--to", "int8", "small"))
    run, facts = load_run("small"), json.loads(Path("small/config.json").read_text())
    assert checkpoint.belongs_to(Path("small/best")) == identity(facts, run.tokenizer)
