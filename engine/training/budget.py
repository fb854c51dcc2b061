"""What a training may use, steps and minutes: how much of it is used, and the bar that shows it."""

import time
from typing import Protocol

from tqdm import tqdm

from engine.config.sections import Optim


class Spent(Protocol):
    """What the trainer's progress says of it."""

    step: int
    elapsed: float  # seconds


class Budget:
    """The `--steps` and `--minutes` of `config`, and what `progress` has used of them, over all resumes."""

    def __init__(self, config: Optim, progress: Spent):
        self.steps, self.seconds, self.progress = config.steps, 60 * (config.minutes or 0), progress
        self._began = time.perf_counter() - progress.elapsed

    def read_clock(self) -> None:
        """Note how long the training has taken. Between two calls nothing else changes `time_used`."""
        self.progress.elapsed = time.perf_counter() - self._began

    @property
    def time_used(self) -> float:
        """The part of the minutes that is used; 0 where time does not matter."""
        return self.progress.elapsed / self.seconds if self.seconds else 0.0

    @property
    def used(self) -> float:
        """The part of the steps or of the minutes that is used, whichever is more; from 1 on the training is over."""
        return max(self.progress.step / self.steps if self.steps else 0.0, self.time_used)

    def bar(self) -> tqdm:
        """A bar of the steps, or where time matters of the part that is used."""
        if not self.seconds:
            return self._bar("step {n_fmt}/{total_fmt}", total=self.steps, initial=self.progress.step, unit="step")
        limit = f"/{self.steps}" if self.steps else ""
        return self._bar(f"step {{desc}}{limit}", total=1.0, initial=min(1.0, self.used), desc=str(self.progress.step))

    def show(self, bar: tqdm) -> None:
        """One step more on the bar."""
        if not self.seconds:
            bar.update()
            return
        bar.set_description_str(str(self.progress.step), refresh=False)
        bar.update(min(1.0, self.used) - bar.n)

    def _bar(self, what: str, **options) -> tqdm:
        return tqdm(
            dynamic_ncols=True,
            disable=None,
            bar_format=what + " |{bar}| {elapsed}, {remaining} left{postfix}",
            **options,
        )
