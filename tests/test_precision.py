"""What --dtype auto becomes: tried on a CPU that multiplies bfloat16, told, kept by the run."""

import json
from pathlib import Path

import pytest
import torch

from data.tokenizers import Special
from engine import doctor, precision, runtime
from engine.registry import build_model
from tests.helpers import configure, ok, once, quick, refused

RESUME = ("train.py", "--out", "run", "--resume")


@pytest.fixture
def tried(monkeypatch):
    """A CPU that multiplies bfloat16, on which every model is large; the seconds that a pass takes are set."""

    def on(in_float32: float, in_bfloat16: float) -> None:
        seconds = {torch.float32: in_float32, torch.bfloat16: in_bfloat16}
        monkeypatch.setattr(runtime, "multiplies_bfloat16", lambda: True)
        monkeypatch.setattr(precision, "LEAST_WORK", 0)
        monkeypatch.setattr(precision, "probe", lambda body, rows, context, dtype: seconds[dtype])

    return on


def dtype_of(run: str = "run") -> str:
    return json.loads(Path(run, "config.json").read_text("utf-8"))["config"]["dtype"]


def test_a_small_model_is_not_tried(cli, names, monkeypatch):
    monkeypatch.setattr(runtime, "multiplies_bfloat16", lambda: True)
    ended = ok(cli("train.py", *quick("transformer", data=names, kind="lines")))
    assert "arithmetic" not in ended.out and dtype_of() == "float32"


@pytest.mark.parametrize(("seconds", "chosen"), [((3, 2), "bfloat16"), ((2.1, 2), "float32"), ((2, 3), "float32")])
def test_what_is_faster_is_told_and_kept(cli, names, tried, seconds, chosen):
    tried(*seconds)
    line = ("train.py", *quick("gru", data=names, kind="lines", steps=4))
    ended = ok(cli(*line))
    assert f"arithmetic: {chosen}, since a pass in bfloat16 is {seconds[0] / seconds[1]:.2f} times as fast" in ended.out
    assert dtype_of() == chosen
    tried(*reversed(seconds))  # on another machine
    other = {"bfloat16": "float32", "float32": "bfloat16"}[chosen]
    refused(cli(*RESUME, "--steps", 6, "--dtype", other), f"--dtype {other} (the run has {chosen})")
    for more in ((), ("--dtype", "auto")):
        assert "arithmetic" not in ok(cli(*RESUME, "--steps", 6, *more)).out and dtype_of() == chosen


def test_the_same_line_goes_on_with_what_was_chosen(cli, names, tried):
    tried(3, 2)
    line = ("train.py", *quick("mlp", data=names, kind="lines", steps=4), "--go-on")
    ok(cli(*line))
    tried(2, 3)
    for more in ((), ("--dtype", "auto")):
        assert "is complete" in ok(cli(*line, *more)).out and dtype_of() == "bfloat16"


def test_fine_tuning_tries_too(cli, tmp_path, tried):
    tried(3, 2)
    (tmp_path / "x.tsv").write_text("".join(f"ham\tsee {n}\nspam\twin {n}\n" for n in range(20)), "utf-8")
    once(cli, "-m finetune.classify", "--data", "x.tsv", "--steps", 2, "--n-hidden", 8, "--no-baseline", "--out", "run")
    assert dtype_of() == "bfloat16"


@pytest.mark.parametrize("model", ["transformer", "lstm", "cnn", "bigram"])
def test_trying_leaves_nothing_behind(model):
    config = configure(model=model, context=8, n_embd=16, n_head=2, n_hidden=16, norm="batch", dropout=0.1)
    body = build_model(config, 20, Special())
    before = {name: tensor.clone() for name, tensor in body.state_dict().items()}
    state = torch.get_rng_state()
    for dtype in (torch.float32, torch.bfloat16):
        assert precision.probe(body, 3, 8, dtype) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in body.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in body.state_dict().items())


@pytest.mark.parametrize(("found", "word"), [({"amx_bf16": True}, "native"), ({"amx_bf16": False}, "not native here")])
def test_the_doctor_says_what_the_cpu_has(monkeypatch, found, word):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert dict(doctor.facts())["bfloat16"] == word
    why = {name: why for name, _, why in doctor.choices()}["--dtype"]
    assert why == ("a large model tries bfloat16 first" if word == "native" else "this CPU does not multiply bfloat16")
