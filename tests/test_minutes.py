"""`--minutes`: time as the budget of a training, alone or beside steps. The clock of these runs is a counted one."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.training import budget
from engine.training.schedules import lr_factor
from tests.conftest import NAMES
from tests.helpers import INT, LINES, at_call, facts, left, metrics, ok, quick, refused, summary

pytestmark = pytest.mark.usefixtures("names", "text")  # names.txt and text.txt stand where the commands run
FLAGS = [str(word) for word in quick("mlp", **LINES)]
TIMED = FLAGS[: FLAGS.index("--steps")] + FLAGS[FLAGS.index("--steps") + 2 :]  # without --steps


@pytest.fixture(autouse=True)
def counted_clock(monkeypatch):
    """Every look at the clock is a second after the last: a step takes one, and an evaluation one more."""
    seconds = itertools.count()
    monkeypatch.setattr(budget, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))


def config() -> dict:
    return json.load(open("run/config.json"))["config"]


def test_time_alone_ends_a_training_and_the_rate_comes_down_with_it(cli):
    ok(cli("train.py", *TIMED, "--minutes", 0.25, "--schedule", "linear", "--lr", 1, "--lr-floor", 0.2))
    lines = metrics()
    assert config()["steps"] is None and config()["minutes"] == 0.25
    assert [line["step"] for line in lines] == [0, 3, 6, 9, 10]  # of 15 seconds the evaluations take five
    assert lines[-1]["lr"] == pytest.approx(0.2) and lines[2]["lr"] == pytest.approx(1 - 0.8 * 9 / 15)
    assert summary()["steps"] == 10 == facts(Path("run"))["step"]


@pytest.mark.parametrize("minutes, steps, done", [(100, 4, 4), (0.1, 400, 3)])
def test_whichever_comes_first_of_steps_and_minutes_ends_a_training(cli, minutes, steps, done):
    ok(cli("train.py", *TIMED, "--steps", steps, "--minutes", minutes))
    assert summary()["steps"] == done == metrics()[-1]["step"] and config()["steps"] == steps


def test_a_resume_goes_on_with_the_time_that_is_left_or_with_more(cli):
    with at_call(budget.Budget, "show", 5, INT):
        stopped = cli("train.py", *TIMED, "--minutes", 0.25)
    assert stopped.code == 130 and facts(Path("run"))["progress"]["elapsed"] == 8  # five steps, two evaluations
    ok(cli("train.py", "--resume", "--out", "run"))
    assert summary()["steps"] == 9 and config()["minutes"] == 0.25  # starting again took another second
    ok(cli("train.py", "--resume", "--out", "run", "--minutes", 0.5))
    assert 15 < summary()["steps"] < 25 and config() == config() | {"steps": None, "minutes": 0.5}
    ok(cli("train.py", "--resume", "--out", "run", "--steps", 30, "--minutes", 50))
    assert summary()["steps"] == 30
    ok(cli("train.py", "--resume", "--out", "run", "--minutes", 60))
    assert summary()["steps"] == 30  # a limit that the run was given stays


def test_a_run_of_steps_that_goes_on_with_minutes_has_no_other_limit(cli):
    ok(cli("train.py", *FLAGS))
    ok(cli("train.py", "--resume", "--out", "run", "--minutes", 0.5))
    assert config()["steps"] is None and summary()["steps"] > 6


def test_time_does_not_touch_a_run_of_steps(cli):
    ok(cli("train.py", *FLAGS))
    whole = left(Path("run"))
    with at_call(budget.Budget, "show", 4, INT):
        cli("train.py", *FLAGS, "--overwrite")
    ok(cli("train.py", "--resume", "--out", "run"))
    assert left(Path("run")) == whole and metrics()[-1]["step"] == 6


def test_the_other_commands_have_it_too(cli):
    rows = "".join(f"{label}\t{word} {name}\n" for name in NAMES for label, word in (("a", "see"), ("b", "win")))
    Path("rows.tsv").write_text(rows)
    said = [json.dumps({"prompt": f"Greet {name}", "completion": f"hi {name}"}) for name in NAMES]
    Path("said.jsonl").write_text("\n".join(said))
    sizes = ("--n-embd", 8, "--eval-interval", 4, "--batch-size", 4, "--minutes", 0.2)
    for command, data in (("classify", "rows.tsv"), ("instruct", "said.jsonl")):
        ok(cli(f"-m finetune.{command}", "--data", data, *sizes, "--out", "run", "--overwrite"))
        assert config()["steps"] is None and [line["step"] for line in metrics()] == [0, 4, 8]
        refused(cli(f"-m finetune.{command}", "--data", data, "--minutes", 0.0), "--minutes is 0.0")


def test_a_config_file_gives_minutes_and_its_steps_yield_to_the_flag(cli):
    Path("c.json").write_text('{"minutes": 0.25}')
    ok(cli("train.py", *TIMED, "--config", "c.json"))
    assert config()["steps"] is None and summary()["steps"] == 10
    Path("c.json").write_text('{"minutes": 0.25, "steps": 3}')
    ok(cli("train.py", *TIMED, "--config", "c.json", "--overwrite"))
    assert config()["steps"] == 3 == summary()["steps"]
    Path("c.json").write_text('{"steps": 3}')
    ok(cli("train.py", *TIMED, "--config", "c.json", "--minutes", 0.25, "--overwrite"))
    assert config()["steps"] is None and summary()["steps"] == 10


def test_the_rate_follows_what_is_further_and_comes_down_even_in_the_warm_up():
    assert lr_factor("linear", 50, 100, 0, 0, 0.2) == pytest.approx(0.5)
    assert lr_factor("linear", 50, 100, 0, 0, 0.8) == lr_factor("linear", 50, None, 0, 0, 0.8) == pytest.approx(0.2)
    assert lr_factor("linear", 5, None, 9, 0, 0.9) == pytest.approx(0.1) and lr_factor("linear", 5, 99, 9, 0) == 0.6
    assert lr_factor("wsd", 3, None, 0, 0.1, 7.0) == pytest.approx(0.1)
