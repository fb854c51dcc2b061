"""Everything that a bare machine with a GPU can tell of this project, in one command.

    python -m bench.gpu --out DIR [--part tests|kernels|training|memory|decoding|processes] [--minutes M] [--smoke]

The parts, in this order: the kernels' tests compiled, each small shape in a process of its own; every kernel beside
torch's; whole training steps and the baby GPT's run; the memory of steps; decoding; where there are several GPUs, a
training on all of them. A row of DIR/gpu.csv for each measurement, as it comes; DIR/gpu.md is written anew all the
time, and says first what failed or was left out. Needs torch, triton, numpy, pytest, hypothesis, tqdm, tyro and
safetensors, no network; pictures where matplotlib is installed.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from bench import peers
from bench.gpu import jobs, page, pictures, plan, rows
from data.errors import UserError, outlive_readers, run_command

PAGE_EVERY = 10.0  # seconds


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags; exit code 2, with a message, for mistaken ones."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=(__doc__ or "").splitlines()[0])
    shares = ", ".join(f"{part} {minutes:.0f}" for part, minutes in plan.MINUTES.items())
    parser.add_argument("--out", type=Path, required=True, help="the folder for gpu.md, gpu.csv, two PNGs and the logs")
    parser.add_argument("--part", action="append", choices=plan.MINUTES, help="run this part alone; may be repeated")
    parser.add_argument(
        "--minutes", type=_minutes, default=sum(plan.MINUTES.values()),
        help=f"for all the parts together (default %(default).0f). They are divided in the ratio {shares}; what a part "
        "leaves goes to those after it",
    )  # fmt: skip
    parser.add_argument("--smoke", action="store_true", help="toy sizes, on any machine: does it run?")
    parser.add_argument("--nanogpt", type=peers.checkout("model.py"), help="a checkout of nanoGPT to decode beside")
    args = parser.parse_args(argv)
    args.parts = [part for part in plan.MINUTES if args.part is None or part in args.part]
    return args


def _minutes(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = 0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{word}' is no number above 0")
    return value


def check_machine(smoke: bool) -> None:
    """Raise UserError where there is nothing to measure."""
    from kernels.dispatch import HAS_TRITON, interpreting, why_not

    if not HAS_TRITON:
        raise UserError("triton is not installed (pip install triton; Linux only): there are no kernels to measure")
    if smoke:
        return
    if reason := why_not("cuda") if _has_gpu() else "torch sees no GPU":
        raise UserError(
            f"nothing to measure here: {reason}. Run it on a machine with an NVIDIA or AMD GPU, or add --smoke to try "
            "it at toy sizes"
        )
    if interpreting():
        raise UserError("TRITON_INTERPRET is set: times of the interpreter mean nothing; unset it")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def start(folder: Path, parts: list[str], about: list[rows.Row]) -> None:
    """Begin gpu.csv: rows of other parts stay. UserError where they are of another card, version or commit."""
    path = folder / "gpu.csv"
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"--out {folder} is no folder, or lies in none; name a new one") from error
    others = [row for row in rows.read(path) if row.part not in parts]
    kept = [row for row in others if row.part != "machine"]
    known = {row.case: row.note for row in others if row.what == "about" and kept}
    for row in about:
        if row.case != "date" and known.get(row.case, row.note) != row.note:
            raise UserError(
                f"{path} was measured with another {row.case} ({known[row.case]}; now {row.note}): figures would not "
                "compare. Name another folder with --out"
            )
    rows.begin(path, [*([row for row in others if row.what == "about"] if kept else about), *kept])


def run_parts(args: argparse.Namespace, place: jobs.Place, show: Callable[[], None]) -> None:
    """Run the parts one after the other, each until its time is over."""
    toy = ("--smoke",) if args.smoke else ()
    end = time.monotonic() + 60 * args.minutes
    ceilings = jobs.Job("machine", "ceilings", "", "bench.gpu.machine", toy)
    jobs.run([ceilings], place, end, watch=show)
    for i, part in enumerate(args.parts):
        left = sum(plan.MINUTES[each] for each in args.parts[i:])
        seconds = max(0.0, end - time.monotonic()) * plan.MINUTES[part] / left
        print(f"{part}: at most {seconds / 60:.1f} minutes", flush=True)
        until = time.monotonic() + seconds
        stages, impossible = plan.stages(part, args.smoke, args.nanogpt)
        rows.append(place.rows, *impossible)
        for stage in stages:
            now = time.monotonic()
            jobs.run(stage.jobs, place, now + max(0.0, until - now) * stage.share, stage.at_once, show)
        go_on(lambda: pictures.draw(args.out))
        go_on(lambda: page.write(args.out))


def go_on(show: Callable[[], None]) -> None:
    """Show what was measured. A mistake in that is printed, and costs no measurement that is still to come."""
    try:
        show()
    except Exception:
        traceback.print_exc()


def main() -> int:
    args = parse(sys.argv[1:])
    outlive_readers()
    check_machine(args.smoke)
    from bench.gpu.machine import about  # here torch is loaded

    start(args.out, args.parts, about(args.smoke))
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # the jobs end too, and the page is written
    scratch = Path(tempfile.mkdtemp(prefix="charlm-gpu-"))
    env = os.environ | {"TMPDIR": str(scratch)}
    if args.smoke:
        env |= {"TORCH_COMPILE_DISABLE": "1"} | ({} if _has_gpu() else {"TRITON_INTERPRET": "1"})
    place = jobs.Place((args.out / "gpu.csv").resolve(), (args.out / "logs").resolve(), env)
    written = 0.0

    def show() -> None:
        nonlocal written
        if time.monotonic() - written > PAGE_EVERY:
            written = time.monotonic()
            go_on(lambda: page.write(args.out))

    try:
        run_parts(args, place, show)
    finally:
        page.write(args.out)
        shutil.rmtree(scratch, ignore_errors=True)
    found = rows.read(place.rows)
    print("\n".join([*page.bad_news(found), f"written: {args.out / 'gpu.md'}"]))
    return int(any(row.outcome in rows.BAD for row in found if row.part == "tests" and row.part in args.parts))


if __name__ == "__main__":
    sys.exit(run_command(main))
