"""The kernels of one kind beside torch's, of every size: the tasks of kernels/bench.py; python -m bench.gpu.speeds."""

import sys

from torch._functorch import config

from bench.gpu.jobs import job_parser
from bench.gpu.machine import device, synchronize
from bench.gpu.rows import Row, append, ceiling, read
from kernels.bench import measure
from kernels.bench_tasks import TASKS, Task


def main() -> int:
    parser = job_parser("speeds", __doc__)
    parser.add_argument("kinds", nargs="+", choices=TASKS, metavar="KIND", help=", ".join(TASKS))
    args = parser.parse_args()
    config.donated_buffer = False  # a backward is timed again and again over one forward
    known = read(args.rows)
    ceilings = {unit: ceiling(known, unit) for unit in ("GB/s", "TFLOP/s")}

    def failed(task: Task, who: str, error: Exception) -> None:
        synchronize()  # raises where the GPU itself has failed: this process can measure nothing any more
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        outcome = "failed" if who == "ours" else "left out"
        append(args.rows, Row("kernels", task.operation, task.shape, who, outcome=outcome, note=reason[:300]))

    tasks = (task for kind in args.kinds for task in TASKS[kind](device().type, args.smoke))
    for number, task in enumerate(tasks):
        if number < args.skip:
            continue
        print(f"at: {number} {task.operation} {task.shape}", flush=True)
        for row in measure(task, {unit: value or float("inf") for unit, value in ceilings.items()}, args.smoke, failed):
            what = f"{row.operation}, {row.direction}"
            share = row.share if ceilings[row.unit] else None
            append(
                args.rows, Row("kernels", what, row.shape, row.who, row.ms, row.rate, row.unit, share, row.target)
            )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
