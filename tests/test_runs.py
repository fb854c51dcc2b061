"""python -m engine.runs: the list of the runs in a folder."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.helpers import ok, quick, refused

COMMAND = "-m engine.runs"


def rows(cli, *flags) -> list[dict]:
    return [json.loads(line) for line in ok(cli(COMMAND, *flags, "--json")).out.splitlines()]


def test_runs_of_every_kind_are_listed_with_what_their_summaries_say(cli):
    found = {Path(row["run"]).name: row for row in rows(cli, ROOT / "tests/old_runs")}
    folders = {path.parent.name: path for path in ROOT.glob("tests/old_runs/*/summary.json")}
    assert found.keys() == folders.keys() and len(found) > 20
    for name, path in folders.items():
        summary, row = json.loads(path.read_text()), found[name]
        assert (row["loss"], row["size"], row["steps"]) == (summary["val_loss"], summary["params"], summary["steps"])
        assert row["family"].split(" + ")[0] == summary["model"]
    assert found["transformer-mixture"]["family"] == "transformer + 2-gram"
    assert [found[name]["task"] for name in ("mlp", "classify", "instruct-lora")] == [None, "classify", "instruct"]


def test_the_table_says_the_same_for_people(cli):
    done = ok(cli(COMMAND, ROOT / "tests/old_runs"))
    head, *lines = done.out.splitlines()
    assert head.split() == ["run", "family", "data", "loss", "size", "steps", "date"]
    (line,) = (line for line in lines if "transformer-mixture " in line)
    assert line.split()[1:8] == ["transformer", "+", "2-gram", "names", "2.6594", "2,041", "6"]
    assert "warning: no runs, as they have no config.json: texts\n" == done.err


def test_each_order_is_one(cli):
    runs = ROOT / "tests/old_runs"
    by_loss = [(row["task"] or "", row["data"], row["loss"]) for row in rows(cli, runs)]
    assert by_loss == sorted(by_loss)
    for name, key in (("size", "size"), ("date", "date"), ("name", "run")):
        values = [row[key] for row in rows(cli, runs, "--sort", name)]
        assert values == sorted(values)


def test_a_broken_run_is_named_and_the_others_are_listed(cli):
    for name in ("mlp", "rnn", "bigram"):
        shutil.copytree(ROOT / "tests/old_runs" / name, f"runs/{name}")
    Path("runs/mlp/config.json").write_text("{")
    Path("runs/mlp/summary.json").unlink()
    Path("runs/rnn/config.json").write_text('{"format": 99}')
    Path("runs/notes.txt").write_text("no folder")
    done = ok(cli(COMMAND))
    assert "runs/bigram" in done.out and "runs/mlp" not in done.out
    assert "runs/mlp/config.json" in done.err and "runs/rnn/config.json has format 99" in done.err
    assert done.err.count("warning: ") == 2


def test_a_run_that_has_not_ended_is_listed_with_its_checkpoint(cli, names):
    ok(cli("train.py", "--data", "names.txt", "--kind", "lines", *quick()))
    (whole,) = rows(cli, "run")
    Path("run/summary.json").unlink()
    (half,) = rows(cli, "run")
    assert half | {"date": whole["date"]} == whole
    shutil.rmtree("run/best"), shutil.rmtree("run/last")
    (bare,) = rows(cli, "run")
    assert (bare["loss"], bare["size"], bare["steps"]) == (None, 0, 0) and "  -  " in ok(cli(COMMAND, "run")).out


def test_no_folder_and_no_runs(cli, tmp_path):
    refused(cli(COMMAND, "elsewhere"), "there is no folder elsewhere; python train.py makes runs in runs")
    for _ in range(2):
        assert ok(cli(COMMAND)).out == "no runs in runs; python train.py makes one\n" and rows(cli) == []
        (tmp_path / "runs").mkdir(exist_ok=True)


def test_the_list_needs_no_torch():
    check = "import sys, engine.runs; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True).stdout == b"False\n"
