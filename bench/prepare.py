"""The time to prepare a text with one process and with two, by turns: `python -m bench.prepare --megabytes 1000`.

The text is Shakespeare (of `$CHARLM_DATA`) and the sources of Python's standard library, again and again. Seconds of
the clock mean something only where nothing else runs; the CPU-seconds of all processes are printed beside them.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from data.sources import resolve

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.prepare", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--tokenizers", nargs="+", default=["gpt2", "char"])
    parser.add_argument("--kinds", nargs="+", default=["stream"])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--more", nargs=argparse.REMAINDER, default=[], help="further flags of data.prepare")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        write_text(text, options.megabytes * 10**6)
        for tokenizer in options.tokenizers:
            for kind in options.kinds:
                best: dict[int, float] = {}
                for _ in range(options.turns):
                    for workers in options.workers:
                        wall, cpu, idle = prepare(text, tokenizer, kind, workers, options.more)
                        best[workers] = min(wall, best.get(workers, wall))
                        print(f"{tokenizer} {kind}, workers {workers}: {wall:.1f} s, CPU {cpu:.1f} s, idle {idle:.0%}")
                first = best[options.workers[0]]
                ratios = ", ".join(f"{workers}: {seconds / first:.2f}" for workers, seconds in best.items())
                print(f"{tokenizer} {kind}, best of the turns beside {options.workers[0]}: {ratios}", flush=True)


def write_text(path: Path, size: int) -> None:
    """Write `size` bytes of text, cut at the end of a character."""
    files = [*resolve("shakespeare").files, *resolve("stdlib").files]
    with open(path, "wb") as out:
        while out.tell() < size:
            for file in files:
                content = file.read_bytes()
                try:
                    text = content.decode("utf-8")
                except UnicodeDecodeError:
                    continue
                if "\0" not in text:
                    out.write(content[: size - out.tell()].decode("utf-8", "ignore").encode())
                if size - out.tell() < 4:
                    return


def prepare(text: Path, tokenizer: str, kind: str, workers: int, more: list[str]) -> tuple[float, float, float]:
    """Seconds of the clock, CPU-seconds of all processes, and the share of the processors' time that they left, in a
    cache of its own."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "data.prepare", "--data", str(text), "--tokenizer", tokenizer]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        subprocess.run(
            [*command, "--kind", kind, "--workers", str(workers), *more],
            env=os.environ | {"CHARLM_CACHE": cache},
            check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wall = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return wall, cpu, 1 - cpu / wall / min(workers, os.cpu_count() or 1)


if __name__ == "__main__":
    main()
