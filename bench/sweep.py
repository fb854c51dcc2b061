"""A resumable search for the best learning rates, width and dropout over runs of train.py, by Optuna's samplers.

    python -m bench.sweep --data names --muon-lr 5e-3:1e-1 --n-embd 32,64,128 --dropout 0:0.3 --trials 20 --out FOLDER
        [--search bayes|random|grid] [-- flags of train.py for every run, as --model gru --steps 500]

A range LOW:HIGH is searched on a logarithmic scale for learning rates, on a linear one else; a list of values,
separated by commas, is tried as it is; a grid takes lists alone. The folder has Optuna's storage (study.db) and
trials.md, the best first; the same command again resumes the search. bayes is the tree-structured Parzen estimator of
Bergstra et al., "Algorithms for Hyper-Parameter Optimization", 2011.
"""

import argparse
import importlib.util
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.peers import ROOT
from data.errors import UserError, flag, run_command

SEARCHES = ("bayes", "random", "grid")
RATES = ("lr", "muon_lr")
SEARCHED = {"lr": float, "muon_lr": float, "n_embd": int, "n_hidden": int, "dropout": float}
Space = dict[str, dict[str, Any]]  # by flag, {"values": [...]} or {"low": ..., "high": ...}


def parse_space(args: argparse.Namespace) -> Space:
    """The space that is searched. Raises UserError for an invalid range or list."""
    space: Space = {}
    for name, kind in SEARCHED.items():
        if (text := getattr(args, name)) is None:
            continue
        try:
            if ":" in text:
                low, high = map(kind, text.split(":"))
                space[name] = {"low": low, "high": high}
            else:
                space[name] = {"values": [kind(word) for word in text.split(",")]}
        except ValueError as error:
            raise UserError(f"{flag(name)} is '{text}'; it may be LOW:HIGH or values with commas between") from error
        low, high = space[name].get("low", 1), space[name].get("high", 1)
        if low > high or (name in RATES and low <= 0):
            raise UserError(f"{flag(name)} is '{text}'; LOW has to be at most HIGH, and above 0 for a learning rate")
        if args.search == "grid" and "low" in space[name]:
            raise UserError(f"--search grid needs values for {flag(name)}, with commas between; '{text}' is a range")
    if not space:
        raise UserError(f"there is nothing to search: give {', '.join(map(flag, SEARCHED))}, or some of them")
    return space


