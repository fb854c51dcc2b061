"""Checks of the arguments of sampling and scoring, for the command line and for Python."""

import numbers
import reprlib
from collections.abc import Iterable
from typing import Any

from data.errors import UserError, flag, nearest
from engine.config.sections import MAX_SEED

MAX_NUM = 10_000_000
MAX_TOKENS = 100_000_000  # new ones of one sample
UNKNOWN = ("error", "skip", "mask")
MOST_STOPS, MOST_LOGPROBS = 4, 20  # as many as OpenAI's API has


def demand(valid: bool, name: str, value: Any, expected: str) -> None:
    """Raise UserError, with the option, its value and what is `expected`, unless it is `valid`."""
    if not valid:
        shown = value if isinstance(value, numbers.Number) else reprlib.repr(value)
        problem = f"is {shown}; it has to be {expected}"
        raise UserError(f"{flag(name)} {problem}", neutral=f"{name} {problem}", field=name)


def is_number(value: Any, minimum: float, maximum: float) -> bool:
    """Whether `value` is a number from `minimum` to `maximum`."""
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_real and bool(minimum <= value <= maximum)


def is_whole(value: Any, minimum: int, maximum: float) -> bool:
    """Whether `value` is a whole number from `minimum` to `maximum`."""
    return isinstance(value, numbers.Integral) and is_number(value, minimum, maximum)


def check_num(num: Any) -> None:
    """Raise UserError for an invalid number of samples."""
    demand(is_whole(num, 1, MAX_NUM), "num", num, f"a whole number from 1 to {MAX_NUM:,}")


def check_seed(seed: Any) -> None:
    """Raise UserError for a value that is neither a seed nor None."""
    demand(seed is None or is_whole(seed, 0, MAX_SEED), "seed", seed, f"a whole number from 0 to {MAX_SEED}")


def check_max_new_tokens(count: Any) -> None:
    """Raise UserError for an invalid length of a sample."""
    demand(is_whole(count, 1, MAX_TOKENS), "max_new_tokens", count, f"a whole number from 1 to {MAX_TOKENS:,}")


def check_stop(stop: Any) -> None:
    """Raise UserError for a value that is neither a stop text, nor several, nor None."""
    stops = stop if isinstance(stop, tuple) else (stop,)
    if "" in stops:
        raise UserError(
            "--stop is empty; leave it out for no stop text", neutral="stop is empty; leave it out", field="stop"
        )
    valid = stop is None or bool(stops and all(isinstance(each, str) for each in stops))
    demand(valid, "stop", stop, "a text, or several")
    if len(stops) > MOST_STOPS:
        problem = f"has {len(stops)} texts; it may have {MOST_STOPS}"
        raise UserError(f"--stop {problem}", neutral=f"stop {problem}", field="stop")


def check_logprobs(count: Any) -> None:
    """Raise UserError for a value that is neither a number of likeliest tokens nor None."""
    valid = count is None or is_whole(count, 0, MOST_LOGPROBS)
    demand(valid, "logprobs", count, f"a whole number from 0 to {MOST_LOGPROBS}")


def check_text(name: str, text: Any, unknown: Any) -> None:
    """Raise UserError for a prompt or a text to score that is not a text, and for an invalid `unknown`."""
    demand(isinstance(text, str), name, text, "a text")
    demand(isinstance(unknown, str) and unknown in UNKNOWN, "unknown", unknown, "error, skip or mask")


def check_names(names: Iterable[str], known: Iterable[str]) -> None:
    """Raise TypeError for one of `names` that is not `known`."""
    if foreign := sorted(set(names) - set(known)):
        there_are = ", ".join(sorted(known))
        raise TypeError(f"there is no option '{foreign[0]}'.{nearest(foreign[0], known)} There are: {there_are}")
