"""The fewest changed characters that turn a classifier's answer, by a beam of tried changes.

At each step every character is left out once; where that takes most from the answer, all characters of the vocabulary
are tried in its place and before it (Ebrahimi et al., "HotFlip", 2018, with changes tried instead of guessed from the
gradient, which a bag of n-grams does not have). What is found is a way; a shorter one may exist.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.errors import UserError, warn
from data.labelled.example import Example
from data.tokenizers import CharTokenizer
from explain.changes import Change, changes_at, left_out
from explain.found import Found, new_figure, rounded
from explain.intervals import of_share
from finetune.classify.examples import encode
from finetune.classify.labeller import Labeller, probabilities

MAX_CHANGES = 3
MOST_TRIED = 1024  # replaced and put in characters a text of the beam
FEWEST_PLACES = 4  # at which all characters are tried, however many there are
BEAM = 3
LONGEST = 1024  # characters of a text that may be changed, from its beginning
PRINTABLE = "".join(map(chr, range(32, 127)))  # of tokenizers that know no characters


class Way(NamedTuple):
    """A text on the way: the changes so far, what the classifier says of it (classes,), and by how much its logarithm
    favours the answer that is to be turned."""

    text: str
    changes: tuple[Change, ...]
    p: tuple[np.ndarray, ...]  # of the text at first and after each change
    margin: float


def turn(labeller: Labeller, text: str, answer: int, most: int, beam: int = BEAM) -> Way:
    """The way by which `text` loses the answer with the fewest changes, at most `most`; where none is found, the one
    that takes most from it. The way of a text whose answer is another one has no changes."""
    alphabet = labeller.tokenizer.alphabet if isinstance(labeller.tokenizer, CharTokenizer) else PRINTABLE
    characters = [each for each in alphabet if each.isprintable()]
    (p,) = _read(labeller, [text])
    best = Way(text, (), (p,), float(_margins(p[None], answer)[0]))
    ways = [best]
    for _ in range(most):
        if best.margin < 0:
            return best
        following: dict[str, Way] = {}
        for way in ways:
            for change, p in _tried(labeller, way.text, answer, characters):
                margin = float(_margins(p[None], answer)[0])
                if change.text != text and (change.text not in following or margin < following[change.text].margin):
                    following[change.text] = Way(change.text, (*way.changes, change), (*way.p, p), margin)
        if not following:
            break
        ways = sorted(following.values(), key=lambda way: way.margin)[:beam]
        best = min((best, ways[0]), key=lambda way: way.margin)
    return best


def _tried(labeller: Labeller, text: str, answer: int, characters: Sequence[str]) -> list[tuple[Change, np.ndarray]]:
    """The changes of `text` that are tried, each with the probabilities after it."""
    without = [each for each in left_out(text[:LONGEST]) if len(text) > 1 and each.text.strip()]
    rest = text[LONGEST:]
    without = [each._replace(text=each.text + rest) for each in without]
    after = _read(labeller, [each.text for each in without])
    count = max(FEWEST_PLACES, MOST_TRIED // max(1, 2 * len(characters)))
    ranked = [without[n].place for n in np.argsort(_margins(after, answer), kind="stable")]
    places = [*ranked[: count - 1], min(len(text), LONGEST)] if len(text) > 1 else [0, len(text)]
    others = [each for each in changes_at(text, places, characters) if each.text.strip()]
    return [*zip(without, after, strict=True), *zip(others, _read(labeller, [e.text for e in others]), strict=True)]


def _read(labeller: Labeller, texts: list[str]) -> np.ndarray:
    """The probabilities (texts, classes)."""
    rows, _, _ = encode(texts, labeller.tokenizer, labeller.config.net.context)
    return probabilities(labeller.model, rows, labeller.tokenizer.special.pad, labeller.device)


def _margins(p: np.ndarray, answer: int) -> np.ndarray:
    """By how much the logarithm of the answer's probability exceeds that of the next best, (texts,)."""
    logs = np.log(np.maximum(p, 1e-38))
    return logs[:, answer] - np.delete(logs, answer, 1).max(1, initial=-np.inf)


def check_turnable(labeller: Labeller, name: str) -> None:
    """Raise UserError for a classifier whose answers are sets."""
    if labeller.thresholds is not None:
        raise UserError(f"a text of {name} has any number of labels: there is no one answer to turn")


