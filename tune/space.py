"""What is tried: for each flag a list of values or a range, as `--try` says it, and its words on a command line."""

import math
import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random

from data.errors import UserError, flag

Value = str | int | float
Values = dict[str, Value]  # by the flag's name, of one trial
SYNTAX = "--try takes FLAG=A,B,C (a list), FLAG=LOW..HIGH (a range) or FLAG=LOW..HIGH:log (each power of ten alike)"
DIGITS = 4  # significant digits of a number drawn from a range: what is shown is what was run


@dataclass(frozen=True)
class Choices:
    """A list of values, as they were written."""

    values: tuple[str, ...]

    def draw(self, random: Random) -> Value:
        return random.choice(self.values)

    def has(self, value: object) -> bool:
        return value in self.values

    def ends(self) -> tuple[Value, ...]:
        return self.values


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, whole ones alone where `is_whole`; where `is_log`, each power of ten alike."""

    low: float
    high: float
    is_log: bool
    is_whole: bool

    def draw(self, random: Random) -> Value:
        low, high = (math.log(self.low), math.log(self.high)) if self.is_log else (self.low, self.high)
        if self.is_whole and not self.is_log:
            return random.randint(int(self.low), int(self.high))
        drawn = random.uniform(low, high)
        return self.nearest(math.exp(drawn) if self.is_log else drawn)

    def nearest(self, number: float) -> Value:
        """The value of this range that stands for `number`: few digits, and within the ends."""
        if self.is_whole:
            return int(min(max(round(number), self.low), self.high))
        return min(max(float(f"{number:.{DIGITS}g}"), self.low), self.high)

    def has(self, value: object) -> bool:
        is_number = isinstance(value, int if self.is_whole else int | float) and not isinstance(value, bool)
        return is_number and self.low <= value <= self.high  # type: ignore[operator]

    def ends(self) -> tuple[Value, ...]:
        return (int(self.low), int(self.high)) if self.is_whole else (self.low, self.high)


Space = dict[str, Choices | Range]


def parse_space(tries: Sequence[str], fractional: Collection[str] = ()) -> Space:
    """What `--try` was given, by the flag's name. `fractional`: the flags that take any number. Raises UserError for
    what is neither a list nor a range."""
    space: Space = {}
    for text in tries:
        name, equals, values = text.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        if not equals or not re.fullmatch(r"[a-z_0-9]+", name) or not values.strip():
            raise UserError(f"--try '{text}' says no flag and no values; {SYNTAX}")
        if name in space:
            raise UserError(f"--try names {flag(name)} twice; put all its values into one")
        is_range = ".." in values and not _is_path(values)
        space[name] = _range(text, values, name in fractional) if is_range else _choices(text, values)
    if not space:
        raise UserError(f"there is nothing to try; {SYNTAX}")
    return space


def _is_path(values: str) -> bool:
    """Whether the two dots are those of '../text.txt'."""
    return "../" in values or "..\\" in values


def _choices(text: str, values: str) -> Choices:
    found = tuple(value.strip() for value in values.split(","))
    if "" in found or len(set(found)) < len(found):
        raise UserError(f"--try '{text}' has a value that is empty or there twice; {SYNTAX}")
    return Choices(found)


def _range(text: str, values: str, is_fractional: bool) -> Range:
    span, colon, scale = values.partition(":")
    low, _, high = (word.strip() for word in span.partition(".."))
    if scale != ("log" if colon else ""):
        raise UserError(f"--try '{text}' ends in ':{scale}', which may only be ':log'; {SYNTAX}")
    try:
        ends = float(low), float(high)
    except ValueError:
        raise UserError(f"--try '{text}' has an end that is no number; {SYNTAX}") from None
    if not all(map(math.isfinite, ends)) or ends[0] >= ends[1]:
        raise UserError(f"--try '{text}': the first number has to be less than the second, and both finite")
    if colon and ends[0] <= 0:
        raise UserError(f"--try '{text}': a logarithmic range begins above 0")
    is_whole = not is_fractional and all(re.fullmatch(r"[+-]?\d+", word) for word in (low, high))
    return Range(*ends, is_log=bool(colon), is_whole=is_whole)


def shown(value: Value) -> str:
    """A value as it stands on a command line."""
    return value if isinstance(value, str) else f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value)


def words(values: Values, switches: set[str]) -> list[str]:
    """The words of a command line for one trial. `switches`: the flags that are on or off, as in --bias, --no-bias.
    Raises UserError for a switch that is neither."""
    found = []
    for name, value in values.items():
        text = shown(value)
        if name in switches:
            if text not in ("on", "off"):
                raise UserError(f"{flag(name)} is on or off: --try {name}=on,off")
            found.append(flag(name) if text == "on" else flag(f"no_{name}"))
        elif text.startswith("-"):
            found.append(f"{flag(name)}={text}")
        else:
            found += [flag(name), text]
    return found


def said(values: Values, switches: set[str], flags: Sequence[str] = ()) -> str:
    """The same behind other `flags`, as one would paste it."""
    return shlex.join([*flags, *words(values, switches)])
