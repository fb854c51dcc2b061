"""Dates in nine spellings, to be written as ISO 8601 has them: '3rd of May, 1987' becomes '1987-05-03'.

A date is on one side of the split by its hash, in all of its spellings: the dates of the test were never seen.
"""

import datetime
import hashlib
import random

from data.pairs.pair import TextPair

FIRST, LAST = datetime.date(1900, 1, 1), datetime.date(2099, 12, 31)
SIZES = {"train": 20_000, "val": 500, "test": 500}
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
SPELLINGS = (
    "{d} {month} {y}", "{month} {d}, {y}", "{dd}.{mm}.{y}", "{mm}/{dd}/{y}", "{d} {mon} {y}", "{day}, {d} {month} {y}",
    "the {nth} of {month} {y}", "{mon} {nth}, {y}", "{y} {month} {d}",
)  # fmt: skip


def make(seed: int) -> dict[str, list[TextPair]]:
    """The pairs of each side. The same for the same seed, on every machine."""
    return {side: _of_side(side, size, random.Random(f"{seed} {side}")) for side, size in SIZES.items()}


def spelled(date: datetime.date, spelling: str) -> str:
    """The date in one of the SPELLINGS."""
    month = MONTHS[date.month - 1]
    return spelling.format(
        d=date.day, dd=f"{date.day:02}", mm=f"{date.month:02}", y=date.year, month=month, mon=month[:3],
        nth=f"{date.day}{_ending(date.day)}", day=DAYS[date.weekday()],
    )  # fmt: skip


def _of_side(side: str, size: int, rng: random.Random) -> list[TextPair]:
    pairs: list[TextPair] = []
    while len(pairs) < size:
        date = FIRST + datetime.timedelta(rng.randrange((LAST - FIRST).days + 1))
        if _side_of(date) == side:
            spelling = rng.choice(SPELLINGS)
            pairs.append(TextPair(spelled(date, spelling), date.isoformat(), f"{side} {len(pairs)}"))
    return pairs


def _side_of(date: datetime.date) -> str:
    """One date in 20 each for validation and test."""
    number = hashlib.blake2b(date.isoformat().encode(), digest_size=8).digest()[0] % 20
    return {0: "val", 1: "test"}.get(number, "train")


def _ending(day: int) -> str:
    return "th" if 10 <= day <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
