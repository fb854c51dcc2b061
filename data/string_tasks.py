"""The bundled instructions: generated tasks on strings, and compositions of two of them.

The tasks are copy, reverse, upper-case, count, sort, add and first letters, of strings of 3 to 12 characters. A string
belongs to one side of the split by its hash, whatever the task; some compositions are in no training example.
"""

import hashlib
import random
import string
from collections.abc import Callable
from typing import NamedTuple

from data.conversations import Conversation, Turn

MIN_LENGTH, MAX_LENGTH = 3, 12  # characters of a string
CONVERSATIONS = 40_000  # to train on, of 1 to 3 exchanges each
HELD_OUT_SIZE = {"val": 50, "test": 200}  # questions of each task on the other sides
VOWELS, CONSONANTS = "aeiou", "bcdfghjklmnpqrstvwxyz"
COMPOSED = 0.2  # of the training exchanges


class Task(NamedTuple):
    """A task: the question, with {} for the string; functions that draw a string and that answer; and the weight with
    which it is drawn in training (calculating takes more examples than copying)."""

    ask: str
    make: Callable[[random.Random], str]
    answer: Callable[[str], str]
    weight: int = 1


def _letters(rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(MIN_LENGTH, MAX_LENGTH)))


def _with_vowels(rng: random.Random) -> str:
    """A string of about as many vowels as consonants, so that every count occurs."""
    return "".join(rng.choice(rng.choice((VOWELS, CONSONANTS))) for _ in range(rng.randint(MIN_LENGTH, MAX_LENGTH)))


def _sum(rng: random.Random) -> str:
    return "+".join(str(rng.randrange(10 ** rng.randint(1, 3))) for _ in range(2))


def _words(rng: random.Random) -> str:
    letters = list(_letters(rng))
    for i in range(1, len(letters) - 1):
        if rng.random() < 0.35 and letters[i - 1] != " ":
            letters[i] = " "
    return "".join(letters)


TASKS = {
    "copy": Task("copy {}", _letters, str),
    "reverse": Task("reverse {}", _letters, lambda s: s[::-1]),
    "upper-case": Task("upper-case {}", _letters, str.upper),
    "count": Task("count the vowels of {}", _with_vowels, lambda s: str(sum(s.count(v) for v in VOWELS)), 2),
    "sort": Task("sort {}", _letters, lambda s: "".join(sorted(s))),
    "add": Task("add {}", _sum, lambda s: str(sum(map(int, s.split("+")))), 6),
    "first letters": Task("first letters of {}", _words, lambda s: "".join(word[0] for word in s.split())),
}
_SEEN = (
    ("reverse", "upper-case"), ("sort", "upper-case"), ("upper-case", "reverse"), ("sort", "reverse"),
    ("first letters", "reverse"), ("first letters", "sort"),
)  # fmt: skip
_UNSEEN = (("upper-case", "sort"), ("reverse", "sort"), ("first letters", "upper-case"))


def _composed(first: str, second: str) -> Task:
    one, two = TASKS[first], TASKS[second]
    return Task(f"{second} the {one.ask}", one.make, lambda s: two.answer(one.answer(s)))


SEEN = {f"{first}, {second}": _composed(first, second) for first, second in _SEEN}
UNSEEN = {f"{first}, {second}": _composed(first, second) for first, second in _UNSEEN}
GROUPS = {"": TASKS, "compositions": SEEN, "held-out compositions": UNSEEN}


def side_of(text: str) -> str:
    """The side of a string: one in 20 each for validation and test. The order of two summands does not matter."""
    key = "+".join(sorted(text.split("+")))
    number = hashlib.blake2b(key.encode(), digest_size=8).digest()[0] % 20
    return {0: "val", 1: "test"}.get(number, "train")


def string_tasks(seed: int) -> dict[str, list[Conversation]]:
    """The conversations of each side: in training 1 to 3 exchanges of mixed tasks, elsewhere one, labelled with its
    task. The held-out compositions are in the test alone. The same for the same seed, on every machine."""
    rng = random.Random(f"{seed} train")
    sides = {"train": [_several(rng, n) for n in range(CONVERSATIONS)]}
    for side, size in HELD_OUT_SIZE.items():
        rng = random.Random(f"{seed} {side}")
        sides[side] = [
            Conversation(_exchange(task, side, rng), f"{side} {name} {n}", name, group)
            for group, tasks in GROUPS.items()
            if tasks is not UNSEEN or side == "test"
            for name, task in tasks.items()
            for n in range(size)
        ]
    return sides


def _several(rng: random.Random, n: int) -> Conversation:
    turns: tuple[Turn, ...] = ()
    for _ in range(rng.randint(1, 3)):
        tasks = list((SEEN if rng.random() < COMPOSED else TASKS).values())
        (task,) = rng.choices(tasks, [task.weight for task in tasks])
        turns += _exchange(task, "train", rng)
    return Conversation(turns, f"train {n}")


def _exchange(task: Task, side: str, rng: random.Random) -> tuple[Turn, Turn]:
    while True:
        text = task.make(rng)
        if side_of(text) == side:
            return Turn("user", task.ask.format(text)), Turn("assistant", task.answer(text))
