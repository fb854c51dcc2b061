"""gpu.md: what the rows of gpu.csv say, in tables; what failed or was left out stands first. Imports no torch."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.gpu import auto
from bench.gpu.pictures import PICTURES, why_no_pictures
from bench.gpu.plan import MINUTES
from bench.gpu.rows import BAD, Row, ceiling, read, select
from bench.speedrun import BABY_LOSS
from data.disk import replace_file

MOST_BAD = 60  # lines a kind; gpu.csv has all
STEPS = (", a step", ", a step in graphs")
SHAPE = re.compile(r"(D\d+ T\d+) (\w+) (\S+(?: \S+)?)")


def write(folder: Path) -> None:
    """Write gpu.md anew from gpu.csv."""
    rows = read(folder / "gpu.csv")
    makers = (_head, _bad, _tests, _kernels, _steps, _runs, _decoding, _processes, _auto, _memory)
    sections = [*(make(rows) for make in makers), _pictures(folder)]
    replace_file(folder / "gpu.md", ("\n\n".join(sections) + "\n").encode())


def bad_news(rows: list[Row]) -> list[str]:
    """What failed, died, was stopped, missed its target or was left out, a line each, the worst first."""
    lines = []
    for outcome in (*BAD, "stopped"):
        lines += _few([_line(row) for row in rows if row.outcome == outcome])
    lines += _few([_missed(row) for row in rows if row.outcome == "ok" and row.target is not None and _misses(row)])
    lines += _few([_line(row) for row in rows if row.outcome == "left out"])
    for part in MINUTES:
        if not select(rows, part, lambda row: True):
            lines.append(f"not run: {part}")
    return lines


def _few(lines: list[str]) -> list[str]:
    more = len(lines) - MOST_BAD
    return lines if more <= 0 else [*lines[:MOST_BAD], f"... and {more} more of this kind, see gpu.csv"]


def _line(row: Row) -> str:
    name = " ".join(filter(None, (f"{row.what},", row.case, "" if row.who == "ours" else f"({row.who})")))
    return f"{row.outcome}: {row.part}: {name.rstrip(',')}{': ' if row.note else ''}{row.note}"


def _misses(row: Row) -> bool:
    if row.unit == "nats":  # a loss is to be low, and is a target only at the end of a run
        return row.ms is None
    assert row.target is not None
    return row.who == "ours" and row.value is not None and row.value < row.target


def _missed(row: Row) -> str:
    return f"missed: {row.part}: {row.what}, {row.case}: {_number(row.value)} {row.unit}, goal {_number(row.target)}"


def _head(rows: list[Row]) -> str:
    facts = {row.case: row.note for row in rows if row.what == "about"}
    copy, product = ceiling(rows, "GB/s"), ceiling(rows, "TFLOP/s")
    best = [f"a copy {_number(copy)} GB/s (read and written)", f"a product of matrices {_number(product)} TFLOP/s"]
    lines = [f"# {facts.get('card', 'Unknown machine')}", ""]
    lines += [f"{facts.get('date')}; commit {facts.get('commit')}; {facts.get('versions')}."]
    lines += [f"Measured at best: {', '.join(best)}; shares below are of these."]
    if facts.get("sizes") != "real":
        lines += ["", "**Toy sizes (`--smoke`): this page shows that everything runs, its times mean nothing.**"]
    return "\n".join(lines)


def _bad(rows: list[Row]) -> str:
    lines = bad_news(rows)
    listed = "\n".join(f"- {_escaped(line)}" for line in lines) if lines else "Nothing."
    return f"## What failed, was stopped, missed its goal or was left out\n\n{listed}"


def _tests(rows: list[Row]) -> str:
    known = select(rows, "tests", lambda row: row.what == "attention shape" and bool(SHAPE.fullmatch(row.case)))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in known:
        size, dtype, options = SHAPE.fullmatch(row.case).groups()  # type: ignore[union-attr]  # it matched above
        said = _number(row.value) if row.outcome == "ok" else f"**{row.outcome}**"
        cells.setdefault((size, options), {})[dtype] = said
    dtypes = list(dict.fromkeys(dtype for found in cells.values() for dtype in found))
    lines = [[*key, *(found.get(dtype, "") for dtype in dtypes)] for key, found in cells.items()]
    files: dict[str, list[Row]] = {}
    for row in select(rows, "tests", lambda row: row.what != "attention shape"):
        files.setdefault(row.what, []).append(row)
    counts = [
        [what, *(str(sum(row.outcome == each for row in found)) for each in ("ok", "failed", "died", "skipped")),
         f"{sum(row.ms or 0 for row in found) / 1000:.0f}"]
        for what, found in files.items()
    ]  # fmt: skip
    return "\n\n".join(
        [
            "## a. Tests",
            "Attention, forward and backward, each shape in a process of its own: the largest error of any output or "
            "gradient against torch in float64, as a share of what is allowed (twice that of torch in this dtype).",
            _table(["size", "options", *dtypes], lines),
            "The tests of the project:",
            _table(["file", "passed", "failed", "died", "skipped", "seconds"], counts),
        ]
    )


def _kernels(rows: list[Row]) -> str:
    cells: dict[tuple[str, str], dict[str, Row]] = {}
    for row in select(rows, "kernels"):
        cells.setdefault((row.what, row.case), {})[row.who] = row
    who = list(dict.fromkeys(name for found in cells.values() for name in found))
    lines = []
    for (what, case), found in cells.items():
        targets = [row.target for row in found.values() if row.target is not None]
        goal = f"{targets[0]:.0f}" if targets else ""
        lines.append([what, case, *(_speed(found.get(name)) for name in who), goal])
    about = "Milliseconds, and TFLOP/s or GB/s with their share of this machine's best. The goal is in the same unit."
    return f"## b. Kernels\n\n{about}\n\n{_table(['operation', 'size', *who, 'goal'], lines)}"


def _speed(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{_number(row.ms)}: {_number(row.value)} {row.unit}{_share(row)}"


def _steps(rows: list[Row]) -> str:
    lines = [
        [row.what.removesuffix(", a step"), row.case, _number(row.ms), f"{row.value:,.0f}", _share(row).strip(" ()"),
         row.note]
        for row in select(rows, "training") if row.what.endswith(STEPS) and row.value is not None
    ]  # fmt: skip
    about = (
        "Whole steps of the training loop. FLOPs a token: 6 N + 12 L C T (N weights of matrices, L layers, C wide, T "
        "tokens a row); the share is of the product above."
    )
    head = ["model", "settings", "ms a step", "tokens/s", "share of the product", "what"]
    return f"## c. Training steps\n\n{about}\n\n{_table(head, lines)}"


def _runs(rows: list[Row]) -> str:
    lines = [
        [row.case, "not reached" if row.ms is None else f"{row.ms / 1000:.1f}", _number(row.value), row.note]
        for row in select(rows, "training") if row.what == "baby GPT, to the loss"
    ]  # fmt: skip
    seen = select(rows, "training", lambda row: row.what == "baby GPT, a run" and row.outcome == "ok")
    curves = [
        [case, " · ".join(f"{_seconds(row)} s {row.value:.4f}" for row in seen if row.case == case)]
        for case in dict.fromkeys(row.case for row in seen)
    ]
    return "\n\n".join(
        [
            f"## d. The baby GPT on Shakespeare, to a validation loss of {BABY_LOSS}",
            "`BABY` of bench/speedrun.py; the seconds are of training, evaluations left out.",
            _table(["run", f"seconds to {BABY_LOSS}", "best loss", "what"], lines),
            _table(["run", "seconds and validation loss at each evaluation"], curves),
        ]
    )


def _seconds(row: Row) -> str:
    return f"{(row.ms or 0) / 1000:.1f}"


def _decoding(rows: list[Row]) -> str:
    lines = [
        [row.what, row.case, row.who, _number(row.ms), f"{row.value:,.0f}"]
        for row in select(rows, "decoding") if row.value is not None
    ]  # fmt: skip
    about = "The step captured as a CUDA graph beside the same operations launched one by one."
    head = ["model", "streams", "how", "ms a token", "characters/s"]
    return f"## e. Decoding\n\n{about}\n\n{_table(head, lines)}"


def _processes(rows: list[Row]) -> str:
    lines = [[row.case, f"{row.value:,.0f}", row.note] for row in select(rows, "processes") if row.value is not None]
    about = "The baby GPT under torchrun, a GPU each, the same micro-batches a step."
    return f"## f. Several processes\n\n{about}\n\n{_table(['processes', 'tokens/s', 'what'], lines)}"


def _auto(rows: list[Row]) -> str:
    about = (
        "The sum of both directions; Triton is taken where it needs less than "
        f"{auto.MARGIN:.0%} of torch's time. A loss that holds no logits also saves memory, which is not counted here."
    )
    lines = [[f"`{each.operation}`", each.size, f"**{each.takes}**", each.why] for each in auto.choices(rows)]
    return f"## g. What `auto` should take here\n\n{about}\n\n{_table(['of', 'size', 'takes', 'because'], lines)}"


def _memory(rows: list[Row]) -> str:
    lines = [
        [row.what, row.case, _number(row.ms), f"{row.value:,.0f} {row.unit}", _share(row).strip(" ()"), row.note]
        for row in select(rows, "memory") if row.value is not None
    ]  # fmt: skip
    about = (
        "Steps on random tokens with activations kept and computed again, the most that torch's allocator held in "
        "them, and their MFU as a run says it (engine/flops.py); what engine/memory.py estimates before them."
    )
    head = ["model", "activations", "ms", "at most", "MFU", "what"]
    return f"## h. Memory\n\n{about}\n\n{_table(head, lines)}"


def _pictures(folder: Path) -> str:
    found = [f"![{name.removesuffix('.png')}]({name})" for name in PICTURES if (folder / name).exists()]
    return "## Pictures\n\n" + ("\n\n".join(found) or why_no_pictures())


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    lines = list(lines)
    if not lines:
        return "Nothing was measured."
    cells = ["| " + " | ".join(map(_escaped, line)) + " |" for line in (head, *lines)]
    return "\n".join([cells[0], "|---" * len(head) + "|", *cells[1:]])


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _number(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _share(row: Row) -> str:
    return "" if row.share is None else f" ({row.share:.0%})"
