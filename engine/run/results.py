"""What a run says of itself at its end: `summary.json` and the picture of its loss. Imports no torch."""

import io
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.disk import replace_file
from data.errors import UserError
from data.json_files import read_json
from data.store import Store
from engine.training.metrics import Metrics
from engine.training.progress import Progress

if TYPE_CHECKING:
    import torch


def describe(model: str, params: int, progress: Progress) -> dict[str, Any]:
    """The entries of `summary.json` for a run of this family; `params`: its parameters, or counts."""
    return {
        "model": model,
        "params": params,
        "steps": progress.step,
        "tokens": progress.tokens,
        "seconds": round(progress.seconds, 3),
        "train_loss": progress.train_loss,
        "val_loss": progress.best_val,
        "val_bits_per_char": progress.best_bits,
        "val_tokens": progress.val_tokens,
        "best_step": progress.best_step,
        "tokens_per_second": round(progress.tokens / progress.seconds) if progress.seconds else 0,
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }


def of_memory(device: "torch.device") -> dict[str, Any]:
    """The entry of `summary.json` for the most memory that this process has held on a CUDA device, in MB (10^6 bytes),
    as torch's allocator counts it."""
    if device.type != "cuda":
        return {}
    import torch

    return {"gpu_peak_memory_mb": round(torch.cuda.max_memory_allocated(device) / 1e6, 1)}


def by_the_byte(store: Store, bits: float | None) -> dict[str, Any]:
    """The entry of `summary.json` for bits per byte, of a text whose bits are counted so; else none. There
    `val_bits_per_char` is the same number."""
    return {"val_bits_per_byte": bits} if store.unit == "byte" else {}


def peak_memory_mb() -> float:
    """The most memory this process has held, in MB (10^6 bytes)."""
    try:
        import resource
    except ImportError:  # Windows has no such call
        return 0.0
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


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
