"""The pictures of the articles: `python -m docs.figures.NAME RUN ...` draws NAME.svg."""

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.disk import replace_file
from data.errors import UserError, run_command
from engine.run.folder import read_facts

PICTURES = Path(__file__).resolve().parent.parent / "assets/pictures"
# Text stays text, and the ids in the file do not change from run to run.
SETTINGS: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "charlm", "font.size": 10}


def arguments(
    name: str, about: str | None, argv: list[str], runs: int = 1, model: str | None = None
) -> tuple[list[Path], Path]:
    """The runs, of which there have to be so many, and the file to write, from the arguments of the picture `name`;
    `about` is its docstring. Raises UserError for a run of another family than `model`."""
    module = name.split(".")[-1]
    parser = argparse.ArgumentParser(prog=f"python -m docs.figures.{module}", description=about)
    if runs:
        parser.add_argument("runs", type=Path, nargs=runs, metavar="RUN", help="what it draws")
    parser.add_argument("--out", type=Path, default=Path(f"{module}.svg"), help="the file to write")
    read = parser.parse_args(argv)
    found = getattr(read, "runs", [])
    for run in found if model else []:
        if (family := read_facts(run)["config"]["model"]) != model:
            raise UserError(f"{run} is a {family}; this picture is of --model {model}")
    return found, read.out


def new(width: float = 7.0, height: float = 4.2) -> Any:
    """An empty figure of matplotlib, in inches."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def save(figure: Any, path: Path) -> None:
    """Replace the SVG `path` by the figure. The same figure gives the same bytes."""
    import matplotlib

    content = io.BytesIO()
    with matplotlib.rc_context(SETTINGS):
        figure.savefig(content, format="svg", metadata={"Date": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content.getvalue())
    print(f"drew {path}")


def run(main: Callable[[list[str]], None]) -> None:
    """The command of a picture; a mistake of the user ends in one message."""

    def command() -> int:
        main(sys.argv[1:])
        return 0

    sys.exit(run_command(command))
