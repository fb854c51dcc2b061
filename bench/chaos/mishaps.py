"""The mishaps of commands: each plays a round, checks the invariants, and returns the outcome.

A violated invariant raises Failed.
"""

import contextlib
import fcntl
import json
import os
import pty
import resource
import signal
import sys
import time
from collections.abc import Callable

from bench.chaos import faults
from bench.chaos.faults import CALLS, Trap
from bench.chaos.processes import Command, expect
from bench.chaos.quiet import left, tree
from bench.chaos.rounds import Round, ended_by

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ALL = (signal.SIGKILL, *SIGNALS)


def trap(round_: Round, act: Callable, calls: tuple[str, ...] = CALLS, lasting: bool = False, where: str = "") -> Trap:
    """A trap at a random one of the calls."""
    n_calls = max(1, sum(round_.quiet.counts[where][name] for name in calls))
    nth = round_.rng.randint(1, n_calls)
    round_.note(f"at call {nth} of {' '.join(calls)}{' and after' if lasting else ''}")
    return Trap(round_.folder / where, calls, nth, act, lasting)


def signal_at_a_call(round_: Round) -> str:
    """A kill or a signal, or two, right before a system call on files."""
    words, signals = round_.begin(), round_.rng.choice([(s,) for s in ALL] * 2 + [(s, s) for s in SIGNALS])
    round_.note(" ".join(signum.name for signum in signals))
    ended = Command(round_.folder, *words, prepare=trap(round_, faults.send(*signals)).set).end()
    round_.check(ended, words, signals=signals)
    round_.go_on()
    return ended_by(ended)


def signal_at_a_moment(round_: Round, fresh: bool = False) -> str:
    """A kill or signals at random times."""
    words, signals = round_.begin(), [round_.rng.choice(ALL) for _ in range(round_.rng.choice((1, 1, 2)))]
    command = Command(round_.folder, *words, fresh=fresh)
    whole = round_.quiet.seconds + 4 * fresh
    for signum in signals:
        wait = round_.rng.uniform(0, whole)
        time.sleep(wait)
        round_.note(f"{signum.name} after {wait:.3f} s")
        command.send(signum)
        whole = 0.05
    ended = command.end()
    if fresh and "run_command" not in ended.err and ended.err.strip().endswith("KeyboardInterrupt"):
        return "before it began"  # Python itself was still loading
    round_.check(ended, words, signals=tuple(signals))
    round_.go_on()
    return ended_by(ended)


def signal_to_a_fresh_process(round_: Round) -> str:
    """The same for a newly started interpreter."""
    return signal_at_a_moment(round_, fresh=True)


def killed_again_and_again(round_: Round) -> str:
    """Kills of a command and of the commands that resume it."""
    words = round_.begin()
    for _ in range(round_.rng.randint(2, 4)):
        command = Command(round_.folder, *words, prepare=trap(round_, faults.send(signal.SIGKILL)).set)
        round_.check(command.end(), words, signals=(signal.SIGKILL,))
        words = round_.quiet.resume if round_.is_ours() else round_.quiet.overwrite
    round_.go_on()
    return "killed"


def error_once(round_: Round, lasting: bool = False) -> str:
    """A system call that fails."""
    words, name = round_.begin(), round_.rng.choice(faults.ERRORS)
    calls = (round_.rng.choice([call for call in CALLS if round_.quiet.counts[""][call]]),)
    round_.note(name)
    set_up = trap(round_, faults.fail(name), calls, lasting)
    ended = round_.check(Command(round_.folder, *words, prepare=set_up.set).end(), words)
    if ended.code == 0:
        round_.check_whole()
    round_.go_on()
    return ended_by(ended) if set_up.met else "not met"


def error_from_then_on(round_: Round) -> str:
    """A system call that fails from some point on."""
    return error_once(round_, lasting=True)


