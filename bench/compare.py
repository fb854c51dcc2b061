"""Every family on the same text for the same time: a table, and a picture of the loss against time.

    CHARLM_DATA=DIR python -m bench.compare --data names32k --seconds 60 [--models mlp gru ...] [--out FOLDER]

Each family has train.py's defaults for this text. Short runs measure how many of its steps fit into the time; a run
that misses the time by more than a tenth, since the speed of a machine changes, is repeated, twice at most. The n-gram
model takes the time of counting. "best" is the Transformer of bench.speedrun, mixed with counts. Writes table.md and
loss.png into the folder (compare-DATA).
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench import decoding
from bench.peers import ROOT, output
from bench.speedrun import BEST_OF_LINES, BEST_OF_STREAM
from data.sources import DATA_SETS
from engine.run.load import Run, load_run

FAMILIES = ("bigram", "ngram", "mlp", "cnn", "rnn", "lstm", "gru", "transformer")
BEST = "best"
PROBE_STEPS, EVALUATIONS, DECODED = 60, 12, 300
TRIES, TOLERANCE = 3, 0.1  # the latter as a part of the time asked for
HEAD = (
    "| family | parameters | steps | seconds | tokens/s | train loss | validation loss | bits a character "
    "| characters/s written | a sample |\n|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass
class Result:
    """The result of one family."""

    name: str
    summary: dict
    curve: list[tuple[float, float]]  # seconds of training, validation loss
    rate: float  # characters a second, one stream
    sample: str

    def row(self) -> str:
        """A line of the table."""
        s = self.summary
        train = "" if s["train_loss"] is None else f"{s['train_loss']:.3f}"
        return (
            f"| {self.name} | {s['params']:,} | {s['steps']:,} | {s['seconds']:.1f} | {s['tokens_per_second']:,} | "
            f"{train} | {s['val_loss']:.3f} | {s['val_bits_per_char']:.3f} | {self.rate:,.0f} | {self.sample} |"
        )


def compete(name: str, data: str, seconds: float) -> Result:
    """Train one family for as many steps as fit into `seconds`."""
    flags = [*_flags(name, data), "--data", data]
    if name == "ngram":
        return _measure(name, flags)
    size, tries = seconds / _step_seconds(flags, seconds / 10), []
    for _ in range(TRIES):
        size = max(EVALUATIONS, round(size))
        tries.append(_measure(name, [*flags, *_steps(size, EVALUATIONS)]))
        ratio = tries[-1].summary["seconds"] / seconds
        if abs(ratio - 1) <= TOLERANCE:
            break
        size /= ratio
    return min(tries, key=lambda result: abs(result.summary["seconds"] - seconds))


def _measure(name: str, flags: list[str]) -> Result:
    """Train a model, and time its decoding."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run")
        lines = _train(flags, path)
        run = load_run(path)
        decoding.ours(run.model, DECODED, 1)  # warms up
        rate = statistics.median(decoding.ours(run.model, DECODED, 1) for _ in range(3))
        curve = [(line["seconds"], line["val_loss"]) for line in lines]
        return Result(name, json.loads((path / "summary.json").read_text()), curve, rate, _sample(run))


def _flags(name: str, data: str) -> list[str]:
    if name != BEST:
        return ["--model", name]
    return BEST_OF_LINES if DATA_SETS.get(data) == "lines" else BEST_OF_STREAM


def _step_seconds(flags: list[str], seconds: float) -> float:
    """Seconds of a step, measured over a run of about `seconds`, or over PROBE_STEPS where that is shorter."""
    step = _probe(flags, PROBE_STEPS)
    longer = int(seconds / step)
    return _probe(flags, longer) if longer > 2 * PROBE_STEPS else step


def _probe(flags: list[str], steps: int) -> float:
    """Seconds of a step, without the first steps, which are slower."""
    with tempfile.TemporaryDirectory() as folder:
        _, first, *_, last = _train([*flags, *_steps(steps, 6), "--eval-tokens", "10000"], Path(folder, "run"))
    return (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])


def _steps(steps: int, evaluations: int) -> list[str]:
    return ["--steps", str(steps), "--eval-interval", str(max(1, steps // evaluations))]


def _train(flags: list[str], path: Path) -> list[dict]:
    """Train a run; returns the lines of its metrics."""
    command = [sys.executable, str(ROOT / "train.py"), *flags, "--out", str(path)]
    output(command)
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def _sample(run: Run) -> str:
    """Some names, or some words of a stream, as a cell of the table."""
    if run.is_lines:
        text = ", ".join(run.generate(num=4, max_new_tokens=40, seed=0))
    else:
        text = " ".join(run.generate(max_new_tokens=60, seed=0)[0].split())
    return text.replace("|", "\\|")


def draw(results: list[Result], title: str, path: Path) -> None:
    """Draw the validation loss against seconds of training, for counts as a horizontal line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    losses = sorted(result.summary["val_loss"] for result in results)
    top = losses[-2:][0] + 0.25  # one family that is far worse would flatten all other curves
    for result in results:
        label = f"{result.name}  {result.summary['val_loss']:.3f}" + ", above" * (result.summary["val_loss"] > top)
        if len(result.curve) == 1:
            axes.axhline(result.curve[0][1], color="#555555", ls=":", label=label)
        else:
            axes.plot(*zip(*result.curve[1:], strict=True), ".-", label=label)  # without the untrained model
    axes.set(xlabel="seconds of training", ylabel="validation loss (nats a token)", title=title)
    axes.set_ylim(losses[0] - 0.03, top)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, ncols=2, fontsize=9)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="names", help="as train.py's")
    parser.add_argument("--seconds", type=float, default=60, help="of training for each family")
    parser.add_argument("--models", nargs="+", default=[*FAMILIES, BEST], choices=[*FAMILIES, BEST])
    parser.add_argument("--out", type=Path, help="the folder for table.md and loss.png (default: compare-DATA)")
    args = parser.parse_args()
    if not args.seconds > 0:
        parser.error(f"--seconds is {args.seconds}; it has to be above 0")
    out = args.out or Path(f"compare-{Path(args.data).stem}")
    out.mkdir(parents=True, exist_ok=True)
    started, results = time.perf_counter(), []
    print(HEAD, flush=True)
    for name in args.models:
        results.append(compete(name, args.data, args.seconds))
        print(results[-1].row(), flush=True)
    (out / "table.md").write_text("\n".join([HEAD, *(result.row() for result in results)]) + "\n", "utf-8")
    draw(results, f"{args.data}, {args.seconds:g} s of training each", out / "loss.png")
    print(f"\n{out / 'table.md'}, {out / 'loss.png'}; {time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
