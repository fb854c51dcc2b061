"""Examples that cannot be learned from: counted, the first ones named, and refused where they are many."""

from collections import Counter
from dataclasses import dataclass, field

from data.errors import UserError, warn

NAMED = 3
ALLOWED = 0.1  # of the examples


class BadExample(UserError):
    """A fault of one example: it is left out."""


class EmptyText(BadExample):
    """A text that has to say something says nothing."""


class NothingToLearn(BadExample):
    """An example in good order that teaches nothing: it is left out, however many there are."""


@dataclass
class Notes:
    """What the readers of one example note. `unread`: keys, or kinds of content, that are not read although they may
    change what the example means; `lost_question`: its last question has no answer and went."""

    unread: set[str] = field(default_factory=set)
    lost_question: bool = False


class Tally:
    """Counts over the examples of a file. With `strict` the first example that is left out is an error."""

    def __init__(self, strict: bool = False):
        self.strict = strict
        self.total = self.bad = self.empty = self.lost_questions = 0
        self.named: list[str] = []
        self.named_empty: list[str] = []
        self.unread: Counter[str] = Counter()

    def add_good(self, notes: Notes) -> None:
        """Count an example that was read."""
        self.total += 1
        self.lost_questions += notes.lost_question
        self.unread.update(notes.unread)

    def add_bad(self, error: UserError) -> None:
        """Count one that is left out for `error`."""
        if self.strict:
            raise error
        self.total += 1
        if isinstance(error, NothingToLearn):
            self.empty += 1
            named = self.named_empty
        else:
            self.bad += 1
            named = self.named
        if len(named) < NAMED:
            named.append(str(error))

    def report(self, data: str) -> None:
        """Warn of what was counted. UserError where too many of the examples of the file `data` are bad, or all are
        left out."""
        of = f"of {self.total:,} examples of {data}"
        if self.bad > ALLOWED * self.total:
            raise UserError(
                f"{self.bad:,} {of} cannot be read, more than one in {round(1 / ALLOWED)}:{_listed(self.named)}"
            )
        if self.total and self.bad + self.empty == self.total:
            raise UserError(f"none {of} teaches anything:{_listed(self.named + self.named_empty)}")
        if self.bad:
            warn(f"{self.bad:,} {of} cannot be read: left out (--strict refuses them){_listed(self.named)}")
        if self.empty:
            warn(f"{self.empty:,} {of} teach nothing: left out{_listed(self.named_empty)}")
        if self.lost_questions:
            warn(f"{self.lost_questions:,} {of} end with a question: it went")
        if self.unread:
            keys = ", ".join(f"{key} ({count:,})" for key, count in sorted(self.unread.items()))
            warn(f"what is not read may change what examples of {data} mean: {keys}")


def _listed(named: list[str]) -> str:
    return "".join(f"\n  {reason}" for reason in named)
