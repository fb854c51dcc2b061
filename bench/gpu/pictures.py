"""The two pictures beside gpu.md: the kernels; training and decoding. Where matplotlib is installed."""

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.gpu.rows import Row, ceiling, read, select
from bench.speedrun import BABY_LOSS

PICTURES = ("kernels.png", "training.png")
COLUMNS = 3
TOO_HIGH = 20  # times the fastest: the machine's best would leave nothing to see of it
COLOURS = {
    "ours": "#b5372d", "triton": "#b5372d", "captured": "#b5372d", "torch eager": "#9a9a9a", "one by one": "#9a9a9a",
    "torch": "#0b6e99", "SDPA": "#0b6e99", "torch.compile": "#5a9367", "SDPA flash": "#c9932b", "SDPA cuDNN": "#6b4c9a",
    "nanoGPT": "#c9932b",
}  # fmt: skip


def why_no_pictures() -> str:
    """Why there are none."""
    if find_spec("matplotlib") is None:
        return "There are none: matplotlib is not installed (pip install matplotlib)."
    return "There are none yet: nothing was measured that they show."


def draw(folder: Path) -> None:
    """Draw what gpu.csv has; nothing where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        return
    rows = read(folder / "gpu.csv")
    about = "; ".join(row.note for row in rows if row.what == "about" and row.case in ("card", "date"))
    if kernels := select(rows, "kernels"):
        _kernels(kernels, rows, about, folder / PICTURES[0])
    if trained := select(rows, "training") + select(rows, "decoding"):
        _training(trained, about, folder / PICTURES[1])


def _figure(about: str, panels: int) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = -(-panels // COLUMNS)
    figure = Figure(figsize=(6 * min(panels, COLUMNS), 3.6 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(about, fontsize=10)
    every = [figure.add_subplot(lines, min(panels, COLUMNS), i + 1) for i in range(panels)]
    for axes in every:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, axis="y")
    return figure, every


def _kernels(kernels: list[Row], rows: list[Row], about: str, path: Path) -> None:
    """Rates over sizes, a panel for each operation and direction with more than one size, with the goals and this
    machine's best."""
    cases = {(row.what, row.unit): {each.case for each in kernels if each.what == row.what} for row in kernels}
    groups = [group for group, sizes in cases.items() if len(sizes) > 1] or list(cases)
    figure, panels = _figure(about, len(groups))
    for axes, (what, unit) in zip(panels, groups, strict=True):
        chosen = [row for row in kernels if row.what == what]
        sizes = list(dict.fromkeys(row.case for row in chosen))
        for who in dict.fromkeys(row.who for row in chosen):
            rates = {row.case: row.value for row in chosen if row.who == who}
            points = [rates.get(size) or math.nan for size in sizes]
            axes.plot(sizes, points, "o-", label=who, color=COLOURS.get(who), ms=4)
        goals = {row.case: row.target for row in chosen if row.target is not None}
        if goals:
            axes.plot(list(goals), list(goals.values()), "k_", ms=14, label="goal")
        best = ceiling(rows, unit)
        if best is not None and best < TOO_HIGH * max(row.value or 0 for row in chosen):
            axes.axhline(best, color="black", lw=0.8, ls=":", label="at best")
        axes.set_title(what, fontsize=10)
        axes.set_ylabel(unit)
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
        axes.tick_params("x", rotation=30, labelsize=7)
        axes.legend(fontsize=7, frameon=False)
    _save(figure, path)


def _training(rows: list[Row], about: str, path: Path) -> None:
    """Bars of a step's and a token's time, a panel for each model; the curves of the runs."""
    steps = [row for row in rows if row.what.endswith(", a step")]
    runs = [row for row in rows if row.what == "baby GPT, a run" and row.value is not None]
    decoded = [row for row in rows if row.part == "decoding"]
    models = list(dict.fromkeys(row.what for row in steps))
    decoders = list(dict.fromkeys(row.what for row in decoded))
    figure, panels = _figure(about, len(models) + bool(runs) + len(decoders))
    for model in models:
        chosen = [(_setting(row), row.ms or 0.0, row.who) for row in steps if row.what == model]
        _bars(panels.pop(0), chosen, model, "ms")
    if runs:
        _curves(panels.pop(0), runs)
    for model in decoders:
        bars = [(f"{row.who}, {row.case}", row.value or 0.0, row.who) for row in decoded if row.what == model]
        _bars(panels.pop(0), bars, f"{model}, decoding", "characters/s")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    with path.open("wb") as file:
        figure.savefig(file, dpi=110)


def _setting(row: Row) -> str:
    """The settings of a step, short."""
    compiled, attention, norm = row.case.split()[1::2]
    return f"attention {attention}, norms {norm}{', compiled' if compiled == 'on' else ''}"


def _bars(axes: Any, bars: list[tuple[str, float, str]], title: str, unit: str) -> None:
    names, values = [name for name, _, _ in bars], [value for _, value, _ in bars]
    drawn = axes.barh(names, values, color=[COLOURS.get(who, "#0b6e99") for _, _, who in bars])
    labels = [f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" for value in values]
    axes.bar_label(drawn, labels, fontsize=7, padding=2)
    axes.invert_yaxis()
    axes.grid(alpha=0.25, axis="x")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(unit)
    axes.tick_params("y", labelsize=7)


def _curves(axes: Any, runs: list[Row]) -> None:
    for case in dict.fromkeys(row.case for row in runs):
        points = [((row.ms or 0) / 1000, row.value) for row in runs if row.case == case]
        axes.plot(*zip(*points, strict=True), "o-", ms=3, label=case)
    axes.axhline(BABY_LOSS, color="black", lw=0.8, ls=":", label=str(BABY_LOSS))
    axes.set_title("baby GPT, a run", fontsize=10)
    axes.set(xlabel="seconds of training", ylabel="validation loss (nats)")
    axes.legend(fontsize=7, frameon=False)
