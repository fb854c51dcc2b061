"""What a look inside a model found: numbers for a JSON file, and their picture."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.disk import replace_file
from data.tokenizers import Tokenizer

MOST_LABELS = 60  # tokens along an axis that are named


class Found(NamedTuple):
    """`numbers`: what JSON can hold; `figure`: of matplotlib; `said`: a few lines for the terminal."""

    numbers: dict[str, Any]
    figure: Any
    said: str

    def save(self, folder: Path, name: str) -> list[Path]:
        """Write NAME.json and NAME.png into `folder`, which is made. Their paths."""
        from engine.run.results import write_picture

        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{name}.json", folder / f"{name}.png"]
        replace_file(paths[0], (json.dumps(self.numbers, ensure_ascii=False) + "\n").encode())
        write_picture(paths[1], self.figure)
        return paths


def new_figure(width: float, height: float) -> Any:
    """An empty figure of matplotlib, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(min(width, 24), min(height, 24)), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def words(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The tokens as they are shown in JSON."""
    return [tokenizer.token_text(id_) for id_ in ids]


def name_axis(axis: Any, names: Sequence[str]) -> None:
    """Name the places of an axis, all of them where there is room; the font of a picture has ASCII alone for sure."""
    every = -(-len(names) // MOST_LABELS)
    shown = ["_" if n == " " else n if n.isascii() else n.encode("unicode_escape").decode() for n in names]
    axis.set_ticks(range(0, len(names), every), shown[::every], fontsize=8, parse_math=False)


def rounded(values: Any) -> Any:
    """A tensor as nested lists of numbers of seven digits."""
    if isinstance(values, list):
        return [rounded(value) for value in values]
    return float(f"{values:.7g}") if isinstance(values, float) else values
