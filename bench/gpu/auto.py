"""What each `auto` should take on this card, by size, from the measured rows."""

from collections.abc import Iterable
from typing import NamedTuple

from bench.gpu.plan import WAYS
from bench.gpu.rows import Row, select

MARGIN = 0.97  # of torch's time: less of a difference is noise
OURS = "ours"
SMALL = ("D16", "D32")
COMPILED = "torch.compile"
SDPA = ("SDPA", "SDPA flash", "SDPA cuDNN")


class Choice(NamedTuple):
    """What `auto` should take of an operation at a size, and the milliseconds that say so."""

    operation: str
    size: str
    takes: str
    why: str


def choices(rows: list[Row]) -> list[Choice]:
    """The choices that the rows of the kernels and of the training steps allow."""
    shapes = select(rows, "tests", lambda row: row.what == "attention shape")
    return [*_of_small_heads(shapes), *_of_kernels(select(rows, "kernels")), *_of_steps(select(rows, "training"))]


def _of_small_heads(rows: list[Row]) -> Iterable[Choice]:
    """The first way of small heads that computed all shapes right, if one did."""
    told, takes = [], ""
    for way in WAYS:
        outcomes = [row.outcome for row in rows if row.case.split()[0] in SMALL and row.case.split()[-1] == way]
        if outcomes:
            right = outcomes.count("ok")
            told.append(f"{way}: {right} of {len(outcomes)} shapes are right")
            takes = takes or (way if right == len(outcomes) else "")
    if told:
        yield Choice("CHARLM_SMALL_HEADS", "head sizes up to 32", takes or "torch: no way is right", "; ".join(told))


def _of_kernels(rows: list[Row]) -> Iterable[Choice]:
    """Both directions together: what is faster in one and slower in the other is chosen by the sum."""
    times: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for row in rows:
        operation, _, direction = row.what.rpartition(", ")
        if row.ms is not None:
            times.setdefault((operation, row.case), {}).setdefault(row.who, {})[direction] = row.ms
    for (operation, size), by_who in times.items():
        directions = max((set(each) for each in by_who.values()), key=len)
        whole = {who: sum(each.values()) for who, each in by_who.items() if set(each) == directions}
        ours = whole.pop(OURS, None)
        if operation == "attention":  # torch's own are these; the eager table of scores is only its definition
            whole = {who: ms for who, ms in whole.items() if who in SDPA}
        if ours is not None and whole:
            yield Choice(operation, size, *_compare(ours, whole))


def _compare(ours: float, theirs: dict[str, float]) -> tuple[str, str]:
    """What to take, and why."""
    beaten = [who for who, ms in theirs.items() if ours < MARGIN * ms]
    others = ", ".join(f"{ms:.3g} ms ({who})" for who, ms in sorted(theirs.items(), key=lambda each: each[1]))
    why = f"{ours:.3g} ms against {others}"
    if len(beaten) == len(theirs):
        return "triton", why
    if COMPILED in theirs and set(beaten) == set(theirs) - {COMPILED}:
        return "triton in eager, torch when compiled", why
    return "torch", why


def _of_steps(rows: list[Row]) -> Iterable[Choice]:
    """Of whole steps: one choice changed, the other on torch."""
    times = {(row.what, row.case): row.ms for row in rows if row.what.endswith(", a step") and row.ms is not None}
    for (model, case), theirs in times.items():
        if "triton" in case:
            continue
        for flag in ("--attention", "--norm-kernel"):
            ours = times.get((model, case.replace(f"{flag} torch", f"{flag} triton")))
            if ours is not None:
                takes, why = _compare(ours, {"torch": theirs})
                yield Choice(f"{flag} auto", f"{model}, {case.partition(' --attention')[0]}", takes, why)
