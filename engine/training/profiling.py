"""Where the time of training steps goes (`--profile`): a trace to open in a browser, and the operations that take most.

The trace is Chrome's format, which ui.perfetto.dev shows; nothing is sent there, the page reads the file.
"""

import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from data.disk import replace_file
from data.errors import warn
from engine.runtime import Interrupted

TRACE = "trace.json.gz"  # in the run folder
WARM_UP, OPERATIONS = 5, 12


def profiler_of(device: torch.device) -> profile:
    """A profiler of what the CPU does, and what `device` does for it."""
    return profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda"))


def table(profiler: profile, device: torch.device) -> str:
    """The operations that took most of the time of `device`, a line each."""
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=order, row_limit=OPERATIONS, max_name_column_width=40)


class Profile:
    """The profile of `n_steps` steps (None: of none), after WARM_UP steps, written into `folder` and told to `say`.

    A context around the training; `next_step` is called before each step. What was recorded when the training ends
    before, or is interrupted, is written, too. Raises OSError where it cannot be written."""

    def __init__(self, n_steps: int | None, folder: Path, device: torch.device, say: Callable[[str], None]):
        self.n_steps, self.folder, self.device, self.say = n_steps or 0, folder, device, say
        self.begun = 0  # steps, of those to warm up and those that are recorded
        self._profiler: profile | None = None

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._profiler is not None:
            self._stop(is_wanted=kind in (None, Interrupted))
        elif self.n_steps and self.begun <= WARM_UP and kind is None:
            warn(f"nothing was profiled: the training ended within the {WARM_UP} steps before --profile begins")

    def next_step(self) -> None:
        """Begin to record, or stop, if it is time."""
        if self.n_steps and self.begun == WARM_UP:
            self._profiler = profiler_of(self.device)
            self._profiler.start()
        if self._profiler is not None and self.begun == WARM_UP + self.n_steps:
            self._stop()
        self.begun += 1

    def _stop(self, is_wanted: bool = True) -> None:
        profiler, self._profiler = self._profiler, None
        assert profiler is not None
        profiler.stop()
        if not is_wanted:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "trace.json")
            profiler.export_chrome_trace(str(path))
            replace_file(self.folder / TRACE, gzip.compress(path.read_bytes(), 5))
        n_steps = min(self.n_steps, self.begun - WARM_UP)
        self.say(
            f"{table(profiler, self.device)}\n{n_steps} step{'s' * (n_steps > 1)} in {self.folder / TRACE}: open it at "
            "https://ui.perfetto.dev (Open trace file; it stays on this machine)"
        )