def of_text(labeller: Labeller, text: str, most: int) -> Found:
    """How the answer of one text is turned, step by step."""
    if not text.strip():
        raise UserError("--text is empty; give the text to change")
    labels, answer = labeller.labels, int(labeller([text])[0].argmax())  # warns of what it does not know
    way = turn(labeller, text, answer, most)
    texts = [text, *(change.text for change in way.changes)]
    now, turned = int(way.p[-1].argmax()), way.margin < 0
    steps = [
        {"text": each, "change": str(change) if change else None,
         "probabilities": {label: rounded(float(q)) for label, q in zip(labels, p, strict=True)}}
        for each, change, p in zip(texts, [None, *way.changes], way.p, strict=True)
    ]  # fmt: skip
    numbers = {
        "text": text, "answer": labels[answer], "turned": turned, "changes": len(way.changes), "changed": way.text,
        "now": labels[now], "steps": steps,
    }  # fmt: skip
    said = [f"{labels[answer]!r} with probability {way.p[0][answer]:.3f}: {text}"]
    said += [
        f"  {change}: {labels[int(p.argmax())]!r} {p.max():.3f}, {labels[answer]!r} {p[answer]:.3f}: {change.text}"
        for change, p in zip(way.changes, way.p[1:], strict=True)
    ]
    said.append(f"turned by {len(way.changes)}" if turned else f"not turned by at most {most} changes that were tried")
    other = now if turned else int(np.delete(np.arange(len(labels)), answer)[np.delete(way.p[-1], answer).argmax()])
    figure = new_figure(8, 1.2 + 0.5 * len(texts))
    axes = figure.subplots()
    shown = [each if each.isascii() else each.encode("unicode_escape").decode() for each in texts]
    for shift, which, colour in ((-0.2, answer, "#0b6e99"), (0.2, other, "#b5651d")):
        axes.barh([n + shift for n in range(len(texts))], [p[which] for p in way.p], 0.4, color=colour,
                  label=ascii(labels[which])[1:-1].replace("$", r"\$"))  # fmt: skip
    axes.set_yticks(range(len(texts)), [each[:60] for each in shown], parse_math=False)
    axes.invert_yaxis()
    axes.set(xlabel="probability", xlim=(0, 1))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    return Found(numbers, figure, "\n".join(said))


def of_examples(labeller: Labeller, name: str, examples: list[Example], most: int, texts: int) -> Found:
    """The share of right answers that at most so many changes turn, over `texts` of the examples, drawn at random."""
    if len(examples) > texts:
        chosen = sorted(np.random.default_rng(0).permutation(len(examples))[:texts].tolist())
        examples = [examples[n] for n in chosen]
        warn(f"{texts:,} texts are tried, drawn at random; --texts N takes more")
    number = {label: n for n, label in enumerate(labeller.labels)}
    ways = [turn(labeller, each.text, number[each.label], most) for each in examples]
    right = [way.margin >= 0 or bool(way.changes) for way in ways]
    counts = [len(way.changes) if way.margin < 0 else most + 1 for way in ways]
    n_right = sum(right)
    rows = []
    for k in range(most + 1):
        left = sum(count > k for count in counts)
        low, high = of_share(n_right - left, n_right)
        rows.append({
            "changes": k, "accuracy": left / len(ways), "turned": (n_right - left) / max(1, n_right),
            "interval": rounded([low, high]),
        })  # fmt: skip
    said = [
        f"{len(ways):,} texts of {name}, {n_right:,} labelled right; changes, accuracy left, share of these turned:"
    ]
    said += [
        f"  {row['changes']}  {row['accuracy']:.3f}  {row['turned']:.3f} ({row['interval'][0]:.3f} to "
        f"{row['interval'][1]:.3f})" for row in rows
    ]  # fmt: skip
    found = [
        {"text": each.text, "label": each.label, "turned": way.margin < 0, "changes": len(way.changes),
         "changed": way.text, "now": labeller.labels[int(way.p[-1].argmax())]}
        for each, way in zip(examples, ways, strict=True)
    ]  # fmt: skip
    figure = new_figure(5, 3.6)
    axes = figure.subplots()
    share = [row["turned"] for row in rows]
    apart = [[max(0, y - row["interval"][0]) for y, row in zip(share, rows, strict=True)],
             [max(0, row["interval"][1] - y) for y, row in zip(share, rows, strict=True)]]  # fmt: skip
    axes.errorbar(range(most + 1), share, yerr=apart, marker="o", capsize=3, color="#0b6e99")
    axes.set(xlabel="changed characters, at most", ylabel="share of right answers turned", ylim=(-0.03, 1.03))
    axes.set_xticks(range(most + 1))
    numbers = {"data": name, "texts": len(ways), "right": n_right, "by_changes": rows, "examples": found}
    return Found(numbers, figure, "\n".join(said))
