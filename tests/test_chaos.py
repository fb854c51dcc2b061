"""A few rounds of bench/chaos, and that it notices what must not be. Many rounds: `python -m bench.chaos`."""

import re
import tempfile

import pytest

from tests.helpers import ok
from tests.matrices import matrix

MISHAPS = ("signal-at-a-call", "error-once", "second-writer", "damaged-file")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Rounds are played below the test's folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_some_rounds(cli, tmp_path):
    done = ok(cli("-m bench.chaos", "--rounds", 4, "--seed", 3, "--commands", "mlp", "--mishaps", *MISHAPS))
    assert "seed 3, 4 rounds" in done.out and "failed: 0" in done.out
    assert len(re.findall(r"^ +\d+  [a-z-]+ +mlp ", done.out, re.MULTILINE)) == 4
    assert not list(tmp_path.glob("charlm-chaos-*"))


BROKEN = [("data.locks._lock", "second-writer"), ("engine.training.trainer.Trainer.resume", "killed-again-and-again")]


@pytest.mark.parametrize("broken", matrix(BROKEN, BROKEN[:1]), ids=[name for name, _ in BROKEN])
def test_a_suite_that_loses_something_fails(cli, tmp_path, monkeypatch, broken):
    name, mishap = broken
    """Where a part of it does nothing."""
    monkeypatch.setattr(name, lambda *args: None)
    done = cli("-m bench.chaos", "--rounds", 2, "--seed", 1, "--commands", "mlp", "--mishaps", mishap)
    assert done.code == 1 and "failed: 0" not in done.out
    (place,) = tmp_path.glob("charlm-chaos-*")
    failed = re.findall(rf"^round (\d+) \({mishap}, mlp\): ", done.out, re.MULTILINE)
    assert failed and all((place / f"round-{number}").is_dir() for number in failed)
