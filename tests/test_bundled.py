"""The small run that comes with the program: it is what its recipe makes, and taken where no run is named."""

import json
import shlex
import time
from pathlib import Path

import pytest

from data.json_files import as_stored
from engine.config.flags import parse
from engine.config.settings import stored
from engine.run.bundled import BUNDLED, RECIPE
from engine.run.folder import read_facts
from engine.run.load import load_run
from tests.helpers import metrics, ok, refused, summary

WORDS = shlex.split(RECIPE)[2:]
FOUND = {"kind", "context"}  # by reading the names
NOTE = "no run is named: this is the one that comes with it, of given names (transformer, 38,112 parameters, loss 2.29)"


def test_the_recipe_is_a_command_whose_run_it_is():
    assert shlex.split(RECIPE)[:2] == ["python", "train.py"]
    config, _ = parse(WORDS)
    facts = read_facts(BUNDLED)
    asked = {name: value for name, value in as_stored(stored(config)).items() if value is not None}
    without_flags = as_stored(stored(parse(["--model", "transformer"])[0]))
    later = {name: asked.pop(name) for name in asked.keys() - facts["config"].keys()}  # flags that came after the run
    assert later.items() <= without_flags.items()
    assert asked.items() <= facts["config"].items() and facts["command"] == "python train.py"
    assert {name for name in facts["config"].keys() - asked.keys() if facts["config"][name] is not None} == FOUND


def test_the_recipe_starts_as_that_run_did(cli):
    ok(cli("train.py", *WORDS, "--steps", 1, "--out", "run"))
    first, recorded = metrics("run")[0], metrics(BUNDLED)[0]
    assert first["step"] == recorded["step"] == 0
    assert first["val_loss"] == pytest.approx(recorded["val_loss"], abs=1e-5)
    mine, theirs = read_facts(Path("run")), read_facts(BUNDLED)
    assert mine["data"] == theirs["data"] and mine["vocab_size"] == theirs["vocab_size"]


@pytest.mark.exhaustive
def test_the_recipe_goes_on_as_that_run_did(process, tmp_path):
    training = process("train.py", *WORDS, "--out", "run")
    while len(lines := metrics(tmp_path / "run") if (tmp_path / "run/metrics.jsonl").exists() else []) < 2:
        assert training.poll() is None, training.stderr.read()
        time.sleep(0.5)
    assert lines[1]["step"] == 500
    assert lines[1]["val_loss"] == pytest.approx(metrics(BUNDLED)[1]["val_loss"], abs=0.01)


def test_its_loss_is_what_its_summary_says(cli):
    assert sum(path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file()) < 200_000
    ok(cli("train.py", "--data", "names", "--model", "ngram", "--out", "other"))  # prepares the names
    (line,) = ok(cli("train.py", "--eval-only", "--out", BUNDLED)).out.splitlines()
    assert json.loads(line)["val_loss"] == pytest.approx(summary(BUNDLED)["val_loss"], abs=1e-4)


def test_sampling_without_a_run_takes_it_and_says_so(cli):
    done = ok(cli("sample.py", "--seed", 3))
    assert len(done.out.splitlines()) == 10 and "" not in done.out.splitlines()
    assert done.err == f"{NOTE}; python train.py makes others\n"
    assert ok(cli("sample.py", BUNDLED, "--seed", 3)).out == done.out
    assert ok(cli("sample.py", "--score", "marianna")).out.endswith("characters\n")
    refused(cli("sample.py", "--chat", "--message", "hello"), "never learned to answer")


def test_its_names_are_mostly_new_and_pronounceable():
    drawn = [sample.text for sample in load_run(BUNDLED, device="cpu").samples([""], 200, seed=1)]
    vowels = sum(bool(set(name) & set("aeiouy")) for name in drawn)
    assert vowels >= 195 and len(set(drawn)) >= 190 and all(name.isalpha() and len(name) < 16 for name in drawn)
