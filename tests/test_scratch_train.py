"""Training in NumPy: the losses of train.py on the same batches, runs that sample.py reads, and no torch."""

import json
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from engine.config.flags import parse
from engine.config.sections import Config
from engine.config.settings import make
from engine.run.load import load_run
from makemore.scratch import sampling
from makemore.scratch.compare import furthest, losses, losses_reversed, make_pair, table
from makemore.scratch.models import MODELS
from makemore.scratch.options import OPTIMIZERS, TAPED, NumPyConfig
from tests.conftest import NAMES, ROOT
from tests.matrices import matrix

COMMAND = "-m makemore.scratch.train"
SMALL = ["--n-embd", "12", "--n-hidden", "16", "--n-layer", "2", "--batch-size", "8", "--eval-tokens", "300"]
FAMILIES = ["bigram", "mlp", "cnn", "rnn", "lstm", "gru", "transformer"]


def flags_of(model: str, *more: str) -> list[str]:
    """Small sizes, as far as the family has them."""
    has = {"bigram": 4, "cnn": 0, "transformer": 0}
    small = SMALL[6:] if model == "bigram" else SMALL if model not in has else [*SMALL[:2], *SMALL[4:]]
    return ["--model", model, *small, *more]


@pytest.fixture
def names(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("".join(f"{name}\n" for name in NAMES), "utf-8")
    return path


def pair_of(names, *flags: str, dtype=np.float64):
    config, _ = parse([*flags, "--data", str(names), "--kind", "lines", "--warmup", "5"], NumPyConfig)
    return make_pair(config, dtype)


def apart(pair, steps: int) -> float:
    ours, theirs = losses(pair, steps)
    assert ours[-1] < ours[0] - 0.1
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("model", matrix(FAMILIES, ["mlp", "cnn", "gru"]))
def test_a_hundred_losses_are_torch_s(names, model):
    assert apart(pair_of(names, *flags_of(model)), 100) < 1e-9
    # In float32 a rounding error moves a unit of the CNN across the kink of its ReLU: torch, with the rows of its
    # batches the other way round, ends as far from itself.
    steps = 10 if model == "cnn" else 100
    pair = pair_of(names, *flags_of(model), "--steps", "100", dtype=np.float32)
    ours, theirs = losses(pair, steps)
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-5


@pytest.mark.parametrize("model", matrix(TAPED, ["mlp"]))
def test_a_hundred_losses_on_the_tape_are_torch_s(names, model):
    assert apart(pair_of(names, *flags_of(model, "--engine", "tape")), 100) < 1e-9


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", matrix(["constant", "wsd"], ["wsd"]))
def test_every_optimizer_and_schedule_takes_torch_s_steps(names, optimizer, schedule):
    more = ["--optimizer", optimizer, "--schedule", schedule, "--steps", "40", "--norm", "batch", "--grad-accum", "2"]
    assert apart(pair_of(names, *flags_of("mlp", *more)), 40) < 1e-9


def test_the_table_of_gradients_names_every_parameter(names):
    pair = pair_of(names, *flags_of("gru"))
    lines = table(pair).splitlines()[1:]
    assert {line.split()[0] for line in lines} == set(pair.ours.parameters)
    assert all("True" in line and float(line.split()[-1]) < 1e-12 for line in lines)


def test_reversed_rows_change_no_more_than_the_rounding(names):
    _, theirs = losses(pair_of(names, *flags_of("cnn")), 20)
    again = losses_reversed(pair_of(names, *flags_of("cnn")), 20)
    assert again != theirs and max(abs(a - b) for a, b in zip(again, theirs, strict=True)) < 1e-9


def test_the_weight_that_is_furthest_from_torch_s(names):
    pair = pair_of(names, *flags_of("gru"))
    assert furthest(pair)[1] == 0
    pair.ours.parameters["wte.weight"][3, 1] += 0.5
    pair.ours.parameters["lm_head.bias"][2] -= 0.25
    assert furthest(pair) == ("wte.weight", pytest.approx(0.5))


def losses_written(run) -> list[tuple[float | None, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines())
    return [(line["train_loss"], line["val_loss"]) for line in lines]


@pytest.mark.parametrize(("model", "engine"), [("gru", "hand"), ("transformer", "tape")])
def test_from_one_run_both_go_on_with_the_same_losses(cli, names, tmp_path, model, engine):
    data = ["--data", str(names), "--kind", "lines"]
    assert cli(COMMAND, *data, *flags_of(model), "--steps", "2", "--out", "first").code == 0
    more = ["--init", "first", *data, "--steps", "12", "--eval-interval", "4", "--batch-size", "8"]
    ours = cli(COMMAND, *more, "--engine", engine, "--out", "ours")
    theirs = cli("train.py", "--model", model, "--optimizer", "adamw", *more, "--out", "theirs")
    assert ours.code == theirs.code == 0, (ours.err, theirs.err)
    for a, b in zip(losses_written(tmp_path / "ours"), losses_written(tmp_path / "theirs"), strict=True):
        assert a == pytest.approx(b, abs=1e-5) or (a[0] is b[0] is None and a[1] == pytest.approx(b[1], abs=1e-5))


@pytest.mark.parametrize("model", matrix([*FAMILIES, "bigram --counts"], ["lstm", "bigram --counts"]))
def test_sample_py_reads_a_run_that_numpy_trained(cli, names, tmp_path, model):
    family, *counts = model.split()
    flags = ["--model", family, *counts, "--eval-tokens", "300"] if counts else flags_of(family, "--steps", "3")
    made = cli(COMMAND, "--data", str(names), "--kind", "lines", *flags, "--out", "run")
    assert made.code == 0 and "python sample.py run" in made.out, made.err
    sampled = cli("sample.py", "run", "--num", "3")
    assert sampled.code == 0 and len(sampled.out.splitlines()) == 3, sampled.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    evaluated = cli("train.py", "--eval-only", "--out", "run")
    assert json.loads(evaluated.out)["val_loss"] == pytest.approx(summary["val_loss"], rel=1e-6)
    assert len((tmp_path / "run" / "samples.txt").read_text("utf-8").splitlines()) == 20
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_counting_gives_the_table_of_train_py(cli, names, tmp_path):
    data = ["--data", str(names), "--kind", "lines", "--model", "bigram", "--counts"]
    assert cli(COMMAND, *data, "--out", "ours").code == cli("train.py", *data, "--out", "theirs").code == 0
    ours, theirs = (load_run(tmp_path / name).model.state_dict() for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_ctrl_c_keeps_what_was_learned(process, names, tmp_path, cli):
    flags = ["--data", names, "--kind", "lines", *flags_of("gru"), "--steps", "1000000", "--eval-interval", "5"]
    running = process(COMMAND, *flags, "--out", "run")
    for line in running.stdout:
        if line.startswith("step    10"):
            running.send_signal(signal.SIGINT)
            break
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130 and "python sample.py run, or go on with --init run" in out, err
    assert cli("sample.py", "run", "--num", "2").code == 0


def test_a_stream_goes_on_past_the_end_of_a_document():
    ours = MODELS["mlp"](13, make(Config, {"model": "mlp", "order": 3, "norm": "none", "activation": "tanh"}).net)
    ours.parameters["lm_head.bias"][ours.special.eos] = 1e3
    rows, rng = np.full((2, 1), 7), np.random.default_rng(0)
    assert sampling.generate(ours, rows, 9, 12, rng, ends=False).shape == (2, 10)
    assert sampling.generate(ours, rows, 9, 12, rng).shape == (2, 2)


def test_a_run_that_is_there_is_not_to_be_resumed(cli, names):
    flags = ["--data", str(names), "--kind", "lines", *flags_of("mlp", "--steps", "2"), "--out", "run"]
    assert cli(COMMAND, *flags).code == 0
    ended = cli(COMMAND, *flags)
    assert ended.code == 2 and "already exists; use --overwrite, or another --out" in ended.err


def test_a_stream_and_its_sample(cli, tmp_path):
    (tmp_path / "poem.txt").write_text("the sea, the sea is wide\n" * 60, "utf-8")
    made = cli(COMMAND, "--data", "poem.txt", *flags_of("mlp", "--steps", "5", "--context", "10"), "--out", "run")
    assert made.code == 0, made.err
    assert 0 < len((tmp_path / "run" / "samples.txt").read_text("utf-8")) <= 201


@pytest.mark.parametrize("engine", ["hand", "tape"])
def test_torch_is_never_loaded(names, tmp_path, engine):
    check = "import sys, makemore.scratch.train as t; code = t.main(); print(code, 'torch' in sys.modules)"
    flags = ["--data", str(names), "--kind", "lines", *flags_of("gru", "--steps", "2", "--engine", engine)]
    command = [sys.executable, "-c", check, *flags, "--out", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split()[-2:] == ["0", "False"], done.stderr


REFUSED = [
    (["--model", "ngram"], "train.py --model ngram counts it"),
    (["--optimizer", "muon"], "--optimizer muon is not among the NumPy models: there are sgd"),
    (["--model", "mlp", "--activation", "gelu"], "no erf"),
    (["--model", "mlp", "--norm", "rms"], "--norm rms is not among the NumPy models: there are none, batch, layer"),
    (["--preset", "modern"], "is not among the NumPy models; python train.py has it"),
    (["--positions", "rope"], "--positions means nothing"),
    (["--model", "cnn", "--engine", "tape"], "--engine tape has mlp, gru, transformer"),
    (["--model", "mlp", "--engine", "tape", "--dropout", "0.1"], "--engine hand has both"),
    (["--model", "mlp", "--optimizer", "sgd", "--weight-decay", "0.1"], "--weight-decay"),
    (["--resume"], "Unrecognized options: --resume"),
    (["--device", "cuda"], "Unrecognized options: --device"),
    (["--lr", "1e12", "--model", "rnn", "--grad-clip", "0", "--optimizer", "sgd", "--schedule", "constant",
      "--warmup", "0", "--activation", "relu"], "not finite"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "message"), REFUSED, ids=lambda value: " ".join(value) if type(value) is list else ""
)
def test_what_numpy_has_not_is_refused(cli, names, flags, message):
    ended = cli(COMMAND, "--data", str(names), "--kind", "lines", *flags, "--eval-tokens", "200")
    assert ended.code == 2 and message in re.sub(r"\s+", " ", ended.err), ended.err
    assert "Traceback" not in ended.err


def test_runs_of_the_two_commands_are_told_apart(cli, names):
    data = ["--data", str(names), "--kind", "lines", "--eval-tokens", "200"]
    assert cli(COMMAND, *data, *flags_of("mlp", "--steps", "2"), "--out", "ours").code == 0
    resumed = cli("train.py", "--resume", "--out", "ours")
    assert resumed.code == 2 and "start one from it with --init ours" in resumed.err
    assert cli("train.py", *data, "--steps", "2", "--batch-size", "4", "--out", "modern").code == 0
    refused = cli(COMMAND, *data, "--init", "modern")
    assert refused.code == 2 and "is not among the NumPy models" in refused.err
    assert cli(COMMAND, *data, "--init", "nowhere").code == 2
