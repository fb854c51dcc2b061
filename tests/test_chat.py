"""A conversation in the terminal: its history, its commands, its interruptions."""

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.conversations import Turn
from engine import load_run
from engine.run.sampling import Sampling
from finetune.instruct.chat import Chat
from tests.conftest import NAMES, ROOT
from tests.helpers import ok, refused, warnings_of

MODULE = "-m finetune.instruct"
TINY = ("--n-layer", 1, "--n-head", 2, "--n-embd", 16)


def test_the_history_is_kept_forgotten_and_never_longer_than_the_context(cli, taught):
    chat = Chat(load_run("run"))
    context = chat.run.config.net.context
    assert "".join(chat.ask("Leave.\nemma")) == "bye"
    assert [turn.text for turn in chat.turns] == ["Leave.\nemma", "bye"]
    for name in NAMES[:9]:
        "".join(chat.ask(f"Leave.\n{name}"))
        assert len(chat.template.prompt(chat.turns[:-1])) <= context
    assert chat.turns[-2].text == f"Leave.\n{NAMES[8]}"
    pieces = chat.ask("Leave.\nmia")
    next(pieces)
    pieces.close()  # as Ctrl-C does
    assert chat.turns[-1].role == "assistant" and "bye".startswith(chat.turns[-1].text)
    before = chat.turns
    with pytest.raises(Exception, match=f"tokens; the model's context holds {context}: shorten it"):
        "".join(chat.ask("a" * context))
    assert chat.turns == before
    chat.reset()
    assert chat.turns == ()


def test_commands_of_the_chat(cli, taught, tmp_path):
    said = b"/retry\n/save talks.jsonl\n/system Greet.\n/system\nLeave.\\\nemma\n/retry\n/save\n/save talks.jsonl\n"
    talk = ok(cli("sample.py", "run", "--chat", "--system", "Leave.", stdin=said))
    *shown, reply, again, saved = talk.out.splitlines()
    assert shown == ["[system: Greet.]"] * 2 and reply == again and saved == "[added to talks.jsonl]"
    wrong = ["nothing was asked yet", "nothing was said yet", "/save needs a file: /save talks.jsonl"]
    assert [line.removeprefix("error: ") for line in talk.err.splitlines()] == wrong
    (kept,) = map(json.loads, Path("talks.jsonl").read_text("utf-8").splitlines())
    roles = [("system", "Greet."), ("user", "Leave.\nemma"), ("assistant", reply)]
    assert kept == {"messages": [{"role": role, "content": text} for role, text in roles]}
    refused(cli("sample.py", "run", "--system", "x"), "--system goes with --chat")
    refused(cli("sample.py", "run", "--chat", "--system", "é"), "character 'é'")


def test_what_no_longer_fits_is_told_and_the_system_message_stays(cli, taught):
    chat = Chat(load_run("run"), system="Greet.")
    talk = ok(cli("sample.py", "run", "--chat", "--system", "Greet.", stdin=b"Leave.\\\nemma\n" * 9))
    assert (
        warnings_of(talk).count(
            "warning: the context is full: 1 of the oldest questions and their answers are forgotten"
        )
        > 3
    )
    for _ in range(9):
        "".join(chat.ask("Leave.\nemma"))
    ids = chat.within_context((Turn("system", chat.system), *chat.turns[:-1]))[0]
    assert chat.run.tokenizer.decode(ids[1:7]) == "Greet." and len(ids) <= chat.run.config.net.context


def test_another_reply_takes_the_place_of_the_last(taught):
    chat = Chat(load_run("run"), Sampling(temperature=20.0), 8, seed=5)
    first = "".join(chat.ask("Greet.\nemma"))
    replies = {first} | {"".join(chat.retry()) for _ in range(5)}
    assert len(replies) > 3 and len(chat.turns) == 2 and chat.turns[-1].text in replies - {first}


