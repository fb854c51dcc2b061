"""What the loop leaves to threads and to TF32, beside what it would do without: python -m bench.gpu.apart MODEL ...

A step with its batches made on a thread, and by itself; how long the loop stands still for a save that a thread writes,
and for one that it writes itself; and Muon's step with its iteration in TF32, and in float32.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from bench.gpu.jobs import job_parser, numbered
from bench.gpu.machine import synchronize
from bench.gpu.plan import MODELS
from bench.gpu.rows import Row, append
from bench.gpu.training import Setting, time_steps, trainer_of
from engine import runtime
from engine.training.optimizers import Muon
from engine.training.trainer import Trainer

SETTING = Setting("off", "torch", "torch")
SAVES, MUON_STEPS, WARM_UP = 5, 30, 5


def measure(model: str, smoke: bool) -> list[Row]:
    """The rows of a model."""
    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = trainer_of(model, SETTING, smoke, Path(folder))
        trainer.saver.belongs_to = {}
        rows = []
        for ahead, case in ((False, "by the loop"), (True, "on a thread")):
            trainer.feed.ahead = ahead
            times = time_steps(trainer, smoke)
            speed = 1000 * times.tokens / times.ms
            rows.append(Row("training", f"{model}, batches made", case, ms=times.ms, value=speed, unit="tokens/s"))
        for apart, case in ((False, "by the loop"), (True, "on a thread")):
            trainer.saver.in_background = apart
            rows.append(Row("training", f"{model}, a save written", case, ms=save_ms(trainer, smoke)))
        muon = [optimizer for optimizer in trainer.optimizers if isinstance(optimizer, Muon)]
        for has, case in ((False, "float32"), (True, "TF32")) if muon else ():
            with mock.patch.object(runtime, "multiplies_tf32", lambda device, has=has: has):
                rows.append(Row("training", f"{model}, Muon's step", case, ms=muon_ms(trainer, muon[0], smoke)))
    return rows


def save_ms(trainer: Trainer, smoke: bool) -> float:
    """How long a save holds the loop up; the first, which allocates, does not count."""

    def save() -> None:
        with trainer.saver.one_save():
            trainer.save_last()

    with trainer.saver:
        return median_ms(save, trainer.saver.wait, 1 if smoke else SAVES, 1)


def muon_ms(trainer: Trainer, muon: Muon, smoke: bool) -> float:
    """The time of Muon's step, with the gradients of one batch."""
    (batch,) = trainer.feed.next().batches[:1]
    trainer.backward(batch, batch.n_tokens)
    return median_ms(muon.step, synchronize, 1 if smoke else MUON_STEPS, 1 if smoke else WARM_UP, synchronize)


def median_ms(
    act: Callable[[], None], after: Callable[[], None], times: int, warm_up: int, end: Callable[[], None] = lambda: None
) -> float:
    """The median time of `act` and `end`, without `after`, which is called in between."""
    taken = []
    for _ in range(warm_up + times):
        synchronize()
        started = time.perf_counter()
        act()
        end()
        taken.append(1000 * (time.perf_counter() - started))
        after()
    return statistics.median(taken[warm_up:])


def main() -> int:
    parser = job_parser("apart", __doc__)
    parser.add_argument("models", nargs="+", choices=MODELS, metavar="MODEL", help=", ".join(MODELS))
    args = parser.parse_args()
    for number in numbered(args.models, args.skip):
        append(args.rows, *measure(args.models[number], args.smoke))
    return 0


if __name__ == "__main__":
    sys.exit(main())
