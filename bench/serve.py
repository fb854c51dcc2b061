"""What the server's batches gain, and whether it holds under load.

    python -m bench.serve RUN [--streams 32] [--length 200] [--rounds 3] [--soak MINUTES]

Tokens a second of the server's processor time: of one text after another, of `streams` at once with whole answers, and
streamed. Then 400 requests at once: all have to be answered or refused. With --soak it is kept full for so many
minutes by clients of which every other leaves in the middle of its answer: its memory, and what it draws once all have
gone. The server runs in a process of its own; the clients' time is not counted. Linux: from /proc.
"""

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from bench.peers import ROOT

MANY = 400  # requests at once


class Server:
    """`python -m serve RUN` on a free port."""

    def __init__(self, run: str, *flags: str):
        command = [sys.executable, "-m", "serve", run, "--port", "0", *flags]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env)
        assert self.process.stdout is not None  # it is a pipe
        found = re.search(r"http://[^:]+:(\d+)", self.process.stdout.readline())
        if found is None:
            raise SystemExit(f"{' '.join(command)} did not start")
        self.port = int(found[1])

    def seconds(self) -> float:
        """The processor time that it has taken."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def megabytes(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def end(self) -> float:
        """Seconds that it takes to end after SIGTERM."""
        started = time.perf_counter()
        self.process.terminate()
        self.process.wait(30)
        return time.perf_counter() - started


async def ask(port: int, length: int, seed: int, stream: bool = False, leave_after: float | None = None) -> int:
    """One text; the status of the answer. With `leave_after` the connection is closed after so many seconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps({"max_tokens": length, "seed": seed, "stream": stream, "temperature": 0.9}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
    try:
        answer = await asyncio.wait_for(reader.read(), leave_after)
        return int(answer.split(b" ", 2)[1])
    except TimeoutError:
        return 0
    finally:
        writer.close()


async def metrics(port: int) -> dict[str, float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    return {name: float(value) for name, value in re.findall(r"^(\w+)\{[^}]*\} ([\d.e+]+)$", text, re.M)}


async def rate(server: Server, streams: int, length: int, together: bool, stream: bool = False) -> float:
    """Tokens a second of processor time of `streams` texts, one after another or together."""
    drawn, started = (await metrics(server.port))["charlm_tokens_total"], server.seconds()
    asked = [ask(server.port, length, seed, stream) for seed in range(streams)]
    statuses = await asyncio.gather(*asked) if together else [await each for each in asked]
    if set(statuses) != {200}:
        raise SystemExit(f"not every text was answered: {dict(Counter(statuses))}")
    spent = server.seconds() - started
    return ((await metrics(server.port))["charlm_tokens_total"] - drawn) / spent


async def soak(server: Server, minutes: float, length: int, streams: int) -> None:
    """Keep the server full; every other client leaves at a random moment."""
    end, counts, draw = time.monotonic() + 60 * minutes, Counter[int](), random.Random(1)

    async def client() -> None:
        while time.monotonic() < end:
            leave_after = draw.uniform(0, 2) if draw.random() < 0.5 else None
            counts[await ask(server.port, draw.randint(1, length), draw.randrange(1000), True, leave_after)] += 1

    async def watch() -> None:
        for n in range(11):
            print(f"  {n / 10 * minutes:4.1f} minutes: {server.megabytes():,.0f} MB", flush=True)
            await asyncio.sleep(max(0.0, min(6 * minutes, end - time.monotonic())))

    await asyncio.gather(watch(), *[client() for _ in range(2 * streams)])
    await asyncio.sleep(1)
    left = await metrics(server.port)
    held = {name: value for name, value in left.items() if "drawing" in name or "waiting" in name}
    print(f"  answered, by status (0: the client left): {dict(counts)}; left at the end: {held}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.serve", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run directory")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--length", type=int, default=200, help="tokens of a text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--soak", type=float, default=0, metavar="MINUTES")
    args = parser.parse_args()
    server = Server(args.run, "--max-streams", str(args.streams))
    try:
        asyncio.run(rate(server, args.streams, args.length, True))  # warms up
        ways = {"one after another": (False, False), "whole answers": (True, False), "streamed": (True, True)}
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.rounds):
            for name, (together, stream) in ways.items():
                rates[name].append(asyncio.run(rate(server, args.streams, args.length, together, stream)))
        alone = rates["one after another"]
        for name, found in rates.items():
            ratio = statistics.median(a / b for a, b in zip(found, alone, strict=True))
            print(
                f"{name}: {statistics.median(found):,.0f} tokens a second of processor time ({ratio:.1f}x)", flush=True
            )

        async def all_at_once() -> list[int]:
            return await asyncio.gather(*[ask(server.port, 20, seed) for seed in range(MANY)])

        print(f"{MANY} requests at once, by status: {dict(Counter(asyncio.run(all_at_once())))}", flush=True)
        if args.soak:
            asyncio.run(soak(server, args.soak, args.length, args.streams))
    finally:
        print(f"ended {server.end():.2f} s after SIGTERM")


if __name__ == "__main__":
    main()