def full_disk(round_: Round) -> str:
    """A disk that is full: from some system call on no file may grow past some size."""
    words, size = round_.begin(), round_.rng.choice((0, 100, 1000, 2000, 5000, 20000))

    def limit(path: str | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    set_up = trap(round_, limit)
    round_.note(f"no file larger than {size} bytes")
    ended = Command(round_.folder, *words, prepare=set_up.set).end()
    if ended.code == 2 and "error: " not in ended.err and size < 2000:
        ended.err = "error: of which the file of standard error had no room"
    round_.check(ended, words)
    round_.go_on()
    return ended_by(ended) if set_up.met else "not met"


def second_writer(round_: Round) -> str:
    """A second process that starts while the first one is stopped somewhere in its work."""
    words = round_.begin(cache="warm")
    set_up = trap(round_, faults.stop, where="run")
    first = Command(round_.folder, *words, prepare=set_up.set)
    if not first.stands():
        round_.check(first.end(), words)
        round_.go_on()
        return "not met"
    holds, original = is_signed_by(first, round_), round_.tree()
    name = round_.rng.choice(("start", "resume", "resume", "overwrite", "overwrite"))
    second = round_.do(*getattr(round_.quiet, name))
    if holds:
        expect(second.code == 2 and round_.tree() == original, f"the second writer ended with {second.code}")
        if "is being written by" in second.err:
            expect(f"process {first.pid} on" in second.err, second.err)
        else:  # what it looks at before the lock
            reasons = ("already exists",) if name == "start" else ("is not a run directory",)
            expect(any(reason in second.err for reason in reasons), second.err)
    os.kill(first.pid, signal.SIGCONT)
    ended = round_.check(first.end(), words)
    expect((ended.code == 0) if holds else (0 in (ended.code, second.code)), ended.err + second.err)
    if ended.code == 0:
        round_.check_whole()
    round_.go_on()
    return "one was refused" if 2 in (ended.code, second.code) else "one after the other"


def is_signed_by(command: Command, round_: Round) -> bool:
    """Whether the lock of the run names this process as its holder."""
    try:
        return json.loads((round_.run / "lock").read_text())["pid"] == command.pid
    except (OSError, ValueError):
        return False


def writers_at_one_instant(round_: Round) -> str:
    """Two or three processes that start the same run at about the same time."""
    words = round_.begin()
    commands = []
    for _ in range(round_.rng.randint(2, 3)):
        commands.append(Command(round_.folder, *words))
        time.sleep(round_.rng.choice((0, round_.rng.uniform(0, 0.05), round_.rng.uniform(0, round_.quiet.seconds))))
    codes = [round_.check(command.end(), words).code for command in commands]
    expect(0 in codes, "all of them were refused")
    round_.check_whole()
    round_.go_on()
    return "one was refused" if 2 in codes else "one after the other"


def starts_without_out(round_: Round) -> str:
    """Two or three new runs at about the same time, in folders that they choose themselves."""
    round_.begin("start")
    words = [round_.quiet.program, *round_.quiet.flags]
    commands = [Command(round_.folder, *words) for _ in range(round_.rng.randint(2, 3))]
    for command in commands:
        expect(round_.check(command.end(), words).code == 0)
    runs = sorted((round_.folder / "runs").iterdir())
    expect(len(runs) == len(commands))
    expect(all(left(run) == round_.quiet.left for run in runs), "a run is not that of a quiet start")
    return "went through"


def reader(round_: Round) -> str:
    """A reader that samples while a process trains."""
    words = round_.begin(round_.rng.choice(("start", "resume")), "warm")
    command, read = Command(round_.folder, *words), 0
    while not command.is_over():
        for which in ("best", "last"):
            is_there = (round_.run / which).is_dir()
            ended = round_.check(round_.quiet.sample(round_.folder, which), ("sample", which))
            read += ended.code == 0
            expect(ended.code == 0 or not is_there, ended.err)
    expect(round_.check(command.end(), words).code == 0)
    round_.check_whole()
    round_.go_on()
    return "read" if read else "read nothing"


def damaged_file(round_: Round) -> str:
    """A damaged file of a run: commands that need it refuse it, and the other checkpoint works."""
    round_.begin("resume", "warm")
    if round_.rng.random() < 0.5:
        round_.do(*round_.quiet.resume)
    sampled = {which: round_.quiet.sample(round_.folder, which).out for which in ("best", "last")}
    path = round_.rng.choice(sorted(path for path in round_.run.rglob("*") if path.is_file()))
    name, kind = str(path.relative_to(round_.run)), round_.rng.choice(("cut", "empty", "zeroed", "hole", "flipped"))
    part = name.split("/")[0]
    faults.damage(path, kind, round_.rng)
    round_.note(f"{name} {kind}")
    for which in ("best", "last"):
        ended = round_.check(round_.quiet.sample(round_.folder, which), ("sample", which))
        if name != "config.json":
            expect(ended.code == 2 or ended.out == sampled[which], f"{which} gives another sample")
            expect(ended.code == 0 or part in (which, "base", "tokenizer.json"), ended.err)
    ended = resumed = round_.do(*round_.quiet.resume)
    if ended.code == 0 and name not in ("config.json", "metrics.jsonl"):
        round_.check_whole()
    elif ended.code == 0 and name == "metrics.jsonl":
        round_.check_whole(but=("metrics",))
    expect(ended.code == 0 or part in ("best", "last", "base", "config.json", "tokenizer.json"), ended.err)
    if resumed.code == 2 and part == "last":
        expect("--checkpoint best" in resumed.err or round_.quiet.name == "ngram", resumed.err)
        expect(round_.do(*round_.quiet.resume, "--checkpoint", "best").code == 0)
    expect(round_.do(*round_.quiet.overwrite).code == 0)
    round_.check_whole()
    round_.check_nothing_over()
    return ended_by(resumed)


def damaged_text(round_: Round) -> str:
    """A damaged file of the prepared text: the text is prepared again."""
    words = round_.begin(cache="warm")
    files = sorted((round_.folder / "cache").glob("prepared/*/*"))
    if not files:
        return "no prepared text"
    original = tree(round_.folder / "cache")
    path, kind = round_.rng.choice(files), round_.rng.choice(("cut", "empty", "zeroed", "hole", "flipped"))
    faults.damage(path, kind, round_.rng)
    round_.note(f"{path.name} {kind}")
    ended = round_.do(*words)
    expect(ended.code == 0, ended.err)
    expect(tree(round_.folder / "cache") == original, f"{path.name} is not as it was before")
    round_.check_whole()
    round_.go_on()
    return "went through"


def closed_streams(round_: Round) -> str:
    """Standard streams that are closed from the beginning."""
    words, numbers = round_.begin(), round_.rng.choice(((0,), (1,), (2,), (1, 2), (0, 1, 2)))

    def close() -> None:
        for number in numbers:
            os.close(number)
            setattr(sys, ("stdin", "stdout", "stderr")[number], None)

    round_.note(f"without {numbers}")
    ended = round_.check(Command(round_.folder, *words, prepare=close).end(), words)
    expect(ended.code == 0, ended.err)
    round_.check_whole()
    round_.check_nothing_over()
    return "went through"


def reader_leaves(round_: Round) -> str:
    """A pipe or a terminal for the output whose other end is closed after some bytes."""
    words, kind = round_.begin(), round_.rng.choice(("pipe", "terminal", "controlling terminal"))
    controller, command_end = os.pipe() if kind == "pipe" else pty.openpty()

    def connect() -> None:
        os.close(controller)
        if kind == "controlling terminal":
            os.setsid()
            fcntl.ioctl(command_end, 0x540E if sys.platform == "linux" else 0x20007461, 0)  # TIOCSCTTY
        for number in (1, 2):
            os.dup2(command_end, number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))

    size = round_.rng.choice((0, 1, 100, 300, 1000))
    round_.note(f"a {kind} that is closed after {size} bytes")
    command = Command(round_.folder, *words, prepare=connect)
    os.close(command_end)
    with contextlib.suppress(OSError):  # at the end of what a terminal is told
        while size > 0 and (output := os.read(controller, size)):
            size -= len(output)
    os.close(controller)
    signals = (signal.SIGHUP,) if kind == "controlling terminal" else ()
    ended = round_.check(command.end(), words, signals=signals)
    expect(ended.code != 2)
    if ended.code == 0:
        round_.check_whole()
    round_.go_on()
    return ended_by(ended)


MISHAPS = {
    play.__name__.replace("_", "-"): play
    for play in (
        signal_at_a_call, signal_at_a_moment, signal_to_a_fresh_process, killed_again_and_again, error_once,
        error_from_then_on, full_disk, second_writer, writers_at_one_instant, starts_without_out, reader, damaged_file,
        damaged_text, closed_streams, reader_leaves,
    )
}  # fmt: skip
SHARES = {
    "signal-to-a-fresh-process": 0.6,
    "error-once": 3,
    "error-from-then-on": 2,
    "signal-at-a-call": 3,
    "damaged-file": 2,
    "second-writer": 2,
}  # fmt: skip  how often each is drawn, beside 1
