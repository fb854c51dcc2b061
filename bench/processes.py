"""Milliseconds a step with one process and with two, by turns: `python -m bench.processes [--turns 20]`.

Of a Transformer of 4 layers, 128 wide, under AdamW and, 384 wide, under Muon, on 32 windows of 64 characters. All
processes are started once; then one group of them after the other takes a few steps, while the rest wait. On a busy
machine the CPU-seconds of all processes of a group say more than the clock, and the median of the turns' ratios more
than the ratio of the medians.
"""

import argparse
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from bench.step import make_trainer
from data.errors import run_command
from data.prepare import prepare
from engine.config.flags import parse
from engine.distributed.ranks import together
from engine.runtime import Interrupted

MODELS = {
    "adamw": ["--n-layer", "4", "--n-head", "4", "--n-embd", "128", "--optimizer", "adamw"],
    "muon": ["--n-layer", "4", "--n-head", "6", "--n-embd", "384", "--optimizer", "muon"],
}
BATCH = ["--model", "transformer", "--context", "64", "--dropout", "0"]
WARM_UP = 3  # steps
PAUSE = 0.3  # seconds in which the threads of the last group stop spinning


class Setup(NamedTuple):
    """Processes that train one model together, with so many threads each; the flags make 32 windows a step."""

    name: str
    processes: int
    threads: int
    flags: list[str]


ROWS, MICRO_BATCHES = ["--batch-size", "32"], ["--batch-size", "16", "--grad-accum", "2"]
SETUPS = [
    Setup("1 process of 2 threads", 1, 2, ROWS),
    Setup("1 process of 1 thread", 1, 1, ROWS),
    Setup("2 processes of 1 thread, micro-batches dealt", 2, 1, MICRO_BATCHES),
    Setup("2 processes of 1 thread, rows divided", 2, 1, ROWS),
    Setup("2 processes of 1 thread, rows divided, --shard", 2, 1, [*ROWS, "--shard"]),
]


class Turn(NamedTuple):
    """What steps took, in milliseconds: each by the clock, and the mean of all processors together."""

    wall: list[float]
    cpu: float


class Group:
    """The processes of a setup, which take steps when they are told."""

    def __init__(self, setup: Setup, flags: list[str], folder: str):
        self.setup = setup
        self.connections: list[Connection] = []
        self.processes: list[Any] = []
        spawn = multiprocessing.get_context("spawn")
        words = [*BATCH, *flags, *setup.flags, "--threads", str(setup.threads)]
        port = free_port()
        for rank in range(setup.processes):
            mine, theirs = spawn.Pipe()
            env = {"OMP_NUM_THREADS": str(setup.threads)}
            if setup.processes > 1:
                env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(setup.processes)}
                env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(setup.processes)}
            self.processes.append(spawn.Process(target=take_steps, args=(theirs, words, folder, env), daemon=True))
            self.processes[-1].start()
            theirs.close()
            self.connections.append(mine)

    def turn(self, steps: int) -> Turn:
        """Take some steps. Raises EOFError or OSError where a process has ended."""
        for connection in self.connections:
            connection.send(steps)
        answers = [connection.recv() for connection in self.connections]
        return Turn(answers[0][0], 1000 * sum(seconds for _, seconds in answers) / steps)

    def stop(self) -> None:
        """End the processes."""
        for connection in self.connections:
            with suppress(OSError):  # it has ended already
                connection.send(0)
        for process in self.processes:
            process.join(timeout=60)
            process.kill()


def take_steps(connection: Connection, words: list[str], folder: str, env: dict[str, str]) -> None:
    """Be one process of a group: take as many steps as the connection says, and answer with the milliseconds of each
    and the CPU-seconds of all, until it says 0 or is closed."""
    os.environ.update(env)
    with together(Interrupted) as ranks, suppress(EOFError):
        trainer = make_trainer(parse(words)[0], Path(folder), ranks)
        while steps := connection.recv():
            taken, cpu = [], time.process_time()
            for _ in range(steps):
                started = time.perf_counter()
                trainer.step()
                taken.append(1000 * (time.perf_counter() - started))
            connection.send((taken, time.process_time() - cpu))


def free_port() -> str:
    """A port of this machine that nobody uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def measure(flags: list[str], turns: int, steps: int, folder: str) -> dict[str, list[Turn]]:
    """What the steps of each setup took, by turns."""
    with ExitStack() as stack:
        groups = []
        for setup in SETUPS:  # one after the other: a machine with two cores starts them no faster together
            groups.append(Group(setup, flags, folder))
            stack.callback(groups[-1].stop)
            groups[-1].turn(WARM_UP)
        taken: dict[str, list[Turn]] = {setup.name: [] for setup in SETUPS}
        for _ in range(turns):
            for group in groups:
                time.sleep(PAUSE)
                taken[group.setup.name].append(group.turn(steps))
    return taken


def report(model: str, taken: dict[str, list[Turn]]) -> None:
    """Print a row for each setup."""
    first = [statistics.median(turn.wall) for turn in taken[SETUPS[0].name]]
    for name, turns in taken.items():
        medians = [statistics.median(turn.wall) for turn in turns]
        ratio = statistics.median(own / other for own, other in zip(medians, first, strict=True))
        wall = statistics.median(ms for turn in turns for ms in turn.wall)
        cpu = statistics.median(turn.cpu for turn in turns)
        print(f"| {model} | {name} | {wall:.0f} | {min(medians):.0f} | {ratio:.2f} | {cpu:.0f} |", flush=True)


def load() -> str:
    """How busy the machine is."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.processes", description=__doc__)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--steps", type=int, default=3, help="in a turn")
    parser.add_argument("--data", default="shakespeare")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    options = parser.parse_args()
    prepare(options.data)
    print(f"{os.cpu_count()} processors, load {load()} before")
    print("| optimizer | processes | ms a step, median | best turn's | beside the first | CPU ms |")
    print("|---|---|---|---|---|---|")
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            flags = ["--data", options.data, *MODELS[model]]
            report(model, measure(flags, options.turns, options.steps, folder))
    print(f"load {load()} after; the load counts the group at work, too")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
