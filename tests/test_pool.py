"""Work in several processes: ordered results, few parts ahead, errors as one message, and no process left behind."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from data.errors import UserError
from data.pool import IN_FLIGHT, Pool
from data.vocabulary import check_name
from tests.conftest import ROOT


def alive(pids: list[int]) -> list[int]:
    """Those of the processes that run."""
    return [
        pid for pid in pids if Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text()
    ]


def gone(pids: list[int]) -> bool:
    """Whether the processes end soon."""
    end = time.monotonic() + 20
    while alive(pids) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pids)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_the_order_of_the_parts(workers):
    with Pool(workers) as pool:
        assert list(pool.map(len, ("x" * n for n in range(50)))) == [*range(50)]
        assert list(pool.map(partial(int, base=7), ["12", "20"])) == [9, 14], "and then other work"
        assert list(pool.map(len, [])) == []


def test_only_a_few_parts_are_read_ahead():
    read = []

    def parts():
        for n in range(40):
            read.append(n)
            yield "x" * n

    with Pool(2) as pool:
        for n, result in enumerate(pool.map(len, parts())):
            assert result == n and len(read) <= n + 1 + IN_FLIGHT * 2


def test_large_parts_and_results_do_not_block_each_other():
    with Pool(2) as pool:
        assert [len(text) for text in pool.map(str.upper, ["x" * 3_000_000] * 12)] == [3_000_000] * 12


def test_a_mistake_of_the_user_is_raised_as_it_is_and_a_bug_with_its_traceback():
    with Pool(2) as pool:
        with pytest.raises(UserError, match="Did you mean 'byte'"):
            list(pool.map(check_name, ["char", "bites", "byte"]))
        with pytest.raises(RuntimeError, match="(?s)Traceback.*invalid literal"):
            list(pool.map(int, ["1", "x"]))
        assert list(pool.map(int, ["1"])) == [1], "the processes go on"


def test_what_work_prints_is_no_result(capfd):
    with Pool(2) as pool:
        assert list(pool.map(print, ["a", "b"])) == [None, None]
    assert sorted(capfd.readouterr().err.split()) == ["a", "b"]


@pytest.mark.parametrize("deadly", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_that_dies_is_one_message(deadly):
    with Pool(2) as pool:
        with pytest.raises(UserError, match=f"ended by signal {deadly.value}.*fewer --workers"):
            list(pool.map(signal.raise_signal, [0, 0, 0, 0, deadly.value, 0, 0]))


def test_leaving_ends_the_processes_whatever_they_are_doing():
    with pytest.raises(KeyboardInterrupt), Pool(2) as pool:
        next(pool.map(time.sleep, [0, 0, 600, 600, 600, 600]))
        pids = [worker._process.pid for worker in pool._started]
        assert alive(pids) == pids
        raise KeyboardInterrupt
    assert gone(pids)


KILLED = """
import sys, time
from data.pool import Pool
with Pool(2) as pool:
    for _ in pool.map(time.sleep, [0, 0, 1, 1, 1, 1, 1, 1]):
        print(*[worker._process.pid for worker in pool._started], flush=True)
"""


def test_processes_do_not_outlive_a_command_that_is_killed(tmp_path):
    command = subprocess.Popen(
        [sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    pids = list(map(int, command.stdout.readline().split()))
    command.kill()
    command.communicate()
    assert len(pids) == 2 and gone(pids)


def test_the_processes_import_neither_torch_nor_what_started_them(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "__init__.py").write_text("raise ImportError('a folder of the user')")
    monkeypatch.chdir(tmp_path)
    with Pool(2) as pool:
        (modules,) = pool.map(eval, ["[*__import__('sys').modules]"])
    assert "torch" not in modules and not any(name.startswith(("tests", "engine", "_pytest")) for name in modules)
