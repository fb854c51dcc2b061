"""How many threads torch computes on: `--threads`, what a run keeps of it, and what a busy machine does to it."""

import os
from typing import Any

import torch

from data.errors import warn
from engine.config.sections import Config
from engine.config.settings import replace

BUSY = 0.75  # of the processors


def settle(config: Config, explicit: set[str], device: torch.device, stored: dict[str, Any] | None = None) -> Config:
    """Have torch use the threads that `config` asks for, by default its own number, and return `config` with the
    number used. `stored` is the configuration of a run that goes on: under another number the order in which a sum is
    added up is another, and so may its last bits be. Warns of that, and of a machine that is busy."""
    use(config.machine.threads)
    threads = torch.get_num_threads()
    before = (stored or {}).get("threads")
    if before not in (None, threads):
        warn(f"this run computed on {before} threads and goes on with {threads}: its last bits may differ")
    if device.type == "cpu" and "threads" not in explicit and (busy := busy_note()):
        warn(busy)
    return replace(config, threads=threads)


def use(threads: int | None) -> None:
    """Have torch compute on so many threads; None: on as many as it does."""
    if threads not in (None, torch.get_num_threads()):
        torch.set_num_threads(threads)


def busy_note() -> str | None:
    """What to do about other processes that keep the processors busy; None where nothing does, or one thread is used
    anyway. Threads wait for each other by spinning, so that one that has to wait for a processor stops them all."""
    if torch.get_num_threads() == 1 or not hasattr(os, "getloadavg"):
        return None
    load, processors = os.getloadavg()[0], os.cpu_count() or 1
    if load < BUSY * processors:
        return None
    return (
        f"this machine is busy (load average {load:.1f}, {processors} processors), and threads wait for each other: "
        "--threads 1 may be several times as fast"
    )
