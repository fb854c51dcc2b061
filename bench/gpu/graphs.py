"""Training steps replayed as CUDA graphs, beside the same launched one by one: python -m bench.gpu.graphs MODEL ...

Speed, each with torch.compile and without; and how far the losses of the first steps are apart, of which the last ones
are replayed. Dropout is to be the same, too.
"""

import sys
import tempfile
from pathlib import Path

import torch

from bench.gpu.jobs import job_parser, numbered
from bench.gpu.machine import device
from bench.gpu.plan import MODELS
from bench.gpu.rows import Row, append
from bench.gpu.training import Setting, time_steps, trainer_of
from engine.training import graphed
from engine.training.trainer import Trainer

STEPS = 30
WAYS = {"off": "launched", "on": "replayed"}


def measure(model: str, compiles: str, smoke: bool) -> list[Row]:
    """The rows of a model, with `--compile` as `compiles` says."""
    rows, plain = [], list[float]()
    for flag, way in WAYS.items():
        case = f"--compile {compiles}, {way}"
        if flag == "on" and not graphed.has_graphs(device()):
            note = "only a GPU has graphs to capture a step in"
            rows.append(Row("training", f"{model}, a step in graphs", case, outcome="left out", note=note))
            continue
        torch.compiler.reset()
        with tempfile.TemporaryDirectory() as folder:
            setting = Setting(compiles, "torch", "torch")
            trainer, _ = trainer_of(model, setting, smoke, Path(folder), "--cuda-graph", flag)
            losses = losses_of(trainer, graphed.WARM_UP + 2 if smoke else STEPS)
            times = time_steps(trainer, smoke)
        plain = plain or losses
        apart = max(abs(loss - other) for loss, other in zip(losses, plain, strict=True))
        note = f"losses of {len(losses)} steps at most {apart:.1e} from those launched" if flag == "on" else ""
        speed = 1000 * times.tokens / times.ms
        what = f"{model}, a step in graphs"
        rows.append(Row("training", what, case, ms=times.ms, value=speed, unit="tokens/s", note=note))
    return rows


def losses_of(trainer: Trainer, steps: int) -> list[float]:
    """The mean loss of each of the next steps, in nats a token."""
    usual, trainer.losses.reads_every = trainer.losses.reads_every, 1
    found, progress = [], trainer.progress
    trainer.model.train()
    with trainer.feed:
        for _ in range(steps):
            nll_sum, nll_tokens = progress.nll_sum, progress.nll_tokens
            trainer.step()
            found.append((progress.nll_sum - nll_sum) / (progress.nll_tokens - nll_tokens))
    trainer.losses.reads_every = usual
    return found


def main() -> int:
    parser = job_parser("graphs", __doc__)
    parser.add_argument("models", nargs="+", choices=MODELS, metavar="MODEL", help=", ".join(MODELS))
    args = parser.parse_args()
    cases = [(model, compiles) for model in args.models for compiles in (("off",) if args.smoke else ("off", "on"))]
    for number in numbered([f"{model} --compile {compiles}" for model, compiles in cases], args.skip):
        append(args.rows, *measure(*cases[number], args.smoke))
    return 0


if __name__ == "__main__":
    sys.exit(main())
