"""What a search found: a table of its trials, how much each flag mattered, the best command, and a picture."""

from collections.abc import Sequence
from typing import Any

from data.disk import replace_file
from data.errors import flag
from data.program import command
from engine.run.results import write_picture
from tune.search import Search
from tune.space import Choices, Value, said, shown
from tune.study import Study, Trial

PARTS = 3  # a range is compared in thirds
FEWEST = 6  # trials from which a share says something


def write(plan: Search, study: Study) -> str:
    """Write report.md, and report.png where a trial is done, into the folder. Returns the text."""
    text = "\n".join(_lines(plan, study)) + "\n"
    replace_file(study.folder / "report.md", text.encode())
    if study.ranked():
        _draw(plan, study)
    return text


def _lines(plan: Search, study: Study) -> list[str]:
    ranked = study.ranked()
    others = [trial for trial in study.trials.values() if trial.state != "done"]
    names = [*map(flag, study.space)]
    lines = [_row(["trial", *names, plan.metric, "parameters", "steps", "seconds"]), "|---" * (len(names) + 5) + "|"]
    lines += [_row(_cells(trial)) for trial in [*ranked, *others]]
    if mattered := importance(study):
        lines += ["", f"How much of the order of the {len(ranked)} trials each flag alone explains:", ""]
        lines += [f"- {flag(name)}: {share:.0%}" for name, share in mattered.items()]
    if ranked:
        best = ranked[0]
        lines += ["", f"The best, trial {best.number}, is in {study.run(best.number)}; the same again:", ""]
        lines += [f"    {best_command(plan, best)}"]
    return lines


def best_command(plan: Search, trial: Trial) -> str:
    """The command of a trial, ready to paste."""
    return f"{command(plan.command)} {said(trial.values, plan.switches, plan.flags)}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(trial: Trial) -> list[str]:
    values = [str(trial.number), *map(shown, trial.values.values())]
    if trial.state != "done":
        results = {
            "pruned": f"stopped early: {_number(trial.score)} at evaluation {len(trial.curve)}",
            "failed": "failed: " + trial.why.replace("|", "\\|"),
        }
        result = results.get(trial.state, "interrupted")
        return [*values, result, "", "", f"{trial.seconds:.1f}"]
    counts = [f"{trial.facts[name]:,}" if trial.facts.get(name) is not None else "" for name in ("params", "steps")]
    return [*values, _number(trial.score), *counts, f"{trial.seconds:.1f}"]


def _number(score: float | None) -> str:
    return "" if score is None else f"{score:.4f}"


def importance(study: Study) -> dict[str, float]:
    """The share of the trials' order that each flag explains by itself, from 0 to 1, the largest first.

    The trials that are done are ranked by the metric and put into groups, one a value or one a third of a range: the
    share is that of the ranks' variance between the groups (epsilon squared of Kruskal and Wallis), less what groups
    of this size have by chance. Ranks, since one run that went wrong would outweigh all others. Empty for few trials.
    """
    ranked = study.ranked()
    if len(ranked) < FEWEST:
        return {}
    shares = {}
    for name, values in study.space.items():
        groups = _groups([trial.values[name] for trial in ranked], isinstance(values, Choices))
        shares[name] = _explained(groups)
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _groups(values: list[Value], are_choices: bool) -> list[list[int]]:
    """The positions of the values: one group for each choice, or for each third of the numbers in order."""
    if are_choices:
        return [[i for i, value in enumerate(values) if value == choice] for choice in dict.fromkeys(values)]
    order = sorted(range(len(values)), key=values.__getitem__)
    return [order[len(order) * part // PARTS : len(order) * (part + 1) // PARTS] for part in range(PARTS)]


def _explained(groups: list[list[int]]) -> float:
    """The share of the variance of 0, 1, ..., n - 1 that lies between groups of them, corrected for chance."""
    n = sum(map(len, groups))
    if not 1 < len(groups) < n:
        return 0.0
    mean, total = (n - 1) / 2, n * (n * n - 1) / 12
    between = sum(len(group) * (sum(group) / len(group) - mean) ** 2 for group in groups)
    return max(0.0, 1 - (1 - between / total) * (n - 1) / (n - len(groups)))


def _draw(plan: Search, study: Study) -> None:
    """The best so far over the trials, and the metric over the values of each flag."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    done = sorted(study.ranked(), key=lambda trial: trial.number)
    figure = Figure(figsize=(3.6 * (1 + len(study.space)), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    first, *panels = figure.subplots(1, 1 + len(study.space), sharey=True, squeeze=False)[0]
    best = [min(done[: n + 1], key=study.cost).score for n in range(len(done))]
    first.plot([trial.number for trial in done], [trial.score for trial in done], "o", color="#9a9a9a", ms=4)
    first.step([trial.number for trial in done], best, where="post", color="#0b6e99", label="best so far")
    first.xaxis.get_major_locator().set_params(integer=True)
    first.set(xlabel="trial", ylabel=plan.metric)
    first.legend(frameon=False)
    for axes, (name, values) in zip(panels, study.space.items(), strict=True):
        _draw_flag(axes, name, values, done)
        axes.plot(*_point(study.ranked()[0], name, values), "o", color="#c8553d", ms=6)
    first.set_ylim(*_limits(study))
    for axes in (first, *panels):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    write_picture(study.folder / "report.png", figure)


def _limits(study: Study) -> tuple[float, float]:
    """What of the metric is shown: all of it, or no farther from the best than three times the median: one run that
    went wrong would flatten all others."""
    costs = sorted(map(study.cost, study.ranked()))
    reach = min(costs[-1] - costs[0], 3 * (costs[len(costs) // 2] - costs[0])) or 0.01
    ends = costs[0] - 0.05 * reach, costs[0] + 1.05 * reach
    return (-ends[1], -ends[0]) if study.is_max else ends


def _point(trial: Trial, name: str, values: Any) -> tuple[list[Any], list[Any]]:
    value = trial.values[name]
    return [values.values.index(value) if isinstance(values, Choices) else value], [trial.score]


def _draw_flag(axes: Any, name: str, values: Any, done: list[Trial]) -> None:
    points = [_point(trial, name, values) for trial in done]
    axes.plot([x for (x,), _ in points], [y for _, (y,) in points], "o", color="#0b6e99", ms=4)
    axes.set_xlabel(flag(name), parse_math=False)
    if isinstance(values, Choices):
        labels = [value.encode("ascii", "replace").decode()[:12] for value in values.values]
        axes.set_xticks(range(len(labels)), labels, parse_math=False)
        axes.set_xlim(-0.5, len(labels) - 0.5)
    elif values.is_log:
        axes.set_xscale("log")
