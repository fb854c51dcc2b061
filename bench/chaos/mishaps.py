"""What may befall a command: each mishap plays a round, checks what has to hold, and says how it ended.

An AssertionError says what did not hold.
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
from bench.chaos.processes import Command
from bench.chaos.quiet import left, tree
from bench.chaos.rounds import Round, ended_by

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ALL = (signal.SIGKILL, *SIGNALS)


def trap(one: Round, act: Callable, calls: tuple[str, ...] = CALLS, lasting: bool = False, where: str = "") -> Trap:
    """A trap at a random one of the calls."""
    most = max(1, sum(one.quiet.counts[where][name] for name in calls))
    nth = one.rng.randint(1, most)
    one.note(f"at call {nth} of {' '.join(calls)}{' and after' if lasting else ''}")
    return Trap(one.folder / where, calls, nth, act, lasting)


def signal_at_a_call(one: Round) -> str:
    """A kill or a signal, or two, right before a change of the disk."""
    words, signals = one.begin(), one.rng.choice([(s,) for s in ALL] * 2 + [(s, s) for s in SIGNALS])
    one.note(" ".join(signum.name for signum in signals))
    ended = Command(one.folder, *words, prepare=trap(one, faults.send(*signals)).set).end()
    one.check(ended, words, signals=signals)
    one.go_on()
    return ended_by(ended)


def signal_at_a_moment(one: Round, fresh: bool = False) -> str:
    """A kill or signals at moments of the clock."""
    words, signals = one.begin(), [one.rng.choice(ALL) for _ in range(one.rng.choice((1, 1, 2)))]
    command = Command(one.folder, *words, fresh=fresh)
    whole = one.quiet.seconds + 4 * fresh
    for signum in signals:
        wait = one.rng.uniform(0, whole)
        time.sleep(wait)
        one.note(f"{signum.name} after {wait:.3f} s")
        command.send(signum)
        whole = 0.05
    ended = command.end()
    if fresh and "run_command" not in ended.err and ended.err.strip().endswith("KeyboardInterrupt"):
        return "before it began"  # Python itself was still loading
    one.check(ended, words, signals=tuple(signals))
    one.go_on()
    return ended_by(ended)


def signal_to_a_fresh_process(one: Round) -> str:
    """The same of an interpreter that starts from nothing."""
    return signal_at_a_moment(one, fresh=True)


def killed_again_and_again(one: Round) -> str:
    """Killed, and killed when going on, and so on."""
    words = one.begin()
    for _ in range(one.rng.randint(2, 4)):
        command = Command(one.folder, *words, prepare=trap(one, faults.send(signal.SIGKILL)).set)
        one.check(command.end(), words, signals=(signal.SIGKILL,))
        words = one.quiet.resume if one.is_ours() else one.quiet.overwrite
    one.go_on()
    return "killed"


def error_once(one: Round, lasting: bool = False) -> str:
    """A call of the system that fails."""
    words, name = one.begin(), one.rng.choice(faults.ERRORS)
    calls = (one.rng.choice([call for call in CALLS if one.quiet.counts[""][call]]),)
    one.note(name)
    set_up = trap(one, faults.fail(name), calls, lasting)
    ended = one.check(Command(one.folder, *words, prepare=set_up.set).end(), words)
    if ended.code == 0:
        one.check_whole()
    one.go_on()
    return ended_by(ended) if set_up.met else "not met"


def error_from_then_on(one: Round) -> str:
    """A call of the system that fails, and fails again."""
    return error_once(one, lasting=True)


def full_disk(one: Round) -> str:
    """From some change of the disk on no file may grow past some size."""
    words, size = one.begin(), one.rng.choice((0, 100, 1000, 2000, 5000, 20000))

    def limit(path: str | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    set_up = trap(one, limit)
    one.note(f"no file larger than {size} bytes")
    ended = Command(one.folder, *words, prepare=set_up.set).end()
    if ended.code == 2 and "error: " not in ended.err and size < 2000:
        ended.err = "error: of which the file of standard error had no room"
    one.check(ended, words)
    one.go_on()
    return ended_by(ended) if set_up.met else "not met"


def second_writer(one: Round) -> str:
    """Another process comes while the first one stands somewhere in its work."""
    words = one.begin(cache="warm")
    set_up = trap(one, faults.stop, where="run")
    first = Command(one.folder, *words, prepare=set_up.set)
    if not first.stands():
        one.check(first.end(), words)
        one.go_on()
        return "not met"
    holds, before = is_signed_by(first, one), one.tree()
    name = one.rng.choice(("start", "resume", "resume", "overwrite", "overwrite"))
    second = one.do(*getattr(one.quiet, name))
    if holds:
        assert second.code == 2 and one.tree() == before, f"the second writer ended with {second.code}"
        if "is being written by" in second.err:
            assert f"process {first.pid} on" in second.err, second.err
        else:  # what it looks at before the lock
            reasons = ("already exists",) if name == "start" else ("is not a run directory",)
            assert any(reason in second.err for reason in reasons), second.err
    os.kill(first.pid, signal.SIGCONT)
    ended = one.check(first.end(), words)
    assert (ended.code == 0) if holds else (0 in (ended.code, second.code)), ended.err + second.err
    if ended.code == 0:
        one.check_whole()
    one.go_on()
    return "one was refused" if 2 in (ended.code, second.code) else "one after the other"


def is_signed_by(command: Command, one: Round) -> bool:
    """Whether the lock of the run says that this process holds it."""
    try:
        return json.loads((one.run / "lock").read_text())["pid"] == command.pid
    except (OSError, ValueError):
        return False


def writers_at_one_instant(one: Round) -> str:
    """Two or three processes want the same run at about the same time."""
    words = one.begin()
    commands = []
    for _ in range(one.rng.randint(2, 3)):
        commands.append(Command(one.folder, *words))
        time.sleep(one.rng.choice((0, one.rng.uniform(0, 0.05), one.rng.uniform(0, one.quiet.seconds))))
    codes = [one.check(command.end(), words).code for command in commands]
    assert 0 in codes, "all of them were refused"
    one.check_whole()
    one.go_on()
    return "one was refused" if 2 in codes else "one after the other"


def starts_without_out(one: Round) -> str:
    """Two or three new runs at about the same time, in folders that they choose."""
    one.begin("start")
    words = [one.quiet.program, *one.quiet.flags]
    commands = [Command(one.folder, *words) for _ in range(one.rng.randint(2, 3))]
    for command in commands:
        assert one.check(command.end(), words).code == 0
    runs = sorted((one.folder / "runs").iterdir())
    assert len(runs) == len(commands)
    assert all(left(run) == one.quiet.left for run in runs), "a run is not that of a quiet start"
    return "went through"


def reader(one: Round) -> str:
    """Somebody samples and evaluates while a process trains."""
    words = one.begin(one.rng.choice(("start", "resume")), "warm")
    command, read = Command(one.folder, *words), 0
    while not command.is_over():
        for which in ("best", "last"):
            is_there = (one.run / which).is_dir()
            ended = one.check(one.quiet.sample(one.folder, which), ("sample", which))
            read += ended.code == 0
            assert ended.code == 0 or not is_there, ended.err
    assert one.check(command.end(), words).code == 0
    one.check_whole()
    one.go_on()
    return "read" if read else "read nothing"


def damaged_file(one: Round) -> str:
    """A file of a run is damaged: what uses it says so or does not need it, and the other checkpoint works."""
    one.begin("resume", "warm")
    if one.rng.random() < 0.5:
        one.do(*one.quiet.resume)
    sampled = {which: one.quiet.sample(one.folder, which).out for which in ("best", "last")}
    path = one.rng.choice(sorted(path for path in one.run.rglob("*") if path.is_file()))
    name, how = str(path.relative_to(one.run)), one.rng.choice(("cut", "empty", "zeroed", "hole", "flipped"))
    part = name.split("/")[0]
    faults.damage(path, how, one.rng)
    one.note(f"{name} {how}")
    for which in ("best", "last"):
        ended = one.check(one.quiet.sample(one.folder, which), ("sample", which))
        if name != "config.json":
            assert ended.code == 2 or ended.out == sampled[which], f"{which} gives another sample"
            assert ended.code == 0 or part in (which, "base", "tokenizer.json"), ended.err
    ended = resumed = one.do(*one.quiet.resume)
    if ended.code == 0 and name not in ("config.json", "metrics.jsonl"):
        one.check_whole()
    elif ended.code == 0 and name == "metrics.jsonl":
        one.check_whole(but=("metrics",))
    assert ended.code == 0 or part in ("best", "last", "base", "config.json", "tokenizer.json"), ended.err
    if resumed.code == 2 and part == "last":
        assert "--checkpoint best" in resumed.err or one.quiet.name == "ngram", resumed.err
        assert one.do(*one.quiet.resume, "--checkpoint", "best").code == 0
    assert one.do(*one.quiet.overwrite).code == 0
    one.check_whole()
    one.check_nothing_over()
    return ended_by(resumed)


def damaged_text(one: Round) -> str:
    """A file of the prepared text is damaged: it is prepared again."""
    words = one.begin(cache="warm")
    files = sorted((one.folder / "cache").glob("prepared/*/*"))
    if not files:
        return "no prepared text"
    before = tree(one.folder / "cache")
    path, how = one.rng.choice(files), one.rng.choice(("cut", "empty", "zeroed", "hole", "flipped"))
    faults.damage(path, how, one.rng)
    one.note(f"{path.name} {how}")
    ended = one.do(*words)
    assert ended.code == 0, ended.err
    assert tree(one.folder / "cache") == before, f"{path.name} is not as it was before"
    one.check_whole()
    one.go_on()
    return "went through"


def closed_streams(one: Round) -> str:
    """Standard streams that are closed from the beginning."""
    words, numbers = one.begin(), one.rng.choice(((0,), (1,), (2,), (1, 2), (0, 1, 2)))

    def close() -> None:
        for number in numbers:
            os.close(number)
            setattr(sys, ("stdin", "stdout", "stderr")[number], None)

    one.note(f"without {numbers}")
    ended = one.check(Command(one.folder, *words, prepare=close).end(), words)
    assert ended.code == 0, ended.err
    one.check_whole()
    one.check_nothing_over()
    return "went through"


def reader_leaves(one: Round) -> str:
    """What the command prints goes into a pipe or a terminal whose other end is closed after some bytes."""
    words, kind = one.begin(), one.rng.choice(("pipe", "terminal", "controlling terminal"))
    ours, theirs = os.pipe() if kind == "pipe" else pty.openpty()

    def connect() -> None:
        os.close(ours)
        if kind == "controlling terminal":
            os.setsid()
            fcntl.ioctl(theirs, 0x540E if sys.platform == "linux" else 0x20007461, 0)  # TIOCSCTTY
        for number in (1, 2):
            os.dup2(theirs, number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))

    size = one.rng.choice((0, 1, 100, 300, 1000))
    one.note(f"a {kind} that is closed after {size} bytes")
    command = Command(one.folder, *words, prepare=connect)
    os.close(theirs)
    with contextlib.suppress(OSError):  # at the end of what a terminal is told
        while size > 0 and (got := os.read(ours, size)):
            size -= len(got)
    os.close(ours)
    signals = (signal.SIGHUP,) if kind == "controlling terminal" else ()
    ended = one.check(command.end(), words, signals=signals)
    assert ended.code != 2
    if ended.code == 0:
        one.check_whole()
    one.go_on()
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
