"""Runs of older formats, made by commits 1973569 (format 1), bfce63f (format 2), cfdb1e5 (format 3) and c90ffb0
(format 4): they go on with the same bits."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from engine.run.folder import FORMAT
from tests.conftest import ROOT
from tests.helpers import metrics, ok
from tests.matrices import matrix

KEPT = ROOT / "tests/old_runs"
EXPECTED = json.loads((KEPT / "expected.json").read_text())
RUNS = EXPECTED["runs"]
HERE = {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
IS_SAME_MACHINE = HERE == EXPECTED["machine"]  # elsewhere sums are taken in another order


@pytest.fixture
def old_run(tmp_path):
    """A function that puts a kept run, and all their texts, where the commands run."""
    shutil.copytree(KEPT / "texts", tmp_path, dirs_exist_ok=True)
    return lambda name: Path(shutil.copytree(KEPT / name, tmp_path / "run"))


def digest(path: Path, named: bool = True) -> str:
    """The SHA-256 of all tensors, by their names or, where other formats call them otherwise, of their values alone."""
    parts = []
    for name, tensor in sorted(safetensors.torch.load_file(path).items()):
        content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        parts.append(name.encode() + content if named else shape_of(tensor) + content)
    if named:
        return hashlib.sha256(b"".join(parts)).hexdigest()
    digests = sorted(hashlib.sha256(part).hexdigest() for part in parts)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def shape_of(tensor: torch.Tensor) -> bytes:
    return repr((str(tensor.dtype), tuple(tensor.shape))).encode()


def close(line: dict) -> dict:
    return {name: pytest.approx(value, rel=1e-3) if type(value) is float else value for name, value in line.items()}


def test_runs_of_every_older_format_are_kept():
    folders = {path.name for path in KEPT.iterdir() if path.is_dir()} - {"texts"}
    assert folders == set(RUNS)
    formats = {name: json.loads((KEPT / name / "config.json").read_text())["format"] for name in RUNS}
    assert formats == {name: int(name[-1]) if "-format-" in name else 1 for name in RUNS}
    assert set(formats.values()) == set(range(1, FORMAT))


EVERYDAY = {"bigram-counts", "ngram", "cnn-batch-norm", "lstm-carry", "transformer-mixture", "instruct-lora",
            "transformer-format-2", "classify-lora-format-2", "rnn-format-4", "mlp-format-4"}  # fmt: skip


@pytest.mark.parametrize("name", matrix(RUNS, EVERYDAY))
def test_an_old_run_resumes_and_samples_as_it_did(cli, old_run, name):
    run, expected = old_run(name), RUNS[name]
    stored = json.loads((run / "config.json").read_text())["format"]
    if "samples" in expected:
        drawn = ok(cli("sample.py", "run", "--num", 3, "--seed", 1, "--max-new-tokens", 20, "--json")).out
        texts = [[json.loads(line)["text"] for line in out.splitlines()] for out in (drawn, expected["samples"])]
        assert texts[0] == texts[1]
    else:
        labelled = json.loads(ok(cli("-m finetune.classify", "--out", "run", "--predict", "penelope")).out)
        wanted = json.loads(expected["predict"])
        assert labelled["probabilities"] == pytest.approx(wanted["probabilities"], abs=1e-5)
    steps = [] if expected["counted"] else ["--steps", 12]
    ok(cli(expected["command"], "--resume", "--out", "run", *steps))
    lines = [{n: v for n, v in line.items() if n != "seconds"} for line in metrics(run)]
    assert lines == (expected["metrics"] if IS_SAME_MACHINE else list(map(close, expected["metrics"])))
    for part in ("model", "trainer") if IS_SAME_MACHINE else ():
        if part in expected:
            assert digest(run / f"last/{part}.safetensors", named=part == "model") == expected[part]
    assert json.loads((run / "config.json").read_text())["format"] == max(stored, 3)  # it stays what it was


def test_a_newer_format_is_refused(cli, old_run):
    path = old_run("bigram") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    refused = cli("sample.py", "run")
    assert refused.code == 2 and "run/config.json has format 99" in refused.err
