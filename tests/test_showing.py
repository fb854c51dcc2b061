"""What training shows: help, defaults, warnings and the bar."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from tests.conftest import ROOT
from tests.helpers import (
    LINES,
    ok,
    quick,
    summary,
)

pytestmark = pytest.mark.usefixtures("names", "text")  # names.txt and text.txt stand where the commands run


@pytest.mark.parametrize(
    "words", [["--help"], ["--model", "lstm", "--data", "shakespeare", "--help"], ["--steps", "x"]]
)
def test_help_and_wrong_flags_answer_without_torch(words):
    command = [sys.executable, "-X", "importtime", str(ROOT / "train.py"), *words]
    shown = subprocess.run(command, capture_output=True, text=True)
    assert shown.returncode == (0 if "--help" in words else 2)
    modules = {line.split("|")[-1].strip() for line in shown.stderr.splitlines() if line.startswith("import time:")}
    assert "tyro" in modules and not modules & {"torch", "matplotlib"}
    assert "--eval-interval" in shown.stdout or "--steps" in shown.stderr


def test_help_shows_the_defaults_of_the_chosen_pair(cli):
    shown = " ".join(ok(cli("train.py", "--model", "lstm", "--data", "shakespeare", "--help")).out.split())
    assert "--n-hidden INT" in shown and "(default: 256)" in shown.split("--n-hidden INT")[1][:160]


def test_a_machine_without_a_compiler_trains_on_without_it(process, tmp_path):
    training = process("train.py", *quick("mlp", **LINES, compile="on"), env={"CXX": "/nonexistent"})
    out, err = training.communicate(timeout=300)
    assert training.returncode == 0, err
    (told,) = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert "torch.compile does not work here" in told
    assert summary(tmp_path / "run")["steps"] == 6


@pytest.mark.parametrize(
    "flags, step",
    [
        ({"steps": 400, "eval_interval": 200}, r"\d+/400"),
        ({"steps": 10**6, "minutes": 0.03, "eval_interval": 200}, r"\d+/1000000"),
    ],
)
def test_the_bar_of_a_terminal_shows_step_loss_speed_and_time_left(tmp_path, flags, step):
    """Through a real pseudo-terminal, as a user sees it."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = [sys.executable, str(ROOT / "train.py"), *map(str, quick("mlp", **LINES, **flags))]
    training = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path)
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux says so when the other side is closed
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    assert training.wait() == 0, shown.decode()
    drawn = [line for line in re.split(r"[\r\n]+", shown.decode()) if line.startswith("step") and "tokens/s" in line]
    assert drawn, shown.decode()
    for line in drawn:
        assert re.search(rf"^step {step} ", line) and re.search(r"\d\d:\d\d, \d\d:\d\d left", line)
        assert re.search(r" loss \d\.\d+, [\d,]+ tokens/s", line) and "| ," not in line and len(line) <= 100


def test_without_a_terminal_there_is_no_bar(cli):
    result = ok(cli("train.py", *quick(**LINES)))
    assert result.err == "" or "tokens/s" not in result.err
    assert [line.split()[1] for line in result.out.splitlines() if line.startswith("step ")] == ["0", "3", "6"]
