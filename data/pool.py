"""Work on the parts of a text in several processes, with the results in the order of the parts.

A worker is a new interpreter (`python -m data.pool`) that reads tasks from its standard input and writes results to its
standard output. Unlike multiprocessing it imports nothing of the command or notebook that started it, it cannot outlive
it (its input ends), and no lock of a forked thread is inherited.
"""

import contextlib
import itertools
import os
import pickle
import queue
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any, TypeVar

from data.errors import UserError
from data.program import ROOT, module

Part = TypeVar("Part")
Result = TypeVar("Result")
MAX_WORKERS = 256
IN_FLIGHT = 2  # parts a worker that are read ahead: one at work, and one that waits for it


class Lost(UserError):
    """A process of a pool ended by itself."""


class Pool:
    """`workers` processes, which start when they are first needed; with one worker all is done in this process.

    To be closed, which ends the processes whatever they are doing."""

    def __init__(self, workers: int = 1):
        self.workers = workers
        self._threads: ThreadPoolExecutor | None = None  # one a worker, to write to it and to read from it
        self._started: list[_Worker] = []
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._started:
            worker.kill()
        if self._threads:
            self._threads.shutdown(cancel_futures=True)

    def map(self, work: Callable[[Part], Result], parts: Iterable[Part]) -> Iterator[Result]:
        """`work(part)` for each of the `parts`, in their order; at most a few parts are held. `work` is pickled once
        for each worker, a part and its result each time.

        Raises what `work` raises of UserError, and Lost where a worker dies."""
        if self.workers == 1:
            yield from map(work, parts)
            return
        threads, pickled = self._start(), pickle.dumps(work)
        results: deque[Future[Result]] = deque()
        rest = iter(parts)
        while True:
            for part in itertools.islice(rest, IN_FLIGHT * self.workers - len(results)):
                results.append(threads.submit(self._ask, pickled, part))
            if not results:
                return
            yield results.popleft().result()

    def _start(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.workers)
            for _ in range(self.workers):
                self._started.append(_Worker())
                self._idle.put(self._started[-1])
        return self._threads

    def _ask(self, work: bytes, part: Any) -> Any:
        worker = self._idle.get()
        try:
            return worker.ask(work, part)
        finally:
            self._idle.put(worker)


class _Worker:
    """One process, in a group of its own: a Ctrl-C at the terminal reaches the command alone, which then ends it."""

    def __init__(self) -> None:
        apart: dict[str, Any] = (
            {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
            if os.name == "nt"
            else {"process_group": 0}
        )
        command = [sys.executable, "-m", module("data.pool")]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **apart)
        self._work: bytes | None = None  # what it has been told to do with each part

    def ask(self, work: bytes, part: Any) -> Any:
        assert self._process.stdin and self._process.stdout
        try:
            pickle.dump((None if work is self._work else work, part), self._process.stdin, pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()
            self._work = work
            result, error = pickle.load(self._process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as lost:
            code = self._process.wait()
            how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
            why = ", which is how a machine frees memory" if code == -9 else ""
            raise Lost(f"a process that prepares the text ended {how}{why}; try again, with fewer --workers") from lost
        if isinstance(error, UserError):
            raise error
        if error is not None:
            raise RuntimeError(f"in a process that prepares the text:\n{error}")
        return result

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if stream:
                    stream.close()


def cores() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _serve(tasks: IO[bytes], results: IO[bytes]) -> None:
    """Do the work that comes until no more comes."""
    work: Callable[[Any], Any] | None = None
    while True:
        result: Any = None
        error: UserError | str | None = None
        try:
            pickled, part = pickle.load(tasks)
        except EOFError:
            return
        try:
            work = pickle.loads(pickled) if pickled is not None else work
            assert work is not None  # it comes with the first part
            result = work(part)
        except UserError as mistake:
            error = mistake
        except Exception:
            error = traceback.format_exc()
        try:
            pickle.dump((result, error), results, pickle.HIGHEST_PROTOCOL)
            results.flush()
        except BrokenPipeError:
            return


def main() -> None:
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed is no result
    _serve(sys.stdin.buffer, results)


if __name__ == "__main__":
    main()
