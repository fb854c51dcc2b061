"""`python -m kernels`, `kernels.aot` and `kernels.bench`, as fresh processes."""

import csv
import os
import re
import subprocess
import sys

import pytest
import torch

from kernels.aot import Case, Usage, cases, complaints
from tests.conftest import ROOT
from tests.helpers import ok, refused
from tests.kernel_helpers import DEVICE


def program(*args, interpret: bool = False) -> subprocess.CompletedProcess:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= {"TRITON_INTERPRET": "1"} if interpret else {}
    return subprocess.run([sys.executable, "-m", *map(str, args)], cwd=ROOT, env=env, capture_output=True, text=True)


INTERPRET = {"TRITON_INTERPRET": "1"}


def test_the_report_says_what_this_machine_can_run(cli, asked_anew):
    report = program("kernels")
    assert report.returncode == 0 and "attention" in report.stdout
    assert "cpu: none; they need a GPU" in report.stdout
    assert "cpu: all of them, in the interpreter" in ok(cli("-m kernels", env=INTERPRET)).out
    assert cli("-m kernels", "--everything").code == 2


def test_each_operation_is_as_near_to_its_reference_as_torch_is(cli, asked_anew):
    shown = ok(cli("-m kernels", "--check", env=INTERPRET)).out
    found = re.findall(r"^([a-z_]+)? +(output|gradient of \w+) +(\S+) +(\S+)$", shown, re.MULTILINE)
    assert [operation for operation, *_ in found if operation] == [
        "attention", "layer_norm", "rms_norm", "cross_entropy", "linear_cross_entropy",
    ]  # fmt: skip
    assert len(found) == 16 and all(float(triton) <= 2 * float(torch) < 1e-5 for _, _, triton, torch in found)
    assert f"largest difference of Triton: {max((row[2] for row in found), key=float)}" in shown


def test_what_cannot_run_is_not_checked(cli, asked_anew):
    done = cli("-m kernels", "--check", env={"TRITON_INTERPRET": "0"})
    refused(done, "cannot run here: they need a GPU", "TRITON_INTERPRET=1 runs them on the CPU")


def test_every_target_has_its_cases_and_the_interpreter_has_no_say(cli):
    assert [len({*cases([target], "cross")}) for target in ("sm80", "sm90", "hip")] == [316] * 3
    assert {*cases(["sm90"], "cross", ends=True)} < {*cases(["sm90"], "cross")}
    done = ok(cli("-m kernels.aot", "--only", "none of them", env=INTERPRET))
    assert done.out == "0 kernels compiled, 0 with complaints\n" and "ignored" in done.err


# Compiles what .ci/run leaves out by `--ends`: each option alone.
OPTIONS_ALONE = """
import os, sys
from kernels import aot
every, targets = aot.cases, ["sm90", "hip"]
ends = {*every(targets, "cross", True)}
aot.cases = lambda *asked: [case for case in every(*asked) if case not in ends]
sys.argv = ["aot", "--only", "cross", "--targets", *targets]
sys.exit(aot.main())
"""


@pytest.mark.exhaustive
def test_kernels_compile_for_gpus_that_are_not_here():
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", OPTIONS_ALONE], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith(f"{2 * 140} kernels compiled, 0 with complaints\n")
    assert "sm90 cross_entropy.loss bfloat16 vocabulary 50257" in done.stdout


def test_what_a_gpu_would_suffer_from_is_complained_about():
    case = Case("attention.forward", "forward_kernel", "sm80", torch.bfloat16, (), "")
    assert complaints(case, Usage(shared=166_912, registers=255, spilled=64, serialized=False)) == []
    assert complaints(case._replace(target="hip"), Usage(65_537, 128, 0, False)) == [
        "65537 B of shared memory, 65536 there are"
    ]
    assert complaints(case, Usage(0, 255, 68, True)) == ["68 B spilled, 64 may be", "wgmma serialized"]


def test_a_kernel_that_does_not_compile_is_complained_about(monkeypatch):
    """In a process of its own: here triton interprets, and compiles nothing."""
    code = (
        "import sys; from kernels import aot; from kernels.cross_entropy import kernel as x\n"
        "x.tiles = lambda *_: x.Tiles(3, 64, 4)\n"  # no power of two
        "sys.argv = ['aot', '--only', 'cross', '--targets', 'sm90', '--jobs', '1']\n"
        "raise SystemExit(aot.main())"
    )
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "does not compile" in done.stdout, done.stderr


@pytest.mark.exhaustive
def test_the_benchmark_runs_and_writes_what_it_printed(tmp_path):
    done = program("kernels.bench", "--smoke", "--out", tmp_path / "results" / "here", interpret=DEVICE == "cpu")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "results" / "here.csv").open() as file:
        about, *rows = file.readlines()
    table = list(csv.DictReader(rows))
    assert about.startswith("# 20") and {row["who"] for row in table} >= {"ours", "torch eager"}
    assert {row["operation"] for row in table} == {
        "attention", "attention, padded", "attention, window to both sides", "attention, capped",
        "attention, one query", "layer_norm", "rms_norm", "add + layer_norm", "cross_entropy",
        "cross_entropy, capped, z-loss", "linear_cross_entropy", "linear_cross_entropy a row",
    }  # fmt: skip
    assert done.stdout.count("| ours |") == sum(row["who"] == "ours" for row in table)
    assert (tmp_path / "results" / "here.png").stat().st_size > 10_000
    if DEVICE == "cpu":
        refused = program("kernels.bench")
        assert refused.returncode == 2 and "they need a GPU" in refused.stderr
        refused = program("kernels.bench", interpret=True)
        assert refused.returncode == 2 and "mean nothing" in refused.stderr
