"""Matrices of tests: a few cases run in `make test`, all of them in `make test-all`."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def matrix(cases: Iterable[Any], everyday: Callable[[Any], bool] | Iterable[Any]) -> list[Any]:
    """The parameters of a test over `cases`, those not `everyday` (a condition, or these) marked exhaustive."""
    listed = [] if callable(everyday) else list(everyday)
    chosen = everyday if callable(everyday) else listed.__contains__
    cases = list(cases)
    assert any(map(chosen, cases)) and all(case in cases for case in listed), "everyday cases are cases"
    return [case if chosen(case) else pytest.param(case, marks=pytest.mark.exhaustive) for case in cases]
