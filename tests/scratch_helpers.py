"""What the tests of makemore/scratch share: slopes by differences, and whether a command loads torch."""

import subprocess
import sys
from collections.abc import Callable

import numpy as np

from tests.conftest import ROOT


def difference(loss: Callable[[], float], array: np.ndarray, index: tuple[int, ...], step: float = 1e-5) -> float:
    """The slope of a loss along one number of an array that it is computed from."""
    before, values = array[index], []
    for sign in (1, -1):
        array[index] = before + sign * step
        values.append(loss())
    array[index] = before
    return (values[0] - values[1]) / (2 * step)


def loads_torch(module: str, *flags) -> bool:
    """Whether `python -m MODULE FLAGS` has torch loaded at its end, which has to be a good one."""
    code = (
        f"import runpy, sys\nsys.argv = ['', *{list(map(str, flags))!r}]\n"
        f"try:\n    runpy.run_module('{module}', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end.code\nsys.exit(7 * ('torch' in sys.modules))"
    )
    code = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL).returncode
    assert code in (0, 7)
    return code == 7
