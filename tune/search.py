"""The search: trial after trial until a budget is used, each written down before and after it runs."""

import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from data.errors import UserError
from engine.run.results import read_summary
from tune import methods, runs
from tune.space import said, words
from tune.study import Study, Trial

REPORTED = ("steps", "params", "seconds")  # of a run's summary
FIRST_FAILURES = 3  # so many trials that fail before any has worked end the search: the command is mistaken


@dataclass(frozen=True)
class Search:
    """What is searched, and for how long."""

    command: str  # as COMMANDS names it
    flags: list[str]  # of every run
    switches: set[str]  # the flags that are on or off
    method: str
    metric: str
    seed: int
    trials: int | None  # how many end, at most
    minutes: float | None  # of all trials together
    patience: int | None  # trials in a row that are no better than the best


def search(plan: Search, study: Study) -> None:
    """Run trials until one of the budgets is used or all combinations have been tried. Raises UserError where nothing
    works, and KeyboardInterrupt, with all written down, on a signal."""
    while not _is_over(plan, study):
        if (trial := study.unfinished) is None:
            if (values := methods.propose(plan.method, study, plan.seed)) is None:
                return
            trial = study.note(Trial(len(study.trials), values))
        trial = _run(plan, study, trial)
        _say(plan, study, trial)
        if trial.state == "interrupted":
            return
        states = {each.state for each in study.ended}
        if states == {"failed"} and len(study.ended) >= FIRST_FAILURES:
            raise UserError(
                f"the first {FIRST_FAILURES} trials failed; the last one said: {trial.why} "
                f"(all of it: {study.output(trial.number)})"
            )


def _is_over(plan: Search, study: Study) -> bool:
    ended, ranked = study.ended, study.ranked()
    if plan.trials is not None and len(ended) >= plan.trials:
        return True
    since_best = len(ended) - 1 - ended.index(ranked[0]) if ranked else 0
    return (plan.patience is not None and since_best >= plan.patience) or _seconds_left(plan, study) <= 0


def _seconds_left(plan: Search, study: Study) -> float:
    return float("inf") if plan.minutes is None else 60 * plan.minutes - study.seconds


def _run(plan: Search, study: Study, trial: Trial) -> Trial:
    """Run a trial, or go on with it, until it ends, falls behind, or the time is over; write down what came of it."""
    run, output = study.run(trial.number), study.output(trial.number)
    flags = [*plan.flags, *words(trial.values, plan.switches)]
    curve = runs.Curve(run, plan.metric)
    halving = methods.Halving(study, trial) if plan.method == "halving" else None
    before = output.stat().st_size if output.exists() else 0
    left, begin = _seconds_left(plan, study), time.monotonic()

    def note(state: str, **found: Any) -> Trial:
        seconds = round(trial.seconds + time.monotonic() - begin, 3)
        return study.note(replace(trial, state=state, seconds=seconds, **({"curve": curve.read()} | found)))

    def is_behind() -> bool:
        return halving is not None and halving.is_behind(curve.read())

    def look() -> bool:
        return is_behind() or time.monotonic() - begin >= left

    with _stopped_by_signals():
        process = runs.start(plan.command, flags, run, output)
        try:
            code = runs.watch(process, look)
        except KeyboardInterrupt:
            runs.stop(process)
            note("interrupted")
            raise
    if is_behind():  # whatever else it came to by the time it stopped: what is tried next must not depend on that
        seen = curve.values[: halving.behind_at]  # type: ignore[union-attr]
        return note("pruned", score=seen[-1], curve=seen)
    if process.returncode == 0 and (summary := read_summary(run)):  # also one that ended just before it was stopped
        try:
            score = _score(plan, summary, curve)
            if halving is not None and not curve.values:
                raise UserError(
                    f"--method halving compares runs by their evaluations, which do not measure {plan.metric}; they "
                    f"measure {', '.join(curve.known)}"
                )
        except UserError as error:  # true of every run: the search ends
            note("failed", why=str(error))
            raise
        return note("done", score=score, facts={name: summary.get(name) for name in REPORTED})
    if code is None:
        return note("interrupted")
    if code in runs.DISTURBED:  # somebody else stopped it, who may stop this search next
        note("interrupted")
        raise UserError(f"{run} was stopped from outside; the same command goes on from there")
    return note("failed", why=runs.complaint(output, before, code))


def _score(plan: Search, summary: dict[str, Any], curve: runs.Curve) -> float:
    """The metric of a run, as 'val_loss' or 'test.accuracy': that of its summary, else of the evaluation of its best
    weights. Raises UserError where neither has such a number."""
    value: Any = summary
    for name in plan.metric.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if not runs.is_number(value):
        value = curve.at(summary.get("best_step"))
    if value is None:
        known = ", ".join(dict.fromkeys([*_numbers(summary), *curve.known]))
        raise UserError(f"the summary of a run has no number '{plan.metric}'; it has {known}")
    return float(value)


def _numbers(summary: dict[str, Any], above: str = "") -> Iterator[str]:
    """The numbers of a summary and of what is directly in it."""
    for name, value in summary.items():
        if isinstance(value, dict) and not above:
            yield from _numbers(value, f"{name}.")
        elif runs.is_number(value):
            yield above + name


def _say(plan: Search, study: Study, trial: Trial) -> None:
    """A line for a trial that has ended or was interrupted."""
    result = {
        "done": f"{plan.metric} {trial.score:.4f}" if trial.score is not None else "",
        "pruned": f"stopped early, behind at evaluation {len(trial.curve)}",
        "failed": f"failed: {trial.why}",
        "interrupted": "the minutes are over; with more of them it goes on",
    }[trial.state]
    best = ", the best so far" if trial.state == "done" and study.ranked()[0] == trial else ""
    print(
        f"trial {trial.number}: {said(trial.values, plan.switches)}: {result}{best} ({trial.seconds:.1f} s)", flush=True
    )


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Inside, SIGTERM is what Ctrl-C is; one that was inherited ignored stays ignored."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGTERM)
    if before is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
