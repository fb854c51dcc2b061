"""step.c as a library: compiled at first use for this machine's CPU, and kept in a folder."""

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
from typing import NamedTuple

SOURCE = Path(__file__).with_name("step.c")
# -ffast-math lets sums run in vectors. Linking is a step of its own, without it: with it gcc adds code that rounds the
# smallest numbers to 0 in the whole process.
COMPILE = ["-O3", "-march=native", "-ffast-math", "-fPIC", "-c"]
SECONDS = 60


class Library(NamedTuple):
    """The functions of step.c, which take addresses."""

    step: Callable[..., None]
    draw: Callable[..., None]


@functools.cache
def load(folder: Path) -> Library | None:
    """The functions of step.c, from `folder`, where what was compiled is kept; None where nothing compiles it. What a
    folder of other users holds is not run."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))), None)
    if compiler is None or os.name != "posix":
        return None
    facts = (SOURCE.read_bytes(), compiler.encode(), _cpu().encode(), " ".join(COMPILE).encode())
    path = folder / "step" / f"{hashlib.sha256(b'/'.join(facts)).hexdigest()[:24]}.so"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (_is_ours(path.parent) and (path.exists() or _compile(compiler, path)) and _is_ours(path)):
            return None
        library = ctypes.CDLL(str(path))
        step, draw = library.charlm_step, library.charlm_draw
    except (OSError, AttributeError, subprocess.SubprocessError):
        return None
    whole, pointer = ctypes.c_int64, ctypes.c_void_p
    step.argtypes, step.restype = [pointer, whole, whole, pointer, pointer, pointer], None
    draw.argtypes, draw.restype = [pointer, pointer, whole, whole, pointer], None
    return Library(step, draw)


def _compile(compiler: str, path: Path) -> bool:
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        made, library = Path(work) / "step.o", Path(work) / "step.so"
        for command in (
            [compiler, *COMPILE, str(SOURCE), "-o", str(made)],
            [compiler, "-shared", str(made), "-o", str(library), "-lm"],
        ):
            if subprocess.run(command, capture_output=True, timeout=SECONDS, cwd=work).returncode:
                return False
        library.chmod(0o600)
        os.replace(library, path)  # whole, or not there: others may compile it at the same time
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
