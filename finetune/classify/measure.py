"""How well a classifier does: accuracy, macro-F1, precision and recall by class, the confusion matrix; or, where texts
have several labels, micro-F1 and subset accuracy for the first and the last."""

from pathlib import Path
from typing import Any

import numpy as np

from engine.run.results import write_picture
from finetune.classify.examples import Labelled
from finetune.classify.multi_label import measure_sets

MAX_SHOWN = 60  # classes of a confusion matrix that are named and counted in its picture


HEADLINES = {
    "accuracy": "accuracy", "micro_f1": "micro-F1", "macro_f1": "macro-F1", "subset_accuracy": "subset accuracy",
}  # fmt: skip


def measure_side(p: np.ndarray, labelled: Labelled, side: str, thresholds: np.ndarray | None) -> dict[str, Any]:
    """What `summary.json` says of the probabilities `p` (examples, classes) of a side. `thresholds`: of texts with
    several labels, see `multi_label`."""
    if thresholds is not None:
        return measure_sets(p, labelled.has_label(side), labelled.labels, thresholds)
    return measure(p.argmax(1), labelled.numbers(side), labelled.labels)


def headlines(found: dict[str, Any]) -> dict[str, float]:
    """Those of the measures that say how well it does in all."""
    return {key: found[key] for key in HEADLINES if key in found}


def measure(predicted: np.ndarray, actual: np.ndarray, labels: list[str]) -> dict[str, Any]:
    """What `summary.json` says of predictions: `predicted` and `actual` are class numbers, (examples,) each.

    A class without a prediction has precision 0; one without an example does not count in the macro mean."""
    n = len(labels)
    confusion = np.zeros((n, n), np.int64)  # rows: actual, columns: predicted
    np.add.at(confusion, (actual, predicted), 1)
    right, said, there = np.diag(confusion), confusion.sum(0), confusion.sum(1)
    precision, recall = right / np.maximum(said, 1), right / np.maximum(there, 1)
    f1 = 2 * right / np.maximum(said + there, 1)
    return {
        "accuracy": float(right.sum() / max(1, len(actual))),
        "macro_f1": float(f1[there > 0].mean()) if len(actual) else 0.0,
        "classes": {
            label: {"precision": float(p), "recall": float(r), "f1": float(f), "examples": int(t)}
            for label, p, r, f, t in zip(labels, precision, recall, f1, there, strict=True)
        },
        "confusion": confusion.tolist(),
    }


def table(found: dict[str, Any]) -> str:
    """Precision, recall and F1 by class, and the confusion matrix or the thresholds, as text."""
    labels = list(found["classes"])
    width = max(map(len, labels))
    is_multi = "confusion" not in found
    lines = [f"{'':{width}}  precision  recall      F1  examples" + "  threshold" * is_multi]
    for label, c in found["classes"].items():
        line = f"{label:{width}}  {c['precision']:9.3f}  {c['recall']:6.3f}  {c['f1']:6.3f}  {c['examples']:8d}"
        lines.append(line + (f"  {c['threshold']:9.3f}" if is_multi else ""))
    if is_multi or len(labels) > MAX_SHOWN:
        return "\n".join(lines)
    cell = max(3, len(str(max(map(max, found["confusion"])))))
    short = [label[:cell] for label in labels]
    lines += ["", f"{'actual / predicted':{width}}  " + " ".join(f"{name:>{cell}}" for name in short)]
    for label, row in zip(labels, found["confusion"], strict=True):
        lines.append(f"{label:{width}}  " + " ".join(f"{count or '.':>{cell}}" for count in row))
    return "\n".join(lines)


def draw_confusion(found: dict[str, Any], path: Path) -> None:
    """The confusion matrix as a picture: each row's share, with the counts in it where there is room."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    labels, counts = list(found["classes"]), np.array(found["confusion"])
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = 2.6 + 0.38 * min(len(labels), MAX_SHOWN)
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    shown = [label.encode("ascii", "replace").decode().replace("$", r"\$")[:20] for label in labels]
    if len(labels) <= MAX_SHOWN:
        axes.set_xticks(range(len(labels)), shown, rotation=90)
        axes.set_yticks(range(len(labels)), shown)
    axes.set(xlabel="predicted", ylabel="actual")
    axes.set_title(f"accuracy {found['accuracy']:.3f}, macro-F1 {found['macro_f1']:.3f}", fontsize=10)
    for row, column in np.argwhere(counts) if len(labels) <= MAX_SHOWN else ():
        color = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=7, color=color)
    write_picture(path, figure)
