"""The batches of each step, made when they are needed, or on a thread while the step before computes."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

from data.batches import Batch
from data.loaders import Loader
from engine.distributed.dealing import Dealing, Share


class StepBatches(NamedTuple):
    """What this process computes of a step."""

    shares: list[Share]
    batches: list[Batch]
    sizes: list[tuple[float, int]]  # of each batch, what its loss is divided by, and its number of tokens
    position: dict[str, int]  # that of the loader after this step


class Feed:
    """The steps that `loader` gives, of `micro_batches` batches each, divided among the processes by `dealing`; what is
    done with a batch before it goes to the device, `prepare` does. Inside the context, and if `ahead`, each is made on
    a thread while the one before is computed.

    Either way `position` is that of the batches given out, and the loader stands there after the context; what goes
    wrong on the thread is raised by the `next` that would have given that step."""

    def __init__(
        self, loader: Loader, dealing: Dealing, micro_batches: int, prepare: Callable[[Batch], Batch], ahead: bool
    ):
        self.loader, self.dealing, self.micro_batches = loader, dealing, micro_batches
        self.prepare, self.ahead = prepare, ahead
        self._thread: ThreadPoolExecutor | None = None
        self._coming: Future[StepBatches] | None = None
        self._position: dict[str, int] = {}  # inside the context

    def __enter__(self) -> "Feed":
        if self.ahead:
            self._position = self.loader.state_dict()
            self._thread = ThreadPoolExecutor(1, "batches")
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is None:
            return
        if self._coming is not None:
            wait([self._coming])
        self._thread.shutdown()
        self._thread = self._coming = None
        self.loader.load_state_dict(self._position)

    @property
    def position(self) -> dict[str, int]:
        """Where in the loader's order the next step begins."""
        return self.loader.state_dict() if self._thread is None else self._position

    def next(self) -> StepBatches:
        """The next step."""
        if self._thread is None:
            return self._make()
        step = (self._coming or self._thread.submit(self._make)).result()
        self._coming, self._position = self._thread.submit(self._make), step.position
        return step

    def _make(self) -> StepBatches:
        shares = self.dealing.shares([self.loader.deal() for _ in range(self.micro_batches)])
        batches = [self.loader.batch(share.deal) for share in shares]
        sizes = [(batch.divisor, batch.n_tokens) for batch in batches]
        return StepBatches(shares, [self.prepare(batch) for batch in batches], sizes, self.loader.state_dict())
