"""The limits of a training, in steps and minutes: how much of them is used, and the progress bar."""

import time
from collections.abc import Callable
from typing import Protocol

from tqdm import tqdm

from engine.config.sections import Optim


class Spent(Protocol):
    """The part of the trainer's progress that the budget reads."""

    step: int
    elapsed: float  # seconds


class Budget:
    """The `--steps` and `--minutes` of `config`, and the part of them that `progress` has used, over all resumes."""

    def __init__(self, config: Optim, progress: Spent):
        self.steps, self.seconds, self.progress = config.steps, 60 * (config.minutes or 0), progress
        self._began = time.perf_counter() - progress.elapsed

    def read_clock(self, agree: Callable[[float], float] = float) -> None:
        """Update the elapsed time; `agree` gives the one that counts, where it decides anything, of several clocks.
        Between two calls `time_used` does not change."""
        elapsed = time.perf_counter() - self._began
        self.progress.elapsed = agree(elapsed) if self.seconds else elapsed

    @property
    def time_used(self) -> float:
        """The part of the minutes that is used; 0 without --minutes."""
        return self.progress.elapsed / self.seconds if self.seconds else 0.0

    @property
    def used(self) -> float:
        """The part of the steps or of the minutes that is used, whichever is more; at 1 the training is over."""
        return max(self.progress.step / self.steps if self.steps else 0.0, self.time_used)

    def bar(self) -> tqdm:
        """A progress bar of the steps, or with --minutes of the part that is used."""
        if not self.seconds:
            return self._bar("step {n_fmt}/{total_fmt}", total=self.steps, initial=self.progress.step, unit="step")
        limit = f"/{self.steps}" if self.steps else ""
        return self._bar(f"step {{desc}}{limit}", total=1.0, initial=min(1.0, self.used), desc=str(self.progress.step))

    def show(self, bar: tqdm) -> None:
        """Advance the bar by one step."""
        if not self.seconds:
            bar.update()
            return
        bar.set_description_str(str(self.progress.step), refresh=False)
        bar.update(min(1.0, self.used) - bar.n)

    def _bar(self, progress: str, **options) -> tqdm:
        return tqdm(
            dynamic_ncols=True,
            disable=None,
            bar_format=progress + " |{bar}| {elapsed}, {remaining} left{postfix}",
            **options,
        )
