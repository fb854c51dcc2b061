"""The experiments of the course, one file an article: docs/experiments/gru.py belongs to docs/articles/14-gru.md."""

import importlib
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType

from data.errors import UserError, nearest


@dataclass(frozen=True)
class Experiment:
    """Commands, and the figure that they are to give.

    `key` names it in the markers of the pages and in docs/results.json; `command` is what a reader types, one command a
    line; `figure` is a key of the summary.json that the last line's run leaves, or, where it is no such word, a regular
    expression with one group, whose last match in the output of the last line is the number. The figure has to be at
    least `low` and at most `high`, on any machine."""

    key: str
    command: str
    figure: str
    low: float
    high: float
    unit: str = "nats a character"
    digits: int = 3  # after the point, in the pages

    @property
    def lines(self) -> list[str]:
        return self.command.strip().splitlines()


@dataclass(frozen=True)
class Picture:
    """A picture that docs/figures/`name`.py draws of the runs of the experiments `of`, in this order, into
    docs/assets/pictures/`name`.svg; of none where it needs no run."""

    name: str
    of: tuple[str, ...] = ()


def modules() -> list[ModuleType]:
    """The files of this folder, each with its EXPERIMENTS and PICTURES."""
    return [importlib.import_module(f"{__name__}.{each.name}") for each in pkgutil.iter_modules(__path__)]


def experiments() -> dict[str, Experiment]:
    """All experiments by key, in the order of the files. Raises UserError for a key that two have."""
    found: dict[str, Experiment] = {}
    for module in modules():
        for each in module.EXPERIMENTS:
            if each.key in found:
                raise UserError(f"two experiments are called {each.key}: the second in {module.__name__}")
            found[each.key] = each
    return found


def experiment(key: str) -> Experiment:
    """The experiment with this key. Raises UserError where there is none."""
    known = experiments()
    if key not in known:
        raise UserError(f"there is no experiment '{key}' in docs/experiments.{nearest(key, known)}")
    return known[key]


def pictures_of(keys: Iterable[str]) -> list[Picture]:
    """The pictures of the files that have these experiments."""
    wanted = {*keys}
    found = [module for module in modules() if any(each.key in wanted for each in module.EXPERIMENTS)]
    return [picture for module in found for picture in module.PICTURES]
