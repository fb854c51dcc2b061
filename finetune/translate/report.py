"""What is said of translations at the end of a run: scores by group, some of them, and all of them in a file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.disk import replace_file
from data.pairs.pair import TextPair
from finetune.translate.scores import scores

SHOWN = 8  # translations printed at the end of a run
COLUMNS = {"exact_match": "exact match", "character_error_rate": "char errors", "chrf": "chrF", "examples": "examples"}


def scores_by_group(pairs: Sequence[TextPair], answers: Sequence[str]) -> dict[str, Any]:
    """The scores of all translations, and of each group of pairs where there are some."""
    found = scores(answers, [pair.target for pair in pairs])
    groups = {}
    for group in dict.fromkeys(pair.group for pair in sorted(pairs, key=lambda pair: len(pair.text)) if pair.group):
        some = [(answer, p.target) for answer, p in zip(answers, pairs, strict=True) if p.group == group]
        groups[group] = scores([answer for answer, _ in some], [target for _, target in some])
    return found | ({"groups": groups} if groups else {})


def table(found: dict[str, Any]) -> str:
    """The scores as text: a line for each group, and for all."""
    lines = found.get("groups", {}) | {"all": found}
    width = max(map(len, lines))
    said = [f"{'':{width}}  " + "  ".join(COLUMNS.values())]
    for name, of in lines.items():
        cells = (of["exact_match"], of["character_error_rate"])
        said.append(
            f"{name:{width}}  " + "  ".join(f"{x:11.3f}" for x in cells) + f"  {of['chrf']:4.1f}  {of['examples']:8,d}"
        )
    return "\n".join(said)


def shown(pairs: Sequence[TextPair], answers: Sequence[str]) -> str:
    """A few translations from all over the list, each with what was wanted where it is another text."""
    lines = []
    for pair, answer in [*zip(pairs, answers, strict=True)][:: -(-len(pairs) // SHOWN)]:
        verdict = "right" if answer == pair.target else f"wanted: {pair.target}"
        lines.append(f"  {pair.text}\n    {answer}    [{verdict}]")
    return "\n".join(lines)


def write_translations(path: Path, pairs: Sequence[TextPair], answers: Sequence[str]) -> None:
    """One JSON line a pair: the source, what was wanted, the translation, and whether they are equal."""
    lines = []
    for pair, answer in zip(pairs, answers, strict=True):
        line = {"source": pair.text, "wanted": pair.target, "answer": answer, "exact": answer == pair.target}
        lines.append(json.dumps(line) + "\n")
    replace_file(path, "".join(lines).encode())
