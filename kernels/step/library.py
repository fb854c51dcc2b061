"""The C sources as a library: compiled at first use for this machine's CPU, and kept in a folder."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

SOURCES = [Path(__file__).with_name(name) for name in ("step.c", "draw.c", "scan.c", "windows.c", "elements.c")]
HEADER = Path(__file__).with_name("vectors.h")
# -ffast-math lets sums run in vectors. Linking is a step of its own, without it: with it gcc adds code that rounds the
# smallest numbers to 0 in the whole process.
COMPILE = ["-O3", "-ffast-math", "-fPIC", "-c"]
TUNED = [  # the first that works is taken; Apple's clang knows no -march=native, and no OpenMP
    [*parallel, *tuned] for parallel in (["-fopenmp"], []) for tuned in (["-march=native"], ["-mcpu=native"], [])
]
SECONDS = 60


class Library(NamedTuple):
    """The functions of the sources, which take addresses."""

    step: Callable[..., None]
    draw: Callable[..., None]
    decode: Callable[..., int]
    scan: Callable[..., int]
    scan_back: Callable[..., int]
    windows: Callable[..., None]
    windows_back: Callable[..., None]
    activate: Callable[..., None]
    activate_back: Callable[..., None]
    turn: Callable[..., None]
    turn_back: Callable[..., None]


LETTERS: dict[str, Any] = {"w": ctypes.c_int64, "p": ctypes.c_void_p, "d": ctypes.c_double}
TYPES = {  # what each takes: whole numbers, pointers, doubles; and what it returns
    "step": ("pww" + "pppp", ""), "draw": ("pppp" + "ww" + "pp", ""), "decode": ("p" + "wwww" + "ppppp", "w"),
    "scan": ("wwww" + "ppppp", "w"), "scan_back": ("wwww" + "pppppp", "w"),
    "windows": ("wwww" + "pppp", ""), "windows_back": ("wwww" + "ppp", ""),
    "activate": ("wwww" + "pp", ""), "activate_back": ("wwww" + "ppp", ""),
    "turn": ("wwwwwww" + "d" + "pppp", ""), "turn_back": ("wwwwwww" + "d" + "ppppp", ""),
}  # fmt: skip


@functools.cache
def load(folder: Path) -> Library | None:
    """The functions, from `folder`, where what was compiled is kept; None where nothing compiles it. What a
    folder of other users holds is not run."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))), None)
    if compiler is None or os.name != "posix":
        return None
    facts = repr([*(source.read_bytes() for source in [HEADER, *SOURCES]), compiler, _cpu(), COMPILE, TUNED])
    path = folder / "step" / f"{hashlib.sha256(facts.encode()).hexdigest()[:24]}.so"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (_is_ours(path.parent) and (path.exists() or _compile(compiler, path)) and _is_ours(path)):
            return None
        library = ctypes.CDLL(str(path))
        found = {name: getattr(library, f"charlm_{name}") for name in Library._fields}
    except (OSError, AttributeError, subprocess.SubprocessError):
        return None
    for name, (arguments, result) in TYPES.items():
        found[name].argtypes, found[name].restype = [LETTERS[letter] for letter in arguments], LETTERS.get(result)
    return Library(**found)


def _compile(compiler: str, path: Path) -> bool:
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        made = [str(Path(work) / f"{source.stem}.o") for source in SOURCES]
        library = Path(work) / "step.so"

        def run(*words: str) -> bool:
            return not subprocess.run([compiler, *words], capture_output=True, timeout=SECONDS, cwd=work).returncode

        def works(tuned: list[str]) -> bool:
            each = (run(*COMPILE, *tuned, str(c), "-o", o) for c, o in zip(SOURCES, made, strict=True))
            return all(each) and run("-shared", *made, "-o", str(library), "-lm") and _loads(library)

        if not any(map(works, TUNED)):
            return False
        library.chmod(0o600)
        os.replace(library, path)  # whole, or not there: others may compile it at the same time
    return True


def _loads(library: Path) -> bool:
    """Whether this process finds all that it needs: OpenMP's functions are torch's."""
    try:
        ctypes.CDLL(str(library))
    except OSError:
        return False
    return True


def _is_ours(path: Path) -> bool:
    """Whether this user alone may write there."""
    found = path.stat()
    return found.st_uid == os.getuid() and not found.st_mode & 0o022


def _cpu() -> str:
    """What `-march=native` depends on: a folder may be shared by several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return f"{platform.machine()} {platform.processor()}"
