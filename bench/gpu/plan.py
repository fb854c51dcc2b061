"""What runs in which order: the parts, their shares of the time, their jobs. Imports no torch."""

import itertools
import os
from pathlib import Path
from typing import NamedTuple

from bench.gpu.jobs import Job
from bench.gpu.rows import Row
from data.sources import REMOTES, cache_folder

# The parts in their order, with the minutes that each has of a whole run.
MINUTES = {"tests": 8.0, "kernels": 8.0, "training": 7.5, "memory": 1.5, "decoding": 2.0, "processes": 2.0}
KINDS = ("attention", "cross_entropy", "norm")  # of kernels/bench.py
MODELS = ("default", "baby GPT", "GPT-2 124M", "GPT-2 124M fast")
FILES = tuple(
    f"tests/test_{name}.py"
    for name in ("attention", "norms", "cross_entropy", "linear_cross_entropy", "kernel_ops", "transforms", "decoding")
)  # fmt: skip
SMOKE_TESTS = "frozen or says_why or negative or refused"
WAYS = ("plain", "padded", "two-warps")  # of head sizes up to 32: SMALL_HEADS of kernels/attention/tiles.py
NO_SHAKESPEARE = "shakespeare.txt is not in the folder that $CHARLM_DATA names: the run needs it"


class Shape(NamedTuple):
    """An attention: head size, length, dtype, a key of OPTIONS in shapes.py, and the way of small heads."""

    D: int
    T: int
    dtype: str
    options: str
    way: str = WAYS[0]

    def __str__(self) -> str:
        return f"D{self.D} T{self.T} {self.dtype} {self.options} {self.way}"


class Stage(NamedTuple):
    """Jobs that run beside or after each other, and which share they may take of what is left of the part's time."""

    jobs: list[Job]
    at_once: int = 1
    share: float = 1.0


def shapes(smoke: bool) -> list[Shape]:
    """The small shapes of attention, those that are most suspect first."""
    if smoke:
        return [Shape(16, 17, "bfloat16", "window+alibi"), Shape(32, 33, "float32", "grouped", "padded")]
    dtypes = ("bfloat16", "float16", "float32")
    small = itertools.product((16, 32), (17, 128, 1000), dtypes, ("causal", "full", "window+alibi", "grouped"))
    around = itertools.product((16, 32), (128, 1000), dtypes[:2], ("causal", "window+alibi"), WAYS[1:])
    others = itertools.product((64, 128, 40), (129, 1000), dtypes, ("causal", "full"))
    return [Shape(*each) for each in [*small, *around, *others]]


def has_shakespeare() -> bool:
    """Whether the text is here: nothing is downloaded."""
    folder, file = os.environ.get("CHARLM_DATA"), REMOTES["shakespeare"].file
    return bool(folder and Path(folder, file).is_file()) or (cache_folder() / "downloads" / file).is_file()


def stages(part: str, smoke: bool, nanogpt: Path | None = None) -> tuple[list[Stage], list[Row]]:
    """The stages of a part, and rows for what this machine cannot run."""
    toy = ("--smoke",) if smoke else ()
    if part == "tests":
        return _tests(smoke, toy), []
    if part == "kernels":
        groups = [KINDS] if smoke else [(kind,) for kind in KINDS]
        return [Stage([Job(part, ", ".join(group), "", "bench.gpu.speeds", (*toy, *group)) for group in groups])], []
    if part == "training":
        return _training(smoke, toy)
    if part == "memory":
        return [Stage([Job(part, "steps", "", "bench.gpu.memory", toy)])], []
    if part == "processes":
        return [Stage([Job(part, "several processes", "", "bench.gpu.processes", toy)])], []
    peer = ("--nanogpt", str(nanogpt.resolve())) if nanogpt else ()
    return [Stage([Job(part, "decoding", "", "bench.gpu.decoding", (*toy, *peer))])], []


def _tests(smoke: bool, toy: tuple[str, ...]) -> list[Stage]:
    cores = os.cpu_count() or 1
    alone = [
        Job(
            "tests", "attention shape", str(shape), "bench.gpu.shapes", (*toy, *map(str, shape)), 120,
            (("CUDA_LAUNCH_BLOCKING", "1"),  # a fault is met where it was made
             ("CHARLM_SMALL_HEADS", shape.way)),
        )
        for shape in shapes(smoke)
    ]  # fmt: skip
    if smoke:
        whole = [Job("tests", "pytest", "", "bench.gpu.pytests", (*toy, "--only", SMOKE_TESTS, *FILES))]
    else:
        workers = ("--workers", str(cores // len(FILES)))
        whole = [Job("tests", file, "", "bench.gpu.pytests", (*workers, file), 900) for file in FILES]
    return [Stage(alone, max(1, cores - 2), 0.5), Stage(whole, max(1, min(8, cores // 2)))]


def _training(smoke: bool, toy: tuple[str, ...]) -> tuple[list[Stage], list[Row]]:
    compiles, groups = ([("off", "on")], [MODELS]) if smoke else ([("off",), ("on",)], [(model,) for model in MODELS])
    steps = [
        Job(
            "training", f"{', '.join(group)}, a step", f"--compile {' '.join(each)}", "bench.gpu.training",
            (*toy, "--compile", *each, "--", *group), 400,
        )
        for each in compiles
        for group in groups
    ]  # fmt: skip
    steps += [
        Job("training", f"{', '.join(group)}, threads and TF32", "", "bench.gpu.apart", (*toy, *group), 120)
        for group in groups
    ]
    steps += [
        Job("training", f"{', '.join(group)}, a step in graphs", "", "bench.gpu.graphs", (*toy, *group), 120)
        for group in groups
    ]
    runs = [
        Job("training", "baby GPT, a run", name, "bench.gpu.race", (*toy, *flag))
        for name, flag in (("with counts", ()), ("without counts", ("--alone",)))
    ]
    if smoke or has_shakespeare():
        return [Stage(steps, share=0.7), Stage(runs)], []
    late = [Row("training", run.what, run.case, outcome="left out", note=NO_SHAKESPEARE) for run in runs]
    return [Stage(steps)], late
