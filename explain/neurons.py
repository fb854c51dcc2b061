"""What single hidden units respond to.

A unit is told by how much of the variance of its activation the current token explains, or the next one, or the place
in the text: the share between groups, adjusted for how many there are (Kelley's epsilon squared, 1935), so that a unit
of noise has a share near 0 in a short text too.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from data.errors import UserError
from explain.found import Found, new_figure, rounded, words
from explain.subject import Subject
from explain.units import Read, activations, read_texts

SHOWN = 8  # units
ENOUGH = 200  # tokens for shares of the variance to say something; of fewer units go by their spread
PLACES = 10  # of the largest activations of a unit
DRAWN = 64  # tokens a unit in the picture
WORDS = {"current": "the token read", "next": "the next token", "place": "the place in the text"}
NAMED = 5  # tokens that a unit is high on, or low


class Unit(NamedTuple):
    """A unit of a layer, both counted as they are shown: layers from 1, units from 0."""

    layer: int
    number: int


def neurons(subject: Subject, texts: list[str], unit: Unit | None = None) -> Found:
    """The units that respond most, or `unit`: what explains each, and the places of its largest activations. UserError
    for a family without hidden units, or a unit that is not there."""
    read = read_texts(subject, texts)
    layers = activations(subject, read)
    explained = [shares(layer, read) for layer in layers]  # of each layer, name -> (units,)
    long = len(read.tokens) >= ENOUGH
    if unit is not None:
        chosen = [_checked(unit, layers)]
    else:
        worth = [
            torch.stack(list(each.values())).amax(0) if long else values.std(0, correction=0)
            for each, values in zip(explained, layers, strict=True)
        ]
        ranked = torch.cat(worth).argsort(descending=True, stable=True)[:SHOWN].tolist()
        everyone = [Unit(n, u) for n, layer in enumerate(layers, 1) for u in range(layer.shape[1])]
        chosen = [everyone[n] for n in ranked]
    by = "the share of the variance that a token or a place explains" if long else "the spread over the text"
    found = [_of_unit(each, subject, read, layers, explained[each.layer - 1]) for each in chosen]
    sizes = ", ".join(str(layer.shape[1]) for layer in layers)
    said = [f"{len(layers)} layers of {sizes} units over {len(read.tokens):,} tokens, ranked by {by}:"]
    said += [_sentence(each) if long else _sentence_of_places(each) for each in found]
    numbers = {"tokens": len(read.tokens), "ranked_by": by, "units": found}
    return Found(numbers, _picture(chosen, found, subject, read, layers), "\n".join(said))


def shares(values: Tensor, read: Read) -> dict[str, Tensor]:
    """Of each unit the share of the variance of its activations (N, units) that the current token explains, the next
    one, and the place: (units,) each, from 0. 0 where there are fewer than two tokens a group."""
    return {
        "current": share_explained(values, read.tokens),
        "next": share_explained(values, read.next),
        "place": share_explained(values, read.place),
    }


def share_explained(values: Tensor, group: Tensor) -> Tensor:
    """The adjusted share (units,) of the variance of `values` (N, units) between the groups of `group` (N,)."""
    values, (_, number) = values.double(), group.unique(return_inverse=True)
    count = torch.bincount(number).double()
    N, K = len(values), len(count)
    if N < 2 * K:
        return torch.zeros(values.shape[1])
    total = (values - values.mean(0)).square().sum(0)
    within = (values - _means(values, number, count)[number]).square().sum(0)
    return (1 - within / (N - K) / (total / (N - 1)).clamp_min(1e-30)).clamp_min(0).where(total > 1e-9, 0.0).float()


def _means(values: Tensor, number: Tensor, count: Tensor) -> Tensor:
    sums = torch.zeros(len(count), *values.shape[1:], dtype=values.dtype).index_add(0, number, values)
    return sums / count[:, None]


def _of_unit(
    unit: Unit, subject: Subject, read: Read, layers: list[Tensor], explained: dict[str, Tensor]
) -> dict[str, Any]:
    values = layers[unit.layer - 1][:, unit.number]
    share = {name: float(each[unit.number]) for name, each in explained.items()}
    by = max(share, key=lambda name: share[name])
    group = {"current": read.tokens, "next": read.next, "place": read.place}[by]
    groups, number = group.unique(return_inverse=True)
    means = _means(values[:, None], number, torch.bincount(number).float())[:, 0]
    order = means.argsort(descending=True).tolist()
    names = words(subject.tokenizer, groups.tolist()) if by != "place" else [str(place) for place in groups.tolist()]
    every = words(subject.tokenizer, read.tokens.tolist())
    places = []
    for at in (values - values.mean()).abs().argsort(descending=True)[:PLACES].tolist():
        first = at - int(read.place[at])
        inside = range(max(first, at - 20), at + 1)
        places.append({
            "text": int(read.row[at]), "place": int(read.place[at]), "token": every[at],
            "before": "".join(every[n] for n in inside), "activation": rounded(float(values[at])),
        })  # fmt: skip
    return {
        "layer": unit.layer, "unit": unit.number, "explained": rounded_all(share), "by": by,
        "mean": rounded(float(values.mean())), "deviation": rounded(float(values.std(correction=0))),
        "high": [names[n] for n in order[:NAMED]], "low": [names[n] for n in order[::-1][:NAMED]], "largest": places,
    }  # fmt: skip


def rounded_all(values: dict[str, float]) -> dict[str, float]:
    """The same, of seven digits each."""
    return {name: rounded(value) for name, value in values.items()}


def _sentence(unit: dict[str, Any]) -> str:
    what = WORDS[unit["by"]]
    high, low = (" ".join(map(repr, unit[name])) for name in ("high", "low"))
    return (
        f"  {unit['layer']}:{unit['unit']}  {unit['explained'][unit['by']]:.0%} by {what}; high on {high}; low on {low}"
    )


def _sentence_of_places(unit: dict[str, Any]) -> str:
    largest = ", ".join(f"{each['token']!r} (place {each['place']}: {each['activation']:+.2f})"
                        for each in unit["largest"][:NAMED])  # fmt: skip
    return f"  {unit['layer']}:{unit['unit']}  deviation {unit['deviation']:.2f}; farthest from its mean at {largest}"


def _checked(unit: Unit, layers: list[Tensor]) -> Unit:
    if not 1 <= unit.layer <= len(layers):
        raise UserError(f"--unit {unit.layer}:{unit.number}: there is no layer {unit.layer} of {len(layers)}")
    if unit.number >= (width := layers[unit.layer - 1].shape[1]):
        raise UserError(f"--unit {unit.layer}:{unit.number}: layer {unit.layer} has the units 0 to {width - 1}")
    return unit


def _picture(
    chosen: list[Unit], found: list[dict[str, Any]], subject: Subject, read: Read, layers: list[Tensor]
) -> Any:
    """A row a unit: the texts around its largest activations, each token coloured by the activation."""
    every = words(subject.tokenizer, read.tokens.tolist())
    width, long = min(DRAWN, len(every)), len(every) >= ENOUGH
    figure = new_figure(2 + 0.2 * width, 0.5 + 0.62 * len(chosen))
    for axes, unit, about in zip(figure.subplots(len(chosen), 1, squeeze=False)[:, 0], chosen, found, strict=True):
        values = layers[unit.layer - 1][:, unit.number]
        most = max(float(values.abs().max()), 1e-9)
        at = _around_largest(values, read, width)
        axes.imshow(values[at][None].numpy(), cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
        for x, n in enumerate(at):
            name = "_" if every[n] == " " else every[n] if every[n].isascii() and len(every[n]) < 4 else "|"
            colour = "white" if abs(float(values[n])) > 0.6 * most else "black"
            axes.text(x, 0, name, ha="center", va="center", fontsize=8, color=colour, parse_math=False)
        axes.set(xticks=[], yticks=[])
        share = f", {about['explained'][about['by']]:.0%} of the variance by {WORDS[about['by']]}" if long else ""
        axes.set_title(
            f"unit {unit.layer}:{unit.number}{share}; from {-most:.2g} (blue) to {most:.2g} (red)",
            fontsize=8, loc="left",
        )  # fmt: skip
    return figure


def _around_largest(values: Tensor, read: Read, width: int) -> list[int]:
    """`width` tokens: the rows with the largest activations whole, or the part around it of a long one."""
    at: list[int] = []
    seen: set[int] = set()
    for n in (values - values.mean()).abs().argsort(descending=True, stable=True).tolist():
        if len(at) >= width:
            break
        if (row := int(read.row[n])) not in seen:
            seen.add(row)
            places = (read.row == row).nonzero()[:, 0].tolist()
            start = max(0, min(places.index(n) - width // 2, len(places) - width))
            at += places[start : start + width]
    return at[:width]
