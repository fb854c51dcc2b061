"""How the next trial is chosen, and whether one is stopped early: grid, random, TPE, successive halving.

What a method proposes follows from the seed, the trial's number and the trials before it alone, so that a search which
was interrupted goes on as if it had not been. Optuna is imported only for the last two.
"""

import importlib.util
import itertools
from random import Random
from typing import Any

from data.errors import UserError, flag
from tune.space import Choices, Range, Space, Values
from tune.study import Study, Trial

METHODS = {
    "grid": "every combination of the lists",
    "random": "drawn evenly",
    "tpe": "drawn near what was good so far: the tree-structured Parzen estimator of Bergstra et al. 2011",
    "halving": "as tpe, and a run is stopped early where it is behind: successive halving, Li et al. 2018",
}
WITH_OPTUNA = ("tpe", "halving")
FIRST_DRAWN = 5  # trials before tpe has something to go by
KEPT = 3  # of so many runs that come to 1, 3, 9, ... evaluations one goes on
ATTEMPTS = 1000  # draws of what was not tried yet


def check_method(method: str, space: Space) -> None:
    """Raise UserError where `method` cannot search `space`, or needs a package that is not there."""
    if method == "grid":
        for name, values in space.items():
            if isinstance(values, Range):
                raise UserError(f"--method grid takes lists, as --try {name}=A,B,C; {flag(name)} has a range")
    elif method in WITH_OPTUNA and importlib.util.find_spec("optuna") is None:
        raise UserError(f"--method {method} needs a package: pip install optuna; grid and random need none")


def n_points(space: Space) -> int | None:
    """How many combinations there are; None where a range has more than can be tried."""
    count = 1
    for values in space.values():
        if isinstance(values, Range):
            return None
        count *= len(values.values)
    return count


def propose(method: str, study: Study, seed: int) -> Values | None:
    """The values of the next trial, which no trial had; None where all have been tried."""
    space, tried = study.space, [trial.values for trial in study.trials.values()]
    if method == "grid":
        for point in itertools.product(*(choices.ends() for choices in space.values())):
            if (values := dict(zip(space, point, strict=True))) not in tried:
                return values
        return None
    if method in WITH_OPTUNA and (values := _suggest(study, seed)) not in tried:
        return values
    random = Random(f"{seed} {len(tried)}")
    for _ in range(ATTEMPTS):
        values = {name: choices.draw(random) for name, choices in space.items()}
        if values not in tried:
            return values
    return propose("grid", study, seed) if n_points(space) is not None else None


def _optuna() -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _distributions(space: Space) -> dict[str, Any]:
    of = _optuna().distributions
    found = {}
    for name, values in space.items():
        if isinstance(values, Choices):
            found[name] = of.CategoricalDistribution(values.values)
        elif values.is_whole:
            found[name] = of.IntDistribution(int(values.low), int(values.high), log=values.is_log)
        else:
            found[name] = of.FloatDistribution(values.low, values.high, log=values.is_log)
    return found


def _suggest(study: Study, seed: int) -> Values:
    """What TPE proposes after the trials that have ended."""
    optuna = _optuna()
    space, state = _distributions(study.space), optuna.trial.TrialState
    states = {"done": state.COMPLETE, "pruned": state.PRUNED, "failed": state.FAIL}
    of_trial = Random(f"{seed} {len(study.trials)}").getrandbits(32)  # seeds side by side share nothing
    sampler = optuna.samplers.TPESampler(seed=of_trial, n_startup_trials=FIRST_DRAWN)
    asked = optuna.create_study(direction="maximize" if study.is_max else "minimize", sampler=sampler)
    for trial in study.ended:
        asked.add_trial(
            optuna.trial.create_trial(
                params=trial.values, distributions=space, state=states[trial.state],
                value=trial.score if trial.state == "done" else None,
                intermediate_values=dict(enumerate(trial.curve, 1)),
            )
        )  # fmt: skip
    drawn = asked.ask(space).params
    return {
        name: values.nearest(drawn[name]) if isinstance(values, Range) else drawn[name]
        for name, values in study.space.items()
    }


class Halving:
    """Whether a trial is behind those before it, told at each of its evaluations."""

    def __init__(self, study: Study, trial: Trial):
        optuna = _optuna()
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=KEPT)
        direction = "maximize" if study.is_max else "minimize"
        self._study = optuna.create_study(direction=direction, pruner=pruner, sampler=optuna.samplers.RandomSampler(0))
        self._space = _distributions(study.space)
        for before in study.ended:
            if before.number != trial.number and before.curve:
                self._begin(before.values)
                self.is_behind(before.curve)
                self._study.tell(self._trial, state=optuna.trial.TrialState.PRUNED)  # only its evaluations count
        self._begin(trial.values)

    def _begin(self, values: Values) -> None:
        self._study.enqueue_trial(values)
        self._trial, self._told = self._study.ask(self._space), 0
        self.behind_at: int | None = None  # the evaluation, counted from 1, at which the trial was to be stopped

    def is_behind(self, curve: list[float]) -> bool:
        """Whether the trial with these evaluations so far was at one of them not among the best third of those that
        came as far."""
        for value in curve[self._told :]:
            if self.behind_at is None:
                self._told += 1
                self._trial.report(value, self._told)
                if self._trial.should_prune():
                    self.behind_at = self._told
        return self.behind_at is not None
