"""One thread a run, which draws the texts of all requests together. Knows no HTTP.

A request's texts wait in a queue, join the others between two tokens, and leave when they end or nobody wants them any
more. What is drawn goes to the sinks of the requests in parcels, at most every 20 ms: a parcel a token would cost more
than the tokens.
"""

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from data.errors import UserError, warn
from engine.run.company import Company, Drawn, Member
from engine.run.healing import Healing
from engine.run.run import Run
from engine.run.samples import Request

EVERY = 0.02  # seconds between two parcels
QUEUED_TOKENS = 1 << 20  # of the prompts that wait


class Full(Exception):
    """The queue has no room for more."""


class Failed(Exception):
    """The thread has failed with this text, and was started again."""


@dataclass(eq=False)
class Job:
    """A text to draw after the prompt `ids`. `sink` is called from the worker's thread with what was drawn since, and
    why it ended: 'eos', 'stop', 'length', an error; None: it goes on. With `in_parcels` false it is called once."""

    ids: list[int]
    request: Request
    sink: Callable[[list[Drawn], str | Exception | None], None]
    healing: Healing | None = None
    logprobs: int | None = None
    in_parcels: bool = True
    is_wanted: bool = True
    drawn: list[Drawn] = field(default_factory=list)


@dataclass
class Counts:
    """What a worker has done."""

    requests: int = 0
    refused: int = 0
    cancelled: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    steps: int = 0


class Worker:
    """Draws for one run: `submit` jobs from any thread, `close` at the end."""

    def __init__(self, run: Run, max_streams: int, queue: int, deliver: Callable[[Callable[[], None]], None]):
        """At most `max_streams` texts are drawn together, and `queue` wait. `deliver(give)` has `give` called where the
        sinks are to be: it hands over all parcels of a step at once."""
        self.run, self.max_streams, self.queue, self.deliver = run, max_streams, queue, deliver
        self.counts = Counts()
        self._waiting: deque[Job] = deque()
        self._waiting_tokens = 0
        self._drawing: dict[Member, Job] = {}
        self._joining = 0  # 1 while a prompt is read
        self._hurry = np.zeros(1, np.int64)  # 1: somebody came or left
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name=f"worker of {run.folder}", daemon=True)
        self._thread.start()

    @property
    def most(self) -> int:
        """The most texts of one request that can ever have room."""
        return self.queue + self.max_streams

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def drawing(self) -> int:
        return len(self._drawing)

    def submit(self, jobs: list[Job]) -> None:
        """Let these jobs wait for their turn. Raises Full where not all of them have room."""
        tokens = sum(len(job.ids) for job in jobs)
        with self._changed:
            free = self.most - len(self._drawing) - self._joining - len(self._waiting)
            if len(jobs) > free or self._waiting_tokens + tokens > QUEUED_TOKENS:
                self.counts.refused += 1
                raise Full
            self.counts.requests += 1
            self._waiting.extend(jobs)
            self._waiting_tokens += tokens
            self._hurry[0] = 1
            self._changed.notify()

    def cancel(self, jobs: list[Job]) -> None:
        """Nobody wants these any more: each costs at most the step that is being taken."""
        with self._changed:
            for job in jobs:
                job.is_wanted = False
            self._hurry[0] = 1
            self._changed.notify()

    def close(self) -> None:
        """End the thread after the step that it takes; what is left is given up."""
        with self._changed:
            self._is_closed = True
            self._hurry[0] = 1
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while not self._is_closed:
            try:
                self._draw()
            except Exception as error:  # a bug, or no memory: these texts fail, the next ones need not
                warn(f"the worker of {self.run.folder} failed, and starts again\n{traceback.format_exc()}")
                self._fail(_failed(error))

    def _draw(self) -> None:
        company, most, given = Company(self.run, self._hurry), 1, time.monotonic()
        while self._wait():
            self._hurry[0] = 0  # before looking who came and who left: what happens after that is seen by the step
            self._admit(company)
            for member, job in [*self._drawing.items()]:
                if not job.is_wanted:
                    company.leave(member)
                    del self._drawing[member]
                    self.counts.cancelled += 1
            if not len(company):
                continue
            started, told = time.monotonic(), company.step(most)
            for member, drawn in told:
                self._drawing[member].drawn.append(drawn)
            ended: list[tuple[Job, str | Exception | None]] = []
            for member in dict.fromkeys(member for member, _ in told if member.end):
                ended.append((self._drawing.pop(member), member.end))
            self.counts.steps += company.taken
            self.counts.tokens += len(told)
            now = time.monotonic()
            most = max(1, int(EVERY / (now - started) * company.taken))
            if now - given >= EVERY:
                given = now
                parcels = [(job, None) for job in self._drawing.values() if job.in_parcels and job.drawn]
                self._give([*ended, *parcels])
            elif ended:
                self._give(ended)

    def _wait(self) -> bool:
        """Wait until there is something to do; False: the end."""
        with self._changed:
            while not (self._waiting or self._drawing or self._is_closed):
                self._changed.wait()
            return not self._is_closed

    def _admit(self, company: Company) -> None:
        while len(company) < self.max_streams:
            with self._changed:
                if not self._waiting:
                    return
                job = self._waiting.popleft()
                self._waiting_tokens -= len(job.ids)
                if not job.is_wanted:
                    self.counts.cancelled += 1
                    continue
                self._joining = 1
            self.counts.prompt_tokens += len(job.ids)
            try:
                member = company.join(job.ids, job.request, job.healing, job.logprobs)
                with self._changed:
                    self._drawing[member], self._joining = job, 0
            except UserError as error:
                self._give([(job, error)])
            except Exception as error:
                self._give([(job, _failed(error))])
                raise
            finally:
                self._joining = 0

    def _give(self, parcels: list[tuple[Job, str | Exception | None]]) -> None:
        """Hand these jobs what was drawn for them, and how they have ended."""
        packed = [(job.sink, job.drawn, end) for job, end in parcels]
        for job, _ in parcels:
            job.drawn = []

        def give() -> None:
            for sink, drawn, end in packed:
                sink(drawn, end)

        self.deliver(give)

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self.counts.failures += 1
            failed = [*self._drawing.values()]
            self._drawing.clear()
        self._give([(job, error) for job in failed])


def _failed(error: Exception) -> Failed:
    return Failed(f"{type(error).__name__}: {error}")