def open_study(out: Path, search: str, space: Space, rest: list[str], seed: int) -> Any:
    """The study in `out`, a new one or one to resume. Raises UserError where it has other flags."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it would log tracebacks of runs that fail
    out.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.RDBStorage(f"sqlite:///{out / 'study.db'}")
    study = optuna.create_study(storage=storage, study_name="sweep", load_if_exists=True)
    settings = {"search": search, "space": space, "flags": rest}
    if study.user_attrs.get("asked", settings) != settings and not _ended(study):  # of a command that was mistaken
        optuna.delete_study(study_name="sweep", storage=storage)
        study = optuna.create_study(storage=storage, study_name="sweep")
    if study.user_attrs.get("asked", settings) != settings:
        raise UserError(f"{out} holds a sweep of other flags ({json.dumps(study.user_attrs['asked'])}); name another")
    study.set_user_attr("asked", settings)
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):  # of a sweep that was stopped
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    seed += len(study.trials)  # a resumed study must not draw the same values again
    sampler = optuna.samplers.TPESampler if search == "bayes" else optuna.samplers.RandomSampler
    study.sampler = sampler(seed=seed)
    return study


def _ended(study: Any) -> list[Any]:
    """The trials that have ended, with a result or an error."""
    from optuna.trial import TrialState

    return study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))


def _missing(study: Any, space: Space) -> list[dict[str, Any]]:
    """The points of a grid without a trial that has ended. (Optuna's own sampler counts one that was stopped too.)"""
    points = [
        dict(zip(space, point, strict=True))
        for point in itertools.product(*(values["values"] for values in space.values()))
    ]
    ended = [trial.params for trial in _ended(study)]
    return [point for point in points if point not in ended]


def propose(trial: Any, space: Space) -> dict[str, Any]:
    """The values of one trial, by flag."""
    values = {}
    for name, choices in space.items():
        if "values" in choices:
            values[name] = trial.suggest_categorical(name, choices["values"])
        elif SEARCHED[name] is int:
            values[name] = trial.suggest_int(name, choices["low"], choices["high"])
        else:
            values[name] = trial.suggest_float(name, choices["low"], choices["high"], log=name in RATES)
    return values


def train(values: dict[str, Any], rest: list[str]) -> dict[str, Any]:
    """The summary of a run with these values. Raises UserError with the run's message where it fails."""
    flags = [word for name, value in values.items() for word in (flag(name), str(value))]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train.py"), *rest, *flags, "--out", f"{folder}/run"]
        completed = subprocess.run(command, capture_output=True, text=True)
        if completed.returncode:
            lines = completed.stderr.strip().splitlines() or ["no message"]
            raise UserError(" ".join(line for line in lines if line.startswith("error")) or lines[-1])
        return json.loads(Path(folder, "run", "summary.json").read_text())


def search(study: Any, space: Space, rest: list[str], trials: int, is_grid: bool) -> None:
    """Run trials until `trials` of them have ended, or a grid is exhausted."""
    import optuna

    def objective(trial: Any) -> float:
        try:
            summary = train(propose(trial, space), rest)
        except UserError as error:
            if not _ended(study):
                raise  # the first trial fails: probably a mistake in the flags
            trial.set_user_attr("error", str(error))
            raise optuna.TrialPruned from error
        for name in ("params", "seconds", "best_step"):
            trial.set_user_attr(name, summary[name])
        return summary["val_loss"]

    def report(study: Any, trial: Any) -> None:  # called after the trial is stored
        shown = " ".join(f"{flag(name)} {value:.4g}" for name, value in trial.params.items())
        result = f"val {trial.value:.4f}" if trial.value is not None else trial.user_attrs["error"]
        print(f"trial {trial.number}: {shown}: {result}", flush=True)

    while len(_ended(study)) < trials:
        if is_grid:
            if not (missing := _missing(study, space)):
                return
            if not study.get_trials(states=(optuna.trial.TrialState.WAITING,)):
                study.enqueue_trial(missing[0])
        study.optimize(objective, n_trials=1, callbacks=[report])


def table(study: Any, space: Space) -> str:
    """A Markdown table of all trials with a result, the best first."""
    import optuna

    trials = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    columns = ["trial", *map(flag, space), "validation loss", "best step", "parameters", "seconds"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for trial in sorted(trials, key=lambda trial: trial.value):
        attributes = trial.user_attrs
        cells = [str(trial.number), *(f"{trial.params[name]:.4g}" for name in space), f"{trial.value:.4f}"]
        cells += [f"{attributes['best_step']:,}", f"{attributes['params']:,}", f"{attributes['seconds']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="names", help="as train.py's")
    for name in SEARCHED:
        parser.add_argument(flag(name), help="LOW:HIGH, or values with commas between")
    parser.add_argument("--search", choices=SEARCHES, default="bayes")
    parser.add_argument("--trials", type=int, default=20, help="how many in all")
    parser.add_argument("--seed", type=int, default=0, help="of the search")
    parser.add_argument("--out", type=Path, default=Path("sweep"), help="the folder of study.db and trials.md")
    parser.add_argument("rest", nargs="*", help="after --: flags of train.py for every run")
    args = parser.parse_args()
    if importlib.util.find_spec("optuna") is None:
        raise UserError("a sweep needs Optuna: pip install optuna")
    if args.trials < 1:
        raise UserError(f"--trials is {args.trials}; it has to be at least 1")
    space, rest = parse_space(args), ["--data", args.data, *args.rest]
    study = open_study(args.out, args.search, space, rest, args.seed)
    try:
        search(study, space, rest, args.trials, args.search == "grid")
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", flush=True)
        return 130
    finally:
        shown = table(study, space)
        (args.out / "trials.md").write_text(shown + "\n", "utf-8")
    print(f"\n{shown}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
