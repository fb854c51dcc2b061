"""Rewards in a process of their own: one that raises, ends its process or never returns stops a run with a message."""

import math
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from data.errors import StepFault, UserError
from finetune.instruct.reward.rewards import NotFound, find

STARTS_WITHIN = 120.0  # seconds, the imports of the reward's module included
SHOWN = 60  # characters of an answer in a message
LARGEST = 1e9  # of a reward: the squares of larger ones are soon more than a float32 holds


class Answer(NamedTuple):
    """What a reward is told; without questions the last two are empty."""

    text: str
    prompt: str
    wanted: str


class Scorer:
    """The reward `name` (see rewards.py). Its process is started by the first call of `scores`, or by `start`, and
    ends with this one. `seconds`: how long it may take for the answers of one call."""

    def __init__(self, name: str, seconds: float):
        self.name, self.seconds = name, seconds
        self._process: Any = None
        self._pipe: Connection | None = None
        self._nth: Any = None

    def start(self) -> None:
        """Start the process, and wait until it has found the function. UserError where it has not."""
        spawn = multiprocessing.get_context("spawn")  # a fork would copy torch's threads, locked as they are
        self._pipe, theirs = spawn.Pipe()
        self._nth = spawn.Value("q", 0, lock=False)
        self._process = spawn.Process(target=_serve, args=(self.name, theirs, self._nth), daemon=True)
        self._process.start()
        theirs.close()
        self._receive(STARTS_WITHIN, (), UserError)

    def scores(self, answers: Sequence[Answer]) -> list[float]:
        """The reward of each. StepFault for a reward that raises, is no finite number, or does not come in time."""
        if self._pipe is None:
            self.start()
        assert self._pipe is not None  # `start` has opened it
        self._nth.value = 0
        try:
            self._pipe.send([tuple(answer) for answer in answers])
        except OSError:
            pass  # it has ended: reading says how
        return self._receive(self.seconds, answers, StepFault)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = self._pipe = None

    def _receive(self, seconds: float, answers: Sequence[Answer], error: type[UserError]) -> Any:
        """What the process sends, or the `error` that says why nothing came."""
        assert self._pipe is not None  # `start` has opened it
        try:
            if not self._pipe.poll(seconds):
                if not answers:
                    raise self._fault(f"is not imported after {seconds:g} s", answers, error)
                way_out = "; --reward-seconds gives it longer"
                raise self._fault(f"has not ended after {seconds:g} s", answers, error, way_out)
            said, problem = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise self._fault(f"has ended its process (exit code {self._process.exitcode})", answers, error) from None
        if problem is not None:
            raise self._fault(problem, answers, error)
        return said

    def _fault(self, what: str, answers: Sequence[Answer], error: type[UserError], way_out: str = "") -> UserError:
        nth = self._nth.value
        of = f" for the answer {_short(answers[nth].text)}" if nth < len(answers) else ""
        self.close()
        return error(f"the reward {self.name} {what}{of}{way_out}")


def _serve(name: str, pipe: Connection, nth: Any) -> None:
    """Answer with (rewards, None) or (None, what went wrong) until the other side is gone. `nth` tells which answer is
    at work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the training's, which ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.path.insert(0, os.getcwd())  # an installed command does not look there by itself
    try:
        reward = find(name)
        pipe.send((None, None))
    except NotFound as error:
        pipe.send((None, f"is not there: {error}"))
        return
    except Exception as error:
        pipe.send((None, f"cannot be imported: {_told(error)}"))
        return
    while True:
        try:
            answers = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            scores = []
            for nth.value, answer in enumerate(answers):
                scores.append(_checked(reward(*answer)))
            pipe.send((scores, None))
        except Exception as error:
            pipe.send((None, _told(error)))


def _end_with_parent() -> None:
    """A reward that never returns would outlive a training that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a child
    parent.join()
    os._exit(1)


def _checked(score: Any) -> float:
    try:
        number = float(score)
    except (TypeError, ValueError):
        raise _NoNumber(f"is {score!r:.{SHOWN}}, which is no number") from None
    if not math.isfinite(number):
        raise _NoNumber(f"is {number}, which is not finite")
    if abs(number) > LARGEST:
        raise _NoNumber(f"is {number:g}, where {LARGEST:g} is the most, above and below 0,")
    return number


class _NoNumber(Exception):
    pass


def _told(error: Exception) -> str:
    """What went wrong, and where in the reward's file."""
    if isinstance(error, _NoNumber):
        return str(error)
    if isinstance(error, SyntaxError):  # names its place itself
        return f"raises SyntaxError: {error}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"raises {type(error).__name__}: {error} ({os.path.basename(last.filename)}, line {last.lineno})"


def _short(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")
