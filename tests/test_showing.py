"""What commands show: help, defaults, warnings, the bar, and what would command the terminal."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from data.terminal import visible
from tests.conftest import ROOT, _child
from tests.helpers import (
    LINES,
    ok,
    quick,
    summary,
    trained_any,
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


@pytest.mark.parametrize("task", ["classify", "instruct", "translate"])
def test_help_of_a_task_says_in_words_what_its_family_is(cli, task):
    shown = ok(cli(f"-m finetune.{task}", "--model", "gru", "--help")).out
    assert "Gated recurrent units (Cho et al. 2014)." in shown and "typing" not in shown


@pytest.mark.exhaustive
def test_a_machine_without_a_compiler_trains_on_without_it(process, tmp_path):
    training = process("train.py", *quick("mlp", **LINES, compile="on"), env={"CXX": "/nonexistent"})
    out, err = training.communicate(timeout=300)
    assert training.returncode == 0, err
    (told,) = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert "torch.compile does not work here" in told
    assert summary(tmp_path / "run")["steps"] == 6


def at_terminal(*words) -> str:
    """What a command shows in a real pseudo-terminal, as a user sees it; forked from this process."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    pid = os.fork()
    if not pid:
        os.close(ours)
        _child(words[0], list(map(str, words[1:])), [Path(os.ttyname(theirs))] * 3, {})
    os.close(theirs)
    if words[-1] == "--chat":
        os.write(ours, b"say 1\n/quit\n")
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
    os.waitpid(pid, 0)
    return shown.decode()


@pytest.mark.parametrize(
    "flags, step",
    [
        ({"steps": 400, "eval_interval": 200}, r"\d+/400"),
        ({"steps": 10**6, "minutes": 0.03, "eval_interval": 200}, r"\d+/1000000"),
    ],
)
def test_the_bar_of_a_terminal_shows_step_loss_speed_and_time_left(cli, flags, step):
    shown = at_terminal("train.py", *quick("mlp", **LINES, **flags))
    drawn = [line for line in re.split(r"[\r\n]+", shown) if line.startswith("step") and "tokens/s" in line]
    assert drawn, shown
    for line in drawn:
        assert re.search(rf"^step {step} ", line) and re.search(r"\d\d:\d\d, \d\d:\d\d left", line)
        assert re.search(r" loss \d\.\d+, [\d,]+ tokens/s", line) and "| ," not in line and len(line) <= 100


def test_without_a_terminal_there_is_no_bar(cli):
    result = ok(cli("train.py", *quick(**LINES)))
    assert result.err == "" or "tokens/s" not in result.err
    assert [line.split()[1] for line in result.out.splitlines() if line.startswith("step ")] == ["0", "3", "6"]


# Clears the screen, renames the window, the same with single characters, turns the direction of writing, goes back.
COMMANDS = "\x1b[2J", "\x1b]0;owned\x07", "\x9b2J", "\x9d0;owned\x9c", "\u202e", "\x7f", "\b"
UNSAFE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]|\r(?!\n)")  # a terminal itself writes \r\n


@pytest.mark.parametrize("flags", [[], ["--stream"], ["--json"], ["--num", "2"]], ids=" ".join)
def test_what_a_model_writes_commands_no_terminal(cli, tmp_path, flags):
    (tmp_path / "odd.txt").write_text("".join(f"see {word} there\n" for word in COMMANDS * 9), "utf-8", newline="")
    trained_any(cli, "ngram", data="odd.txt", order=8)
    command = ["sample.py", "run", "--prompt", "see \x1b[2J there\n", "--max-new-tokens", 300, "--seed", 1, *flags]
    shown, piped = at_terminal(*command), ok(cli(*command)).out
    assert not UNSAFE.findall(shown) and "see \\u001b[2J there" in shown.replace("\\n", "\n")
    assert shown.replace("\r\n", "\n") == visible(piped), "a pipe gets the same, as it is"
    assert flags == ["--json"] or "\x1b" in piped


def test_what_is_shown_at_the_end_of_a_run_and_of_its_mistakes_commands_none(cli, tmp_path):
    (tmp_path / "odd.txt").write_text("".join(f"see {word} there\n" for word in COMMANDS * 9), "utf-8", newline="")
    shown = at_terminal("train.py", "--model", "ngram", "--order", 8, "--data", "odd.txt", "--out", "run")
    assert (
        not UNSAFE.findall(shown) and "\\u001b" in shown and "\x1b" in (tmp_path / "run/samples.txt").read_text("utf-8")
    )
    shown = at_terminal("sample.py", "run", "--prompt", "@no\x1b[2Jfile")
    assert "\x1b[2J" not in shown and "no\\u001b[2Jfile" in shown


def test_nor_do_answers_and_labels(cli, tmp_path):
    asked = [{"prompt": f"say {n}", "completion": "\x1b[2J\x9b0K"} for n in range(12)]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, asked)))
    flags = ["--model", "bigram", "--lr", 1, "--out"]
    shown = at_terminal("-m finetune.instruct", "--data", "chat.jsonl", "--steps", 60, *flags, "run")
    assert "\\u001b[2J" in shown and not re.findall("\x1b\\[2J|\x9b", shown)
    shown = at_terminal("sample.py", "run", "--chat", "--message", "say 1")
    assert shown.startswith("\\u001b[2J\\u009b0K") and not UNSAFE.findall(shown)
    shown = at_terminal("sample.py", "run", "--chat")
    assert "\\u001b[2J\\u009b0K" in shown and not re.findall("\x1b\\[2J|\x9b", shown)
    (tmp_path / "odd.tsv").write_text("".join(f"good\x9b2J\tsee {n}\nbad\tnot {n}\n" for n in range(30)), "utf-8")
    shown = at_terminal("-m finetune.classify", "--data", "odd.tsv", "--steps", 2, *flags[:2], *flags[4:], "odd")
    assert "good\\u009b2J" in shown and "\x9b" not in shown


def test_printable_text_is_shown_as_it_is():
    text = "tab\tline\nnaïve 猫 🙂 👩\u200d🚀 עברית €"
    assert visible(text) == text and visible("a\rb") == "a\\u000db"
    assert json.loads(visible(json.dumps("\x7f\x9b\u202e", ensure_ascii=False))) == "\x7f\x9b\u202e"
