"""A few rounds of bench/chaos, and that it notices what must not be. Many rounds: `python -m bench.chaos`."""

import re
import tempfile

import pytest

from tests.helpers import ok

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


BROKEN = [("data.locks._lock", "second-writer", 1), ("engine.metrics.Metrics.cut_back", "signal-at-a-call", 3)]


@pytest.mark.parametrize("name, mishap, number", BROKEN, ids=[name for name, *_ in BROKEN])
def test_a_suite_that_loses_something_fails(cli, tmp_path, monkeypatch, name, mishap, number):
    """The same round fails where a part of the suite does nothing, and passes where it works."""
    one = ("-m bench.chaos", "--seed", 1, "--only", number, "--commands", "mlp", "--mishaps", mishap)
    with monkeypatch.context() as patched:
        patched.setattr(name, lambda *args: None)
        done = cli(*one)
    assert done.code == 1 and f"round {number} ({mishap}, mlp): metrics is not that of a quiet run" in done.out
    assert list(tmp_path.glob(f"charlm-chaos-*/round-{number}"))
    ok(cli(*one))
