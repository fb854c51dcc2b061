"""Rewards: functions of an answer, its question and the answer that was wanted, to a number. Imports no torch.

A function of one's own is named as MODULE:FUNCTION, and called as `function(answer, prompt, wanted)`; without questions
the last two are empty. It runs in a process of its own (scorer.py).
"""

import importlib
from collections.abc import Callable

from data.errors import UserError

Reward = Callable[[str, str, str], float]
VOWELS = frozenset("aeiou")
LETTERS = 6


class NotFound(Exception):
    """There is no such function; says why."""


def alternating(answer: str, prompt: str, wanted: str) -> float:
    """1 for six letters, vowels and consonants in turn, of which the last is an a; else 0."""
    in_turn = all((a in VOWELS) != (b in VOWELS) for a, b in zip(answer, answer[1:], strict=False))
    return float(len(answer) == LETTERS and answer.isalpha() and answer.endswith("a") and in_turn)


def exact(answer: str, prompt: str, wanted: str) -> float:
    """1 for the wanted answer, white space around it aside; else 0."""
    return float(answer.strip() == wanted.strip())


def places(answer: str, prompt: str, wanted: str) -> float:
    """The share of places at which the answer has the character that is wanted there."""
    same = sum(a == b for a, b in zip(answer, wanted, strict=False))
    return same / max(len(answer), len(wanted), 1)


BUNDLED: dict[str, Reward] = {"alternating": alternating, "exact": exact, "places": places}
NEEDS_QUESTIONS = ("exact", "places")


def is_own(name: str) -> bool:
    """Whether `name` is of a function outside of this project."""
    return name not in BUNDLED


def check_name(name: str) -> None:
    """Raise UserError for what is neither a bundled reward nor MODULE:FUNCTION."""
    module, _, function = name.partition(":")
    words = [*module.split("."), function]
    if module.endswith(".py"):
        raise UserError(f"--reward {name}: the module's name is without .py, as in my_rewards:short")
    if is_own(name) and not all(word.isidentifier() for word in words):
        raise UserError(f"--reward {name}: {', '.join(BUNDLED)}, or MODULE:FUNCTION as in my_rewards:short")


def find(name: str) -> Reward:
    """The function of this name. Raises NotFound where there is none; what goes wrong in the module itself, it
    raises."""
    if not is_own(name):
        return BUNDLED[name]
    module, _, function = name.partition(":")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and imports one that is not
        raise NotFound(f"there is no module {module} in this folder or installed") from None
    if not callable(getattr(found, function, None)):
        raise NotFound(f"{found.__file__ or module} has no function {function}")
    return getattr(found, function)
