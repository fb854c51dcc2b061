"""How well a model does for each group of texts: bits a character of a language model, accuracy of a classifier, with
an interval of 95%: over the texts drawn again for bits, Wilson's for accuracies."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from data.errors import UserError
from data.examples import read_examples
from data.labelled.example import Columns, Example
from engine.run.run import Run
from explain.found import Found, new_figure, rounded
from explain.intervals import of_ratio, of_share
from finetune.classify.examples import Labelled
from finetune.classify.labeller import Labeller

FEW = 20  # texts of a group: of fewer the figure says little, and the table says so
MOST = 100  # groups: of more nobody reads a table, and it is the wrong column


def read_groups(data: str, text: str | None, group: str | None, encoding: str) -> tuple[str, list[Example]]:
    """The name of `data` and its texts, each with its group as its label: that of the column `group`, or its label.
    UserError for texts with several labels, and for more than `MOST` groups."""
    try:
        name, examples = read_examples(data, Columns(text, group), encoding)
    except UserError as error:  # the reader knows the column of the groups as that of the labels
        raise UserError(str(error).replace("--label-column", "--group-column")) from error
    if lists := [each for each in examples if each.labels is not None]:
        raise UserError(f"{lists[0].where} has a list of labels; a text is of one group: --group-column names it")
    if (count := len({each.label for each in examples})) > MOST:
        column = f"the column {group}" if group else "the labels"
        raise UserError(
            f"{column} of {data} would be {count:,} groups; --group-column names another, of at most {MOST}"
        )
    return name, examples


def of_language(run: Run, name: str, examples: list[Example]) -> Found:
    """Bits a character by group, those of the end of a line included, the dearest group first. Characters that the
    vocabulary lacks are left out, and their share is said."""
    scores = [run.score_or_nothing(each.text, "skip") for each in examples]
    special = run.tokenizer.special
    unknown = np.array([(run.tokenizer.encode(each.text, "mask") == special.unk).sum() for each in examples])
    bits = np.array([score.nll_sum / np.log(2) for score in scores])
    characters = np.array([score.n_characters for score in scores], float)
    rows = []
    for group, at in _by_group(examples):
        lost = float(unknown[at].sum() / sum(len(examples[n].text) for n in at))
        at = at[characters[at] > 0]
        if len(at):
            figure, interval = bits[at].sum() / characters[at].sum(), of_ratio(bits[at], characters[at])
            rows.append(_row(group, len(at), float(figure), interval) | ({"unknown": rounded(lost)} if lost else {}))
    if not rows:
        raise UserError(f"nothing in the texts of {name} is in the vocabulary of {run.folder}")
    rows.sort(key=lambda row: -row["figure"])
    return _found(name, "bits a character", rows, bits.sum() / max(1.0, characters.sum()), len(examples))


def of_classes(labeller: Labeller, labelled: Labelled, group_of: dict[str, str]) -> Found:
    """Accuracy by group, the lowest first. `group_of`: the group of each example of the test side, by where it stands.
    UserError where a text has several labels."""
    if labelled.is_multi:
        raise UserError(f"the texts of {labelled.name} have any number of labels: there is no accuracy by group")
    examples = [each._replace(label=group_of[each.where]) for each in labelled.sides["test"] if each.where in group_of]
    kept = np.array([n for n, each in enumerate(labelled.sides["test"]) if each.where in group_of], int)
    said = labeller([each.text for each in examples]).argmax(1)
    right = said == labelled.numbers("test")[kept]
    rows = [
        _row(group, len(at), float(right[at].mean()), of_share(int(right[at].sum()), len(at)))
        for group, at in _by_group(examples)
    ]
    rows.sort(key=lambda row: row["figure"])
    return _found(labelled.name, "accuracy", rows, float(right.mean()), len(examples))


def _by_group(examples: list[Example]) -> Iterable[tuple[str, np.ndarray]]:
    groups = np.array([each.label for each in examples], object)
    for group in sorted({*groups}):
        yield group, np.flatnonzero(groups == group)


def _row(group: str, count: int, figure: float, interval: tuple[float, float]) -> dict[str, Any]:
    return {"group": group, "texts": count, "figure": rounded(figure), "interval": rounded([*interval])} | (
        {"few": True} if count < FEW else {}
    )


def _found(name: str, measure: str, rows: list[dict[str, Any]], figure: float, count: int) -> Found:
    width = max([len(row["group"]) for row in rows] + [len("all")])
    said = [f"{measure} of {name} by group, with an interval of 95%:"]
    for row in [*rows, {"group": "all", "texts": count, "figure": figure}]:
        low, high = row.get("interval", (None, None))
        interval = "" if low is None else f"  {low:.3f} to {high:.3f}"
        few = f"  only {row['texts']}: says little" if "few" in row else ""
        unknown = f"  {row['unknown']:.1%} of its characters unknown and left out" if "unknown" in row else ""
        said.append(f"  {row['group']:{width}}  {row['texts']:6,}  {row['figure']:.3f}{interval}{few}{unknown}")
    drawing = new_figure(6, 1.2 + 0.26 * len(rows))
    axes = drawing.subplots()
    for n, row in enumerate(rows):
        axes.plot(row["interval"], [n, n], color="#0b6e99", alpha=0.5)
        axes.plot(row["figure"], n, "o", color="#b5651d" if "few" in row else "#0b6e99", markersize=4)
    axes.axvline(figure, color="0.7", zorder=0)
    shown = [row["group"].encode("ascii", "backslashreplace").decode()[:30] for row in rows]
    axes.set_yticks(range(len(rows)), [f"{each} ({row['texts']:,})" for each, row in zip(shown, rows, strict=True)],
                    parse_math=False)  # fmt: skip
    axes.invert_yaxis()
    axes.set_xlabel(f"{measure}; the line: all")
    numbers = {"data": name, "measure": measure, "texts": count, "figure": rounded(float(figure)), "groups": rows}
    return Found(numbers, drawing, "\n".join(said))
