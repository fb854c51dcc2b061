"""The list of the articles: their table on the home page, and their entries in the navigation."""

import re
from dataclasses import dataclass
from pathlib import Path

from data.errors import UserError
from docs import results
from docs.experiments import Experiment, Picture, modules, pictures_of
from docs.sources import ROOT

WORDS_A_MINUTE = 120  # of a text with formulas and code
FILLED = re.compile(r"<!-- (?!end)\w+ .*?<!-- end -->", re.DOTALL)
FENCED = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Article:
    """An article: its file, its number, its title, and its words without code and tables."""

    path: Path
    number: int
    title: str
    words: int

    @property
    def experiments(self) -> list[Experiment]:
        """Its experiments: of docs/experiments/two_words.py for docs/articles/NN-two-words.md."""
        name = self.path.stem.split("-", 1)[1].replace("-", "_")
        return [each for module in modules() if module.__name__.endswith(f".{name}") for each in module.EXPERIMENTS]

    @property
    def pictures(self) -> list[Picture]:
        """Its pictures, of the same file."""
        return pictures_of(each.key for each in self.experiments)


def articles() -> list[Article]:
    """All articles, in their order. Raises UserError for a file that is not NN-words.md or begins with no title."""
    return [_read(path) for path in sorted((ROOT / "docs/articles").glob("*.md"))]


def _read(path: Path) -> Article:
    text = path.read_text("utf-8")
    title = text.splitlines()[0] if text else ""
    if not re.fullmatch(r"\d\d-[a-z0-9-]+", path.stem) or not title.startswith("# "):
        raise UserError(f"{path} is no article: NN-two-words.md, with '# Title' as its first line")
    prose = FENCED.sub("", FILLED.sub("", text))
    return Article(path, int(path.stem[:2]), title[2:], len(prose.split()))


def table() -> str:
    """The course as a table: number, article, minutes to read, processor time of its commands."""
    measured = results.read()
    rows = ["| | article | read | run |", "|---|---|---|---|"]
    for each in articles():
        taken = {one.command: measured[one.key].seconds for one in each.experiments if one.key in measured}
        link = f"[{each.title}](articles/{each.path.name})"
        read, run = f"{round(each.words / WORDS_A_MINUTE)} min", _time(sum(taken.values()))
        rows.append(f"| {each.number} | {link} | {read} | {run} |")
    return "\n".join(rows)


def navigation() -> str:
    """The articles as entries of mkdocs.yml."""
    quoted = [
        (f"{each.number}. {each.title}".replace("'", "''"), each.path.name) for each in articles()
    ]  # as YAML has it
    return "\n".join(f"      - '{title}': articles/{name}" for title, name in quoted)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
