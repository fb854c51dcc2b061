"""The processes of one training, as torchrun starts them: which one this is, and what they tell each other.

Every process runs the same program. The first one (rank 0) alone prints and writes. Numbers travel as tensors and facts
as JSON, between CPUs, so that they never wait for a GPU; nothing is pickled.
"""

import atexit
import contextlib
import datetime
import json
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from data.errors import UserError, fault, is_fault, silence

MEETING = datetime.timedelta(minutes=10)  # in which all processes have to have started
TIMEOUT = datetime.timedelta(hours=2)  # the others wait so long while the first measures or saves
GRACE = 2.0  # seconds in which whoever knows the reason of a failure says it first
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # torch 2.13's name, and 2.11's
LOST = (  # says gloo: a process has ended, or its host does not answer any more
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting"),
    *("Connection timed out", "No route to host", "Network is unreachable"),
)
FAILURE = "failure"  # the key of the message that one process gives for all


class Ranks:
    """This process among the `world` of one training: its `rank`, and its `local_rank` among those of its host."""

    def __init__(self, rank: int = 0, world: int = 1, local_rank: int = 0, store: Any = None):
        self.rank, self.world, self.local_rank, self._store = rank, world, local_rank, store

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def gather(self, numbers: Sequence[float]) -> np.ndarray:
        """The numbers of each process, (world, n) float64; all give equally many."""
        mine = torch.tensor([numbers], dtype=torch.float64)
        if self.world == 1:
            return mine.numpy()
        everyone = mine.new_empty(self.world, len(numbers))
        all_gather(everyone, mine)
        return everyone.numpy()

    def first(self, number: float) -> float:
        """The number of the first process."""
        return float(self.gather([number])[0, 0])

    def tell(self, value: Any = None) -> Any:
        """What the first process gives, which has to be JSON, in every process."""
        if self.world == 1:
            return value
        content = json.dumps(value).encode() if self.is_first else b""
        (size,) = self.gather([len(content)])[0].astype(int)
        bytes_ = torch.frombuffer(bytearray(content), dtype=torch.uint8) if self.is_first else torch.empty(size).byte()
        dist.broadcast(bytes_, 0)
        return json.loads(bytes_.numpy().tobytes())

    def wait(self) -> None:
        """Return when every process has come here."""
        self.gather([0])  # of nothing nothing would be waited for

    @contextlib.contextmanager
    def one_first(self) -> Iterator[None]:
        """A context that one process of each host goes through before the others of that host: for what it leaves on
        the disk, as a prepared text."""
        if self.local_rank:
            self.wait()
        yield
        if not self.local_rank:
            self.wait()

    def stop(self, error: BaseException) -> NoReturn:
        """End this process after `error`. One process of all gives the reason, the others end without a word: those
        that only lost another one leave it to that one, and for a mistake of all the first one speaks."""
        is_lost = isinstance(error, dist.DistError) or any(words in str(error) for words in LOST)
        if is_lost or (isinstance(error, UserError | KeyboardInterrupt) and not self.is_first):
            self._wait_for_another()
        if not self._speaks_first():
            raise SystemExit(_exit_code(error)) from error
        if is_lost:
            error = UserError(
                "another process of this training has ended and did not say why (killed, out of memory, or its host "
                "lost?); what was saved before is whole"
            )
        if self.is_first:
            raise error
        self._say(error)
        raise SystemExit(_exit_code(error)) from error

    def _wait_for_another(self) -> None:
        deadline = time.monotonic() + GRACE
        with contextlib.suppress(RuntimeError):  # the store has gone with its host
            while time.monotonic() < deadline and not self._store.check([FAILURE]):
                time.sleep(0.05)

    def _speaks_first(self) -> bool:
        mine = str(self.rank).encode()
        try:
            return self._store.compare_set(FAILURE, "", mine) == mine
        except RuntimeError:
            return True

    def _say(self, error: BaseException) -> None:
        """Write the message of `error` on the real standard error, which this process does not use otherwise."""
        if isinstance(error, UserError):
            reason = f"error: {error}"
        elif isinstance(error, OSError) and is_fault(error):
            reason = f"error: {fault(error)}"
        elif isinstance(error, KeyboardInterrupt):
            reason = "stopped"
        else:
            reason = "".join(traceback.format_exception(error)).rstrip()
        with contextlib.suppress(OSError):
            os.write(2, f"process {self.rank} of {self.world}, on {socket.gethostname()}: {reason}\n".encode())


ALONE = Ranks()
_joined: Ranks | None = None


def processes() -> int:
    """How many processes torchrun has started for this training; 1 without it. Raises UserError where the environment
    does not say which of how many this one is: each would train alone."""
    if not os.environ.keys() & {"RANK", "WORLD_SIZE"}:
        return 1
    rank, world = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise UserError(
            f"the environment has RANK='{rank}' and WORLD_SIZE='{world}', which is no process of so many: start "
            "several with torchrun (docs/scale.md), or unset both"
        )
    return int(world)


def device_for(wanted: str) -> str:
    """`--device` for this process: of several on a host each takes a GPU of its own. Raises UserError where there are
    not as many."""
    if processes() == 1 or wanted not in ("auto", "cuda") or not torch.cuda.is_available():
        return wanted
    local, here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if here > torch.cuda.device_count():
        raise UserError(
            f"{here} processes on this host, which has {torch.cuda.device_count()} GPU(s): start one a GPU "
            "(torchrun --nproc-per-node gpu), or use --device cpu"
        )
    return f"cuda:{local}"


@contextlib.contextmanager
def together(agreed: type[Exception]) -> Iterator[Ranks]:
    """A context with the processes of this training; `ALONE` without torchrun. What ends one of them inside ends all,
    with one message, but for the exception `agreed` that all of them raise together."""
    if processes() == 1:
        yield ALONE
        return
    ranks = _join()
    try:
        yield ranks
    except agreed:
        ranks._speaks_first()  # whoever is cut off by the end of the others need not say so
        raise
    except (Exception, KeyboardInterrupt) as error:
        with _unended():
            ranks.stop(error)


def _join() -> Ranks:
    """Meet the other processes; once."""
    global _joined
    if _joined is None:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            store, rank, world = next(rendezvous("env://", timeout=MEETING))
            dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT)
            store.set_timeout(TIMEOUT)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"the processes of this training cannot reach each other ({_first_line(error)}); name the network in "
                "$GLOO_SOCKET_IFNAME, and see docs/scale.md for the command"
            ) from error
        atexit.register(_leave)
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if local_rank < torch.cuda.device_count():
            torch.cuda.set_device(local_rank)
        _joined = Ranks(rank, world, local_rank, dist.PrefixStore("charlm", store))
        if not _joined.is_first:
            silence()
    return _joined


def _exit_code(error: BaseException) -> int:
    return 130 if isinstance(error, KeyboardInterrupt) else 2 if isinstance(error, UserError) else 1


@contextlib.contextmanager
def _unended() -> Iterator[None]:
    """Inside, SIGTERM does nothing: torchrun sends it to all as soon as one has ended, before any has said why."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave() -> None:
    if dist.is_initialized():
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
