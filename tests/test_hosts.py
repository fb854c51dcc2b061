"""A rehearsal of two hosts: network namespaces with an address each, joined by a wire, and torchrun's agent in each."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.helpers import facts, left, ok, quick

LONGEST = 240  # seconds that a busy machine may take for one state to come
ADDRESSES = {"a": "10.77.19.1", "b": "10.77.19.2"}  # of namespaces of their own: nobody else sees them
# A host that does not answer for 3 seconds is given up, and after 3 more nobody is waited for.
MEETING = "last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=3"
TORCHRUN = [
    *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "5"),
    *("--rdzv-backend", "c10d", "--rdzv-id", "rehearsal", "--rdzv-endpoint", f"{ADDRESSES['a']}:29400"),
]
ENVIRONMENT = {"GLOO_SOCKET_IFNAME": "wire", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "PYTHONPATH": str(ROOT)}


def ip(*words: str) -> str:
    """What `ip`, of iproute2, prints. Raises CalledProcessError, with what it says."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=60).stdout


class Hosts:
    """Hosts a and b, at work in `folder`, which is the disk that they share. Inside the context they are there; at its
    end what still runs in them is killed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.namespaces = {host: f"charlm-{os.getpid()}-{host}" for host in ADDRESSES}
        self.agents: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> "Hosts":
        try:
            self._connect()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _connect(self) -> None:
        for namespace in self.namespaces.values():
            ip("netns", "add", namespace)
        a, b = self.namespaces.values()
        ip("-n", a, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", b)
        for host, namespace in self.namespaces.items():
            ip("-n", namespace, "address", "add", f"{ADDRESSES[host]}/24", "dev", "wire")
            for interface in ("wire", "lo"):
                ip("-n", namespace, "link", "set", interface, "up")

    def __exit__(self, *_) -> None:
        for host, namespace in self.namespaces.items():
            with contextlib.suppress(subprocess.CalledProcessError):  # there is no such namespace
                self.kill(host)
                ip("netns", "delete", namespace)

    def start(self, host: str, *command) -> None:
        """Start the agent of a host, which trains."""
        own = ["--local-addr", ADDRESSES[host], "--rdzv-conf", f"is_host={int(host == 'a')},{MEETING}"]
        words = ["ip", "netns", "exec", self.namespaces[host], *TORCHRUN, *own, str(ROOT / "train.py")]
        how = {"cwd": self.folder, "env": os.environ | ENVIRONMENT}
        with self._log(host).open("a") as log:
            self.agents[host] = subprocess.Popen([*words, *map(str, command)], stdout=log, stderr=log, **how)

    def kill(self, host: str) -> None:
        """Kill the agent and the processes of a host at once; return when they have ended."""
        agent = self.agents.pop(host, None)
        deadline = time.monotonic() + LONGEST
        while alive := self._pids(host):
            assert time.monotonic() < deadline, f"processes {alive} do not end"
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        if agent:
            agent.wait()

    def workers(self, host: str) -> dict[int, int]:
        """The processes of the training on a host: how many train together, by their ids."""
        found = {}
        for pid in self._pids(host):
            with contextlib.suppress(OSError):  # it has just ended
                words = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
                env = dict(word.split("=", 1) for word in words if "=" in word)
                if "RANK" in env:
                    found[pid] = int(env["WORLD_SIZE"])
        return found

    def wait_for(self, state: Callable[[], bool]) -> None:
        """Return when `state()` is true. Nothing may end before."""
        deadline = time.monotonic() + LONGEST
        while not state():
            ended = [host for host, agent in self.agents.items() if agent.poll() is not None]
            assert not ended and time.monotonic() < deadline, f"{ended} ended\n{self.said()}"
            time.sleep(0.02)

    def wait_together(self) -> None:
        """Return when the processes of both hosts train together. One that trains alone is held until it is told to
        stop: however fast it is, it does not end before the other host is there."""
        held = set()

        def are_together() -> bool:
            workers = [self.workers(host) for host in self.namespaces]
            for pid in [pid for of_host in workers for pid, world in of_host.items() if world == 1 and pid not in held]:
                held.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    self.wait_for(lambda pid=pid: is_told_to_stop(pid))
                    os.kill(pid, signal.SIGCONT)
            return all(list(of_host.values()) == [2] for of_host in workers)

        self.wait_for(are_together)

    def wait_for_the_end(self) -> None:
        """Return when both agents have ended well."""
        for agent in self.agents.values():
            assert agent.wait(LONGEST) == 0, self.said()

    def said(self) -> str:
        return "".join(f"host {host}:\n{self._log(host).read_text()}" for host in self.agents)

    def _log(self, host: str) -> Path:
        return self.folder / f"{host}.log"

    def _pids(self, host: str) -> list[int]:
        return [int(pid) for pid in ip("netns", "pids", self.namespaces[host]).split()]


def is_told_to_stop(pid: int) -> bool:
    """Whether SIGTERM waits for a process that is held."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True  # it has ended
    pending = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(signals >> (signal.SIGTERM - 1) & 1 for signals in pending)


def why_not(folder: Path) -> str | None:
    """Why this machine cannot play two hosts, or None. It is tried, not guessed."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    if not shutil.which("ip"):
        return "there is no `ip` (of the package iproute2) on the path"
    if os.geteuid():
        return "network namespaces take root"
    try:
        with Hosts(folder):
            return None
    except subprocess.CalledProcessError as error:
        return f"`{' '.join(error.cmd)}` fails here: {error.stderr.strip()}"


@pytest.fixture
def hosts(tmp_path):
    """Two hosts."""
    if reason := why_not(tmp_path):
        pytest.skip(reason)
    with Hosts(tmp_path) as there:
        yield there


def saved_step() -> int:
    """The step of `last/`, -1 before the first."""
    with contextlib.suppress(FileNotFoundError):  # it is just being replaced
        return facts(Path("run"))["step"]
    return -1


@pytest.mark.exhaustive  # torchrun and what it starts take half a minute of CPU
def test_a_host_dies_and_comes_back_and_nothing_shows(cli, hosts, text):
    """The other one goes on alone from `last/`, then both, to the bits of one process that nobody touched."""
    words = quick("transformer", data="text.txt", dropout=0.1, grad_accum=2, steps=400, eval_interval=20)
    line = [*words, "--out", "run", "--go-on"]
    for host in "ba":
        hosts.start(host, *line)
    hosts.wait_together()
    hosts.wait_for(lambda: saved_step() >= 20)
    hosts.kill("b")

    hosts.wait_for(lambda: list(hosts.workers("a").values()) == [1])
    step = saved_step()
    hosts.wait_for(lambda: saved_step() > step + 20)
    hosts.start("b", *line)
    hosts.wait_together()
    assert saved_step() < 400
    hosts.wait_for_the_end()

    ok(cli("train.py", *words, "--out", "alone"))
    assert left(Path("run")) == left(Path("alone"))