@pytest.mark.parametrize(
    "typed", [b"\x1b[200~Leave.\nemma\x1b[201~\r", b"Leave.\\\remma\r"], ids=["pasted", "backslash"]
)
def test_a_text_of_several_lines_is_one_message_in_a_terminal(taught, typed):
    pid, terminal = pty.fork()
    if not pid:
        os.environ |= {"TERM": "xterm", "HOME": "."}
        os.execv(sys.executable, [sys.executable, str(ROOT / "sample.py"), "run", "--chat"])
    for word, answer in ((b"> ", typed), (b"bye", b"/save talks.jsonl\r"), (b"[added", b"/quit\r")):
        shown = b""
        while word not in shown:
            shown += os.read(terminal, 4096)
        assert word != b"> " or b"\x1b[?2004h" in shown  # a terminal is asked to mark what is pasted
        os.write(terminal, answer)
    with contextlib.suppress(OSError):  # Linux says so when the other side is closed
        while os.read(terminal, 4096):
            pass
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    (kept,) = map(json.loads, Path("talks.jsonl").read_text("utf-8").splitlines())
    assert [each["content"] for each in kept["messages"]] == ["Leave.\nemma", "bye"]


def test_a_seed_makes_a_drawn_conversation_come_again(cli, taught):
    flags = ("sample.py", "run", "--chat", "--temperature", 3, "--seed", 5, "--max-new-tokens", 6)
    first, second = (ok(cli(*flags, stdin=b"Leave.\nGreet.\n")).out for _ in range(2))
    assert first == second and first != ok(cli(*flags[:-3], 6, "--max-new-tokens", 6, stdin=b"Leave.\nGreet.\n")).out


def test_a_seed_goes_on_after_turns_are_forgotten(cli, taught):
    chat = Chat(load_run("run"), Sampling(temperature=20.0), 8, seed=5)
    assert len({"".join(chat.ask("Greet.\nemma")) for _ in range(9)}) >= 8


def test_no_standard_input_is_the_end_of_it(process, cli, taught, tmp_path):
    command = f"{sys.executable} {ROOT / 'sample.py'} run --chat <&-"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_stops_a_reply_and_not_the_program(cli, greetings, tmp_path):
    """At a real terminal: a reply that would go on for long is stopped, the next message is answered."""
    untaught = ("--model", "gru", "--context", 100_000, "--steps", 1, "--eval-interval", 1, "--max-answer", 3)
    ok(cli(MODULE, "--data", greetings, *untaught, "--out", "run"))
    main, inner = pty.openpty()
    env = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "dumb"}
    running = subprocess.Popen(
        [sys.executable, str(ROOT / "sample.py"), "run", "--chat"],
        cwd=tmp_path,
        env=env,
        stdin=inner,
        stdout=inner,
        stderr=inner,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as at a terminal, even under nohup
    )
    os.close(inner)
    seen = b""

    def wait_for(text: bytes, more: int = 0) -> None:
        nonlocal seen
        deadline = time.monotonic() + 60
        while text not in seen or len(seen.partition(text)[2]) < more:
            assert time.monotonic() < deadline, seen
            if select.select([main], [], [], 1)[0]:
                seen += os.read(main, 4096)

    try:
        wait_for(b"/quit leaves, Ctrl-C stops a reply")
        wait_for(b"> ")
        os.write(main, b"Leave.\n")
        wait_for(b"Leave.\r\n", 40)
        running.send_signal(signal.SIGINT)
        wait_for(b"[stopped]\r\n> ")
        for _ in range(60):  # one that comes just before the terminal is read is lost
            running.send_signal(signal.SIGINT)
            if select.select([main], [], [], 1)[0]:
                seen += os.read(main, 4096)
            if b"[/quit leaves]" in seen:
                break
        else:
            raise AssertionError(seen)
        os.write(main, b"/quit\n")
        assert running.wait(timeout=30) == 0
    finally:
        running.kill()
        os.close(main)


CHAT_REFUSED = {
    "message": (("--message", "hi"), "--message goes with --chat"),
    "empty": (("--chat", "--message", ""), "--message is empty"),
    "json": (("--chat", "--json"), "--json goes with --message"),
    "prompt": (("--chat", "--prompt", "a"), "--prompt is for sampling; with --chat leave it out"),
    "file": (("--chat", "--message", "@nowhere"), "cannot read nowhere (--message)"),
    "score": (("--chat", "--score", "a"), "with --score leave it out"),
    "unknown": (("--chat", "--message", "é"), "character 'é' (position 0) is not in this model's vocabulary"),
    "nothing known": (
        ("--chat", "--message", "é", "--unknown", "skip"),
        "the message is empty, or the model knows none",
    ),
    "empty file": (("--chat", "--message", "@/dev/null"), "the message is empty"),
}


def test_mistakes_at_the_chat(cli, taught):
    for flags, message in CHAT_REFUSED.values():
        refused(cli("sample.py", "run", *flags), message)
