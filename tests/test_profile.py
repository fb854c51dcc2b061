"""`--profile`: a trace of some steps, which changes nothing in the training."""

import gzip
import json
import signal

import pytest

from data.loaders import Loader
from tests.helpers import STREAM, TERM, at_call, left, ok, quick, refused, trained, warnings_of

FLAGS = STREAM | {"model": "lstm", "dropout": 0.2, "steps": 8}
RESUME = ("train.py", "--resume", "--out", "run")


@pytest.fixture(autouse=True)
def texts(names, text):
    """names.txt and text.txt stand where the commands run."""


def optimizer_steps(run) -> int:
    """How many steps a trace has."""
    trace = json.loads(gzip.decompress((run / "trace.json.gz").read_bytes()))
    return sum(event.get("name") == "Optimizer.step#AdamW.step" for event in trace["traceEvents"])


def test_it_records_as_many_steps_and_the_training_has_the_same_bits(cli, tmp_path):
    straight = left(trained(cli, **FLAGS))
    result = ok(cli("train.py", *quick(**FLAGS), "--overwrite", "--profile", 2))
    assert left(tmp_path / "run") == straight
    assert optimizer_steps(tmp_path / "run") == 2
    assert "2 steps in run/trace.json.gz: open it at https://ui.perfetto.dev" in result.out
    assert "Self CPU" in result.out and "aten::" in result.out
    assert "profile" not in json.loads((tmp_path / "run/config.json").read_text())["config"]
    assert not list((tmp_path / "run").glob("*.new"))
    ok(cli("train.py", *quick(**FLAGS), "--overwrite"))
    assert not (tmp_path / "run/trace.json.gz").exists(), "it is of another run"


def test_what_was_recorded_when_the_training_stops_is_written(cli, tmp_path):
    with at_call(Loader, "deal", 7, TERM):
        stopped = cli("train.py", *quick(**FLAGS), "--profile", 100)
    assert stopped.code == 128 + signal.SIGTERM
    assert optimizer_steps(tmp_path / "run") == 2 and "2 steps in" in stopped.out
    resumed = ok(cli(*RESUME, "--profile", 5))
    assert "nothing was profiled" in warnings_of(resumed)[0]
    assert optimizer_steps(tmp_path / "run") == 2


def test_where_there_is_no_training_it_is_refused(cli):
    trained(cli, **FLAGS)
    refused(cli("train.py", "--eval-only", "--out", "run", "--profile", 5), "--profile records a training")
    refused(cli("train.py", "--model", "ngram", "--data", "text.txt", "--profile", 5), "--profile")
    refused(cli("train.py", *quick(**FLAGS), "--profile", 0), "--profile is 0; it has to be at least 1")
