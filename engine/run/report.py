"""The report at the end of a run: samples, marked where the data has them, the summary, and the picture of the loss."""

import io
import json
from pathlib import Path
from typing import Any

import torch

from data.disk import replace_file
from data.errors import UserError
from data.json_files import read_json
from data.store import Store
from data.terminal import show
from engine import runtime
from engine.config.sections import Config
from engine.run.load import Run
from engine.run.novelty import KnownLines, longest_copied
from engine.run.weights import load_best
from engine.run.writing import until_end
from engine.training.metrics import Metrics
from engine.training.trainer import Progress
from makemore.base import LanguageModel, count_parameters

N_LINES, N_DOCUMENTS = 20, 5
N_CHARACTERS = 500
SAMPLE_SEED = 42


def finish(
    model: LanguageModel,
    progress: Progress,
    config: Config,
    store: Store,
    device: torch.device,
    path: Path,
    metrics: Metrics,
) -> None:
    """Write samples of the best weights, the summary and the picture of the loss."""
    facts = load_best(model, path, progress.best_step)
    best = Run(path, model.eval(), store.tokenizer, config, store.meta["start"], facts, device)
    text, copied = samples(best, store)
    replace_file(path / "samples.txt", (text + "\n").encode("utf-8"))
    summary = describe(model, progress, config) | copied
    write_summary(path, summary)
    draw_loss(metrics, path)
    show(f"\n{text}\n")
    print(
        f"val loss {summary['val_loss']:.4f} ({summary['val_bits_per_char']:.3f} bits a character) at step "
        f"{summary['best_step']}; {summary['seconds']:.1f} s of training, loss curve in {path / 'loss.png'}"
    )


def describe(model: LanguageModel, progress: Progress, config: Config) -> dict[str, Any]:
    """The entries of `summary.json` for a run."""
    return {
        "model": config.model,
        "params": count_parameters(model),
        "steps": progress.step,
        "tokens": progress.tokens,
        "seconds": round(progress.seconds, 3),
        "train_loss": progress.train_loss,
        "val_loss": progress.best_val,
        "val_bits_per_char": progress.best_bits,
        "val_tokens": progress.val_tokens,
        "best_step": progress.best_step,
        "tokens_per_second": round(progress.tokens / progress.seconds) if progress.seconds else 0,
        "peak_memory_mb": round(runtime.peak_memory_mb(), 1),
    }


def samples(run: Run, store: Store) -> tuple[str, dict[str, int]]:
    """Samples of the model as text, and their entries of the summary: 20 lines or 5 documents, each marked 'in train',
    'in val' or 'new'; of a stream 500 tokens, and the length of the longest substring copied from the training text."""
    if not run.is_lines:
        (sample,) = run.samples(max_new_tokens=N_CHARACTERS, seed=SAMPLE_SEED)
        return sample.text.strip("\n"), {"longest_copied": longest_copied(sample.new, store)}
    number = N_DOCUMENTS if run.is_documents else N_LINES
    rows = torch.stack(list(run.generate_ids(num=number, seed=SAMPLE_SEED)), 1).tolist()
    sides = {"in train": KnownLines(store.train), "in val": KnownLines(store.val)}
    lines = []
    for row in (until_end(row, run.tokenizer.special.eos) for row in rows):
        mark = next((name for name, side in sides.items() if side.has(row)), "new")
        text = run.tokenizer.decode(row)
        lines.append(f"--- {mark}\n{text}\n" if run.is_documents else f"{text:<24} {mark}")
    return "\n".join(lines).rstrip("\n"), {}


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Replace `summary.json`."""
    replace_file(folder / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())


def read_summary(folder: Path) -> dict[str, Any]:
    """The content of `summary.json`; empty where a run has not ended."""
    try:
        return read_json(folder / "summary.json", dict)
    except UserError:
        return {}


def draw_loss(metrics: Metrics, folder: Path) -> None:
    """Draw training and validation loss over the steps into `loss.png`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not (lines := metrics.read()):
        return
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    trained = [line for line in lines if line["train_loss"] is not None]
    axes.plot([x["step"] for x in trained], [x["train_loss"] for x in trained], ".-", color="#9a9a9a", label="training")
    axes.plot(
        [x["step"] for x in lines], [x["val_loss"] for x in lines], "o-", color="#0b6e99", label="validation", ms=4
    )
    best = min(lines, key=lambda line: line["val_loss"])
    axes.annotate(
        f"best {best['val_loss']:.4f} at step {best['step']}", (best["step"], best["val_loss"]), (0, 22),
        textcoords="offset points", ha="right", color="#0b6e99", arrowprops={"arrowstyle": "-", "color": "#0b6e99"},
    )  # fmt: skip
    axes.set(xlabel="step", ylabel="loss (nats a token)")
    # The name is not mathematics, and the font of the picture has ASCII alone for sure.
    axes.set_title(folder.name.encode("ascii", "replace").decode(), parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    write_picture(folder / "loss.png", figure)


def write_picture(path: Path, figure: Any) -> None:
    """Replace the PNG `path` by a `figure` of matplotlib."""
    content = io.BytesIO()
    figure.savefig(content, dpi=120, format="png")
    replace_file(path, content.getvalue())
