"""The thinnest path through everything, for each family: text, training, samples."""

import json

import pytest

from tests.conftest import TINY


@pytest.mark.parametrize("model", [*TINY, "ngram", "bigram --counts"])
def test_train_then_sample(cli, names, tmp_path, model):
    family, *counts = model.split()
    sizes = ["--steps", 6, "--eval-interval", 3, "--batch-size", 4, *TINY[family]] if model in TINY else counts
    trained = cli("train.py", "--model", family, "--data", names, "--kind", "lines", "--out", "run", *sizes)
    assert trained.code == 0, trained.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["model"] == family and summary["val_loss"] > 0
    sampled = cli("sample.py", "run", "--num", 3, "--seed", 1, "--prompt", "el")
    assert sampled.code == 0, sampled.err
    lines = sampled.out.splitlines()
    assert len(lines) == 3 and all(line.startswith("el") for line in lines)
