"""Tests of the kernels' tests: bugs planted in a copy of the project, each of which its ordinary tests have to find."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT
from tests.kernel_helpers import DEVICE


class Mutant(NamedTuple):
    """What stands in a file, what to put there instead, and where the tests are that have to fail."""

    file: str
    right: str
    wrong: str
    tests: str
    like: str


MUTANTS = {
    "mask off by one": Mutant(
        "attention/parts.py", "(key <= position)", "(key < position)", "test_attention.py", "near_as_torchs"
    ),
    "window off by one": Mutant(
        "attention/parts.py",
        "(key >= position - left)",
        "(key > position - left)",
        "test_attention.py",
        "alignment",
    ),
    "tiles seen whole that are not": Mutant(
        "attention/parts.py",
        "whole = tl.minimum(n_keys, first + 1)",
        "whole = tl.minimum(n_keys, first + 2)",
        "test_attention.py",
        "alignment",
    ),
    "missing scale": Mutant(
        "attention/backward.py", "dq * scale, b, h", "dq, b, h", "test_attention.py", "near_as_torchs"
    ),
    "out-of-bounds store": Mutant(
        "attention/parts.py",
        "(first_row + r < n_rows)",
        "(first_row + r < n_rows + 1)",
        "test_attention.py",
        "out_of_bounds",
    ),
    "out-of-bounds load": Mutant(
        "attention/forward.py",
        "d, n_queries - first_row, D, True,",
        "d, n_queries - first_row, D, False,",
        "test_attention.py",
        "out_of_bounds",
    ),
    "race between programs": Mutant(
        "norm/kernel.py",
        "    partial = (tl.zeros([], tl.int64) + tl.program_id(0)) * C",
        "    partial = (tl.zeros([], tl.int64) + tl.program_id(0) // 2) * C",
        "test_norms.py",
        "out_of_bounds",
    ),
    "wrong sum of dK over grouped heads": Mutant(
        "attention/launch.py",
        "part.unflatten(1, (heads, H // heads)).sum(2)",
        "part.unflatten(1, (H // heads, heads)).sum(1)",
        "test_attention.py",
        "near_as_torchs",
    ),
    "sum not rescaled to a higher maximum": Mutant(
        "attention/forward.py",
        "row_sum = row_sum * rescale + tl.sum(p, 1)",
        "row_sum = row_sum + tl.sum(p, 1)",
        "test_attention.py",
        "near_as_torchs",
    ),
    "maximum of another row": Mutant(
        "attention/backward.py",
        "row_max = tl.load(ROW_MAX + head_offset + query, inside",
        "row_max = tl.load(ROW_MAX + head_offset + m, inside",
        "test_attention.py",
        "alignment",
    ),
    "dropout drawn anew in the backward": Mutant(
        "attention/backward.py",
        "dropout_keeps(seed, start, first_key",
        "dropout_keeps(seed + 1, start, first_key",
        "test_attention.py",
        "near_as_torchs",
    ),
    "derivative of the cap lost": Mutant(
        "attention/backward.py", "ds = ds * derivative", "ds = ds * 1.0", "test_attention.py", "near_as_torchs"
    ),
    "padding seen in the backward": Mutant(
        "attention/backward.py",
        "there = present(KEY_MASK + wide(b) * Tk, first_key + n, n_keys)[:, None]",
        "there = n[:, None] >= 0",
        "test_attention.py",
        "near_as_torchs",
    ),
    "shares of the keys that overlap": Mutant(
        "attention/forward.py",
        "hi = tl.minimum(hi, first_key + span)",
        "hi = tl.minimum(hi, first_key + span + 1)",
        "test_attention.py",
        "few_queries",
    ),
    "slope of another head": Mutant(
        "attention/backward.py",
        "slope = tl.load(SLOPES + h)",
        "slope = tl.load(SLOPES + 0 * h)",
        "test_attention.py",
        "near_as_torchs",
    ),
    "mean of padding": Mutant(
        "norm/kernel.py",
        "d = tl.where(mask, d - mean[:, None], 0.0)",
        "d = d - mean[:, None]",
        "test_norms.py",
        "near_as_torchs",
    ),
    "residual's gradient lost": Mutant(
        "norm/kernel.py",
        "dx = dx + tl.load(DS + index",
        "dx = dx + 0 * tl.load(DS + index",
        "test_norms.py",
        "near_as_torchs",
    ),
    "smoothing only in the loss": Mutant(
        "cross_entropy/kernel.py",
        "1.0 - smoothing, 0.0) + smoothing / vocabulary",
        "1.0, 0.0)",
        "test_cross_entropy.py",
        "near_as_torchs",
    ),
    "ignored rows with a gradient": Mutant(
        "cross_entropy/kernel.py",
        "gradient = tl.where(counted[:, None], ",
        "gradient = tl.where(live[:, None], ",
        "test_cross_entropy.py",
        "ignored_row",
    ),
    "z-loss only in the loss": Mutant(
        "cross_entropy/kernel.py",
        "p *= (1.0 + 2.0 * z_loss",
        "p *= (1.0 + 0.0 * z_loss",
        "test_cross_entropy.py",
        "near_as_torchs",
    ),
    "soft cap without its slope": Mutant(
        "cross_entropy/kernel.py",
        "gradient *= 1.0 - shrunk * shrunk",
        "gradient *= 1.0",
        "test_cross_entropy.py",
        "near_as_torchs",
    ),
    "logit of the target not capped": Mutant(
        "cross_entropy/kernel.py",
        "target_logit = softcap * tanh(target_logit / softcap)",
        "target_logit = target_logit * 1.0",
        "test_cross_entropy.py",
        "near_as_torchs",
    ),
    "tanh that cancels near zero": Mutant("tanh.py", "size < 0.625", "size < 0.01", "test_tanh.py", "near_zero"),
    "mean over rows instead of weights": Mutant(
        "cross_entropy/op.py",
        "total = weights.sum()",
        "total = (weights != 0).sum()",
        "test_cross_entropy.py",
        "class_weights",
    ),
    "weight of another row": Mutant(
        "cross_entropy/linear_op.py",
        "else weights[rows]",
        "else weights.flip(0)[rows]",
        "test_linear_cross_entropy.py",
        "near_as_torchs",
    ),
    "one upstream gradient for all rows": Mutant(
        "cross_entropy/linear_op.py",
        "upstream[rows], options",
        "upstream[:1].expand(len(logits)), options",
        "test_linear_cross_entropy.py",
        "near_as_torchs",
    ),
    "gradient of the last chunk only": Mutant(
        "cross_entropy/linear_op.py",
        "total += a.to",
        "total[...] = a.to",
        "test_linear_cross_entropy.py",
        "near_as_torchs",
    ),
}


# Loads what the tests import from elsewhere, once, and runs pytest on each copy of the project in a fork.
SERVER = """
import json, os, sys
import hypothesis, matplotlib.backends.backend_agg, pytest, torch._dynamo, triton.runtime.interpreter, tyro
for line in sys.stdin:
    folder, output, *words = json.loads(line)
    pid = os.fork()
    if not pid:
        os.chdir(folder)
        shown = os.open(output, os.O_WRONLY | os.O_CREAT)
        os.dup2(shown, 1), os.dup2(shown, 2)
        code = pytest.main(words)
        sys.stdout.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """`tested(folder, *words)` runs pytest on the copy of the project there: its exit code, and what it printed."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = subprocess.Popen([sys.executable, "-c", SERVER], cwd=tmp_path_factory.mktemp("server"), env=env, **pipes)

    def run(folder: Path, *words: str) -> tuple[int, str]:
        print(json.dumps([str(folder), str(folder / "shown"), *words]), file=server.stdin, flush=True)
        return int(server.stdout.readline()), (folder / "shown").read_text("utf-8")

    yield run
    server.stdin.close()
    server.wait()


@pytest.mark.skipif(DEVICE != "cpu", reason="the mutants run in the interpreter")
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", MUTANTS)
def test_the_ordinary_tests_find(name, tested, tmp_path):
    mutant = MUTANTS[name]
    for folder in ("kernels", "tests", "data", "engine", "makemore", "nanogpt", "finetune"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path = tmp_path / "kernels" / mutant.file
    source = path.read_text("utf-8")
    assert source.count(mutant.right) >= 1, f"{mutant.file} no longer has what this mutant changes"
    path.write_text(source.replace(mutant.right, mutant.wrong, 1), "utf-8")
    words = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"tests/{mutant.tests}", "-k", mutant.like]
    code, shown = tested(tmp_path, *words)
    assert code == 1 and "= FAILURES =" in shown, shown[-4000:]
