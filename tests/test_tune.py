"""The search for flags: what each method tries, what is left after a kill, and what is refused before the first run."""

import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from matplotlib.image import imread

from tests.conftest import TINY, Forked
from tests.helpers import metrics, ok, refused, summary
from tests.matrices import matrix
from tune import methods, report
from tune.space import parse_space
from tune.study import Study, Trial

MLP = ["--data", "names.txt", "--kind", "lines", "--model", "mlp", *TINY["mlp"][:2], "--threads", "1"]
RUN = ["--", *MLP, "--steps", 4, "--eval-interval", 2]
FEW = ["--try", "lr=0.001,0.01", "--try", "n_embd=4,8", "--out", "s"]


class ForkedRun:
    """What subprocess.Popen is, of a command that is forked from its search: torch is loaded there."""

    def __init__(self, command, *, stdout, **how):
        self._output, self._run = Path(stdout.name).resolve(), Forked(Path.cwd(), "-m charlm", *command[3:])
        self.returncode = None

    def poll(self):
        if self.returncode is None and (ended := os.waitpid(self._run.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(ended[1])
            self._output.write_text("".join(path.read_text() for path in self._run.streams[1:]))
        return self.returncode

    def wait(self):
        while self.poll() is None:
            time.sleep(0.01)

    def terminate(self):
        self._run.kill(signal.SIGTERM)


_Popen = subprocess.Popen


def popen(command, *args, **how):
    """subprocess.Popen, with the runs of a search forked."""
    return ForkedRun(command, **how) if command[1:3] == ["-m", "charlm"] else _Popen(command, *args, **how)


@pytest.fixture
def tune(cli, names, monkeypatch):
    """`tune(...)` runs a search in `tmp_path`, its runs forked."""
    monkeypatch.setattr(subprocess, "Popen", popen)
    return lambda *words: cli("-m tune", *words)


def trials(folder="s") -> list[dict]:
    """The last line of each trial."""
    lines = [json.loads(line) for line in Path(folder, "trials.jsonl").read_text().splitlines()]
    return [*{line["number"]: line for line in lines}.values()]


def told(folder="s") -> list[tuple]:
    """What each trial tried and what came of it, without its times."""
    return [
        (trial["number"], trial["values"], trial["state"], trial["score"], trial["curve"]) for trial in trials(folder)
    ]


def test_a_grid_tries_every_combination_once_and_its_best_command_is_the_best_run_again(tune, cli, tmp_path, drawn):
    done = ok(tune(*FEW, *RUN))
    values = [trial["values"] for trial in trials()]
    assert values == [{"lr": lr, "n_embd": n} for lr in ("0.001", "0.01") for n in ("4", "8")]
    assert imread(tmp_path / "s/report.png").ndim == 3 and (tmp_path / "s/report.md").read_text() in done.out
    best = min(trials(), key=lambda trial: trial["score"])
    rows = [line.split("|")[1].strip() for line in done.out.splitlines() if line.startswith("| ")][1:]
    assert rows[0] == str(best["number"]) and sorted(rows) == ["0", "1", "2", "3"]
    (command,) = [line for line in done.out.splitlines() if line.startswith("    python train.py ")]
    ok(cli(*shlex.split(command)[1:], "--out", "again"))
    assert summary("again")["val_loss"] == best["score"] == summary(f"s/trials/000{best['number']}")["val_loss"]
    lines = Path("s/trials.jsonl").read_bytes()
    assert "\ntrial " not in "\n" + ok(tune(*FEW, *RUN)).out and Path("s/trials.jsonl").read_bytes() == lines


@pytest.mark.parametrize("method", matrix(["random", "tpe", "halving"], ["tpe"]))
def test_what_is_tried_does_not_depend_on_where_the_search_stopped(tune, method):
    tried = ["--try", "lr=1e-4..1:log", "--try", "n_embd=2..9", "--try", "activation=relu,tanh", "--method", method]
    ok(tune(*tried, "--out", "whole", "--trials", 7, *RUN))
    for n in (2, 6, 7):
        ok(tune(*tried, "--out", "s", "--trials", n, *RUN))
        assert len(trials()) == n
    assert told() == told("whole")
    values = [trial["values"] for trial in trials()]
    assert len({json.dumps(value) for value in values}) == 7
    assert all(
        1e-4 <= v["lr"] <= 1 and v["n_embd"] in range(2, 10) and v["activation"] in ("relu", "tanh") for v in values
    )


@pytest.mark.parametrize("signum", matrix([signal.SIGKILL, signal.SIGINT], [signal.SIGKILL]))
def test_a_search_that_is_stopped_goes_on_with_its_trial(tune, process, signum):
    """With a search and runs as real processes: of one that is killed the run trains on, and is waited for."""
    words = ["--try", "lr=0.001,0.01", "--", *MLP, "--steps", 800, "--eval-interval", 400, "--save-interval", 200]
    ok(tune("--out", "whole", *words))
    search = process("-m tune", "--out", "s", *words)
    while not Path("s/trials/0001/last").exists():  # the second one is at work
        assert search.poll() is None
        time.sleep(0.01)
    search.send_signal(signum)
    out, err = search.communicate(timeout=120)
    assert search.returncode == (130 if signum == signal.SIGINT else -9) and "Traceback" not in err
    if signum == signal.SIGINT:
        assert "the same command goes on from here" in out and not Path("s/lock").exists()
        assert "saved at step" in Path("s/trials/0001.txt").read_text() and not Path("s/trials/0001/lock").exists()
    assert trials()[1]["state"] == ("interrupted" if signum == signal.SIGINT else "running")
    first, name = (
        Path("s/trials/0000/summary.json").stat(),
        json.loads(Path("s/trials/0001/config.json").read_text())["id"],
    )
    with open("s/trials.jsonl", "a") as file:
        file.write('{"number": 1, "val')  # what a kill tears
    done = ok(tune("--out", "s", *words))
    assert told() == told("whole") and "trial 0:" not in done.out
    assert Path("s/trials/0000/summary.json").stat() == first, "what has ended is not run again"
    assert json.loads(Path("s/trials/0001/config.json").read_text())["id"] == name, "the same run went on"


def test_a_trial_that_fails_is_kept_as_failed_and_the_search_goes_on(tune):
    words = ["--try", "lr=0.1,1e30", "--try", "n_embd=4,8", "--out", "s"]
    flags = [*RUN, "--optimizer", "sgd", "--grad-clip", 0, "--warmup", 0]
    done = ok(tune(*words, *flags))
    states = {trial["values"]["lr"]: trial["state"] for trial in trials()}
    assert states == {"0.1": "done", "1e30": "failed"} and len(trials()) == 4
    assert "is not finite at step" in trials()[3]["why"] and done.out.count("| failed: ") == 2
    assert "trial " not in ok(tune(*words, *flags)).out.split("| trial")[0]


def test_halving_stops_runs_that_are_behind(tune):
    words = ["--try", "lr=1e-7..1e-1:log", "--method", "halving", "--trials", 6, "--out", "s"]
    done = ok(tune(*words, "--", *MLP, "--steps", 1000, "--eval-interval", 50, "--warmup", 0))
    pruned = [trial for trial in trials() if trial["state"] == "pruned"]
    assert pruned and done.out.count(": stopped early, behind at evaluation ") == len(pruned)
    assert {len(trial["curve"]) for trial in pruned} <= {1, 3, 9}
    assert not all(Path(f"s/trials/000{trial['number']}/summary.json").exists() for trial in pruned), "none was stopped"


def test_other_commands_metrics_and_patience(tune, tmp_path):
    rows = [f"{label}\t{label * 3}{n}" for n in range(40) for label in "ab"]
    (tmp_path / "letters.tsv").write_text("label\ttext\n" + "\n".join(rows) + "\n")
    words = [
        "classify",
        "--try",
        "lr=0.003,0.01,0.02,0.03",
        "--patience",
        1,
        "--maximize",
        "val.accuracy",
        "--out",
        "s",
    ]
    sizes = ["--n-embd", 8, "--n-hidden", 8, "--steps", 60, "--eval-interval", 30, "--no-baseline"]
    done = ok(tune(*words, "--", "--data", "letters.tsv", *sizes))
    scores = [trial["score"] for trial in trials()]
    assert scores[-1] <= max(scores[:-1]) and len(scores) < 4, scores
    assert (
        f"The best, trial {scores.index(max(scores))}," in done.out and "python -m finetune.classify --data" in done.out
    )


@pytest.mark.exhaustive
def test_instructions_are_searched_too(tune, greetings):
    words = [
        "instruct",
        "--try",
        "n_embd=8,16",
        "--try",
        "tie_head=on,off",
        "--maximize",
        "test.exact_match",
        "--out",
        "s",
    ]
    sizes = ["--n-layer", 1, "--n-head", 2, "--steps", 4, "--eval-interval", 2]
    done = ok(tune(*words, "--out", "s", "--", "--data", greetings.name, *sizes))
    assert [trial["state"] for trial in trials()] == ["done"] * 4 and "python -m finetune.instruct --data" in done.out


def test_translations_are_searched_too(tune, tmp_path):
    (tmp_path / "upper.tsv").write_text("".join(f"{n:b}\t{n:o}\n" for n in range(300)))
    words = ["translate", "--try", "align=none,luong-dot", "--maximize", "val_chrf", "--out", "s"]
    sizes = ["--n-embd", 8, "--n-hidden", 8, "--steps", 4, "--eval-interval", 2]
    done = ok(tune(*words, "--", "--data", "upper.tsv", *sizes))
    assert [trial["state"] for trial in trials()] == ["done"] * 2 and "python -m finetune.translate --data" in done.out
    for trial in trials():
        run = Path(f"s/trials/000{trial['number']}")
        (line,) = [line for line in metrics(run) if line["step"] == summary(run)["best_step"]]
        assert trial["score"] == line["val_chrf"]


def test_a_search_stops_at_its_trials_where_one_was_interrupted(tune):
    ok(tune(*FEW, "--trials", 2, *RUN))
    line = trials()[1] | {"number": 2, "values": {"lr": "0.01", "n_embd": "4"}, "state": "interrupted", "score": None}
    with open("s/trials.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")
    assert "trial 2:" not in ok(tune(*FEW, "--trials", 2, *RUN)).out
    ok(tune(*FEW, *RUN))
    assert [trial["state"] for trial in trials()] == ["done"] * 4


def test_minutes_end_the_search_and_more_of_them_go_on(tune):
    words = ["--try", "lr=0.01,0.02", "--out", "s"]
    long = ["--", *MLP, "--steps", 100_000, "--eval-interval", 100]
    done = ok(tune(*words, "--minutes", 0.02, *long))
    assert [trial["state"] for trial in trials()] == ["interrupted"] and "with more of them it goes on" in done.out
    step = json.loads(Path("s/trials/0000/last/facts.json").read_text())["step"]
    ok(tune(*words, "--minutes", 0.05, *long))
    assert [trial["state"] for trial in trials()] == ["interrupted"]
    assert json.loads(Path("s/trials/0000/last/facts.json").read_text())["step"] > step


REFUSED = {
    "an unknown flag": (["--try", "n_layers=1,2"], "Unrecognized options: --n-layers"),
    "a value of another kind": (["--try", "n_embd=4,many"], "many"),
    "what the family has not": (["--try", "n_head=1,2", *RUN], "--n-head"),
    "a wrong flag of every run": (["--try", "lr=1,2", "--", "--lear", 3], "Unrecognized options: --lear"),
    "nothing": ([], "there is nothing to try; --try takes FLAG=A,B,C"),
    "no values": (["--try", "lr"], "--try 'lr' says no flag and no values"),
    "backwards": (["--try", "lr=1..0.1"], "the first number has to be less than the second"),
    "no logarithm": (["--try", "lr=0..1:log"], "a logarithmic range begins above 0"),
    "another scale": (["--try", "lr=1..2:linear"], "ends in ':linear', which may only be ':log'"),
    "no number": (["--try", "lr=low..high"], "an end that is no number"),
    "twice": (["--try", "lr=1,2", "--try", "lr=3"], "--try names --lr twice"),
    "here and there": (["--try", "lr=1,2", "--", "--lr=3"], "--lr is tried, and stands behind -- too"),
    "a folder": (["--try", "lr=1,2", "--", "--out", "x"], "--out is not for a search"),
    "a grid of a range": (["--try", "lr=0.1..1", "--method", "grid"], "--method grid takes lists, as --try lr=A,B,C"),
    "no switch": (["--try", "counts=yes,no"], "--counts is on or off: --try counts=on,off"),
    "no command": (
        ["serve", "--try", "lr=1,2"],
        "'serve' is no command to search; there are: train, classify, instruct, translate",
    ),
    "another loss": (["--try", "tokenizer=char,byte"], "--tokenizer changes what val_loss is", "val_bits_per_char"),
    "another price": (
        ["instruct", "--try", "kl=0,0.1", "--", "--grpo", "--init", "x", "--reward", "alternating"],
        "--kl changes what val_loss is a loss of",
        "val_reward",
    ),
    "a translation": (["translate", "--try", "lr=1,2", "--", "--translate", "x"], "--translate is not for a search"),
    "standard input": (["--try", "lr=1,2", "--", "--data", "-"], "every run reads the data anew"),
    "no trial": (["--try", "lr=1,2", "--trials", 0], "--trials is 0; it has to be above 0"),
    "flags in front": (
        ["--try", "lr=1,2", "--steps", 3],
        "the search has no --steps; the flags of every run stand behind --",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_refused_before_there_is_a_folder(tune, case):
    words, *said = REFUSED[case]
    refused(tune(*words), *said)
    assert not Path("studies").exists()


def test_a_command_whose_trials_all_fail_ends_in_what_they_say_and_may_be_mended(tune):
    refused(tune(*FEW, "--", *MLP, "--data", "nowhere.txt"), "the first 3 trials failed", "nowhere.txt")
    ok(tune(*FEW, "--trials", 1, *RUN))
    assert [trial["state"] for trial in trials()] == ["done"]
    refused(tune(*FEW, *RUN, "--seed", 3), "s holds another search: its flags is", "name another --out")


def test_a_file_in_the_place_of_the_folder_is_named(tune):
    Path("s").write_text("mine")
    refused(tune(*FEW, *RUN), "s is a file", "name another --out")
    assert Path("s").read_text() == "mine"


def test_a_metric_that_a_run_has_not_is_said_with_those_it_has(tune):
    refused(tune(*FEW, "--minimize", "loss", *RUN), "has no number 'loss'", "val_loss")
    words = ["--try", "lr=0.001..0.1", "--method", "halving", "--maximize", "tokens_per_second", "--out", "h"]
    refused(
        tune(*words, *RUN), "compares runs by their evaluations, which do not measure tokens_per_second", "val_loss"
    )


def test_a_strangers_folder_is_checked(tune, tmp_path):
    ok(tune(*FEW, "--trials", 1, *RUN))
    line = trials()[0] | {"values": {"lr": "0.001", "n_embd": "--out=/"}}
    Path("s/trials.jsonl").write_text(json.dumps(line) + "\n")
    refused(tune(*FEW, *RUN), "trials.jsonl is damaged: trial 0 has other values")
    Path("s/trials.jsonl").write_text(
        json.dumps(line | {"values": {"lr": "0.001", "n_embd": "4"}, "score": None}) + "\n"
    )
    refused(tune(*FEW, *RUN), "trials.jsonl:1 is damaged: trial 0 is done, and has no score")
    Path("s/trials.jsonl").write_text("no json\n")
    refused(tune(*FEW, *RUN), "trials.jsonl:1 is damaged: it is not JSON")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/poem.txt").write_text("The sea")
    refused(tune(*FEW[:4], "--out", "mine", *RUN), "mine is no folder of a search: it has poem.txt")


def test_grid_and_random_need_no_optuna_and_the_others_say_what_to_install(cli, names, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setitem(sys.modules, "optuna", None)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "optuna" else find(name, *a))
    ok(cli("-m tune", "--try", "lr=0.001..0.1:log", "--trials", 2, "--out", "s", *RUN))
    refused(cli("-m tune", *FEW, "--method", "halving", *RUN), "--method halving needs a package: pip install optuna")


def studied(scores: list[tuple[dict, float]], *tries: str) -> Study:
    study = Study(Path("s"), parse_space(tries), is_max=False)
    study.trials = {n: Trial(n, values, "done", score) for n, (values, score) in enumerate(scores)}
    return study


def test_the_flag_that_decides_is_the_important_one():
    points = [({"lr": lr, "n_layer": n}, lr + 1e-4 * (n == "2")) for lr in (0.1, 0.2, 0.4, 0.5, 0.8, 0.9) for n in "12"]
    shares = report.importance(studied(points, "lr=0.0..1", "n_layer=1,2"))
    assert list(shares) == ["lr", "n_layer"] and shares["lr"] > 0.8 and shares["n_layer"] < 0.05
    assert report.importance(studied(points[:4], "lr=0.0..1", "n_layer=1,2")) == {}


def test_a_range_has_whole_numbers_where_its_flag_takes_those(tune):
    words = ["--method", "random", "--trials", 3, "--out", "s", *RUN]
    ok(tune("--try", "dropout=0..1", "--try", "n_hidden=4..9", "--try", "weight_decay=1..2", *words))
    tried = [trial["values"] for trial in trials()]
    assert all(0 < value["dropout"] < 1 < value["weight_decay"] < 2 for value in tried)
    assert all(isinstance(value["n_hidden"], int) for value in tried)


def test_a_space_that_is_used_up_ends_the_search():
    points = [({"n_layer": n}, 1.0) for n in "123"]
    for method in methods.METHODS:
        assert methods.propose(method, studied(points, "n_layer=1,2,3"), 0) is None
        assert methods.propose(method, studied(points[:2], "n_layer=1,2,3"), 0) == {"n_layer": "3"}


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_another_seed_draws_other_values(method):
    proposed = [methods.propose(method, studied([({"lr": 0.5}, 1.0)] * n, "lr=0.0..1"), 7 - n) for n in range(4)]
    assert len({values["lr"] for values in proposed}) == 4
