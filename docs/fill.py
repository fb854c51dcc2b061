"""Fills the pages of docs/ from the sources, or says what is out of date: `python -m docs.fill [--check]`.

A block stands between two lines, `<!-- KIND WORDS -->` and `<!-- end -->`, each alone on its line. The kinds:

    code MODULE:NAME      the definition, as in makemore.bigram:Bigram.hidden; several names, several blocks
    command KEY ...       the commands of experiments, in a block for the shell
    result KEY            the figure of an experiment, from docs/results.json, in one line
    results KEY ...       several figures as a table
    flags NAME ...        a table of flags: text, optim, machine, run, a family, classify, instruct, translate, scratch,
                          sample
    api MODULE:NAME ...   signatures and docstrings
    course table          the list of the articles, with their times
    course navigation     the same for mkdocs.yml, where markers stand in comments
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from data.disk import replace_file
from data.errors import UserError, nearest, run_command
from docs import api, flags, outline, results, sources
from docs.experiments import experiment
from docs.sources import ROOT

MARKER = re.compile(r"<!-- (\w+)(.*?) -->")
FENCE = re.compile(r"\s*(```|~~~)")


def code(names: list[str]) -> str:
    return "\n\n".join(f"```python\n{sources.quote(name)}\n```" for name in names)


def command(keys: list[str]) -> str:
    lines = [line for key in keys for line in experiment(key).lines]
    return "\n".join(["```sh", *dict.fromkeys(lines), "```"])


def result(keys: list[str]) -> str:
    return "\n\n".join(map(results.sentence, keys))


def course(words: list[str]) -> str:
    return outline.navigation() if words == ["navigation"] else outline.table()


KINDS: dict[str, Callable[[list[str]], str]] = {
    "code": code, "command": command, "result": result, "results": results.table, "flags": flags.table,
    "api": api.entries, "course": course,
}  # fmt: skip


def filled(text: str, page: str = "") -> tuple[str, list[str]]:
    """The text of a page with its blocks filled, and the blocks that were not up to date: 'page:line: marker'. Raises
    UserError for a marker that is unknown, lacks its end, stands inside another or names nothing."""
    lines: list[str] = []
    stale: list[str] = []
    start: tuple[int, str, list[str]] | None = None  # of the open block: its line, its marker, what stands in it
    fence = ""
    for number, line in enumerate(text.split("\n"), 1):
        if start is None and (match := FENCE.match(line)) and fence in ("", match[1]):
            fence = "" if fence else match[1]
        match = None if fence else MARKER.fullmatch(line.strip(" #"))
        if match and match[1] == "end":
            if start is None:
                raise UserError(f"{page}:{number}: an end without a block before it")
            opened, marker, old = start
            new = ["", *_block(marker, f"{page}:{opened}").splitlines(), ""]
            if new != old:
                stale.append(f"{page}:{opened}: {marker}")
            lines += [*new, line]
            start = None
        elif match and start:
            raise UserError(
                f"{page}:{number}: {line.strip()} stands inside the block of line {start[0]}: end that first"
            )
        elif match:
            lines.append(line)
            start = number, match[0], []
        elif start:
            start[2].append(line)
        else:
            lines.append(line)
    if start:
        raise UserError(f"{page}:{start[0]}: {start[1]} has no <!-- end --> after it")
    return "\n".join(lines), stale


def _block(marker: str, place: str) -> str:
    """What is to stand in the block that `marker` opens."""
    kind, words = MARKER.fullmatch(marker).groups()  # type: ignore[union-attr]  # it was found by this
    if kind not in KINDS:
        raise UserError(f"{place}: there is no marker '{kind}'; there are: {', '.join(KINDS)}.{nearest(kind, KINDS)}")
    if not words.split():
        raise UserError(f"{place}: {marker} names nothing")
    try:
        return KINDS[kind](words.split())
    except UserError as error:
        raise UserError(f"{place}: {marker}: {error}") from error


def pages() -> list[Path]:
    """The files with blocks: the pages of docs/, and mkdocs.yml."""
    return [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "mkdocs.yml"]


def fill_pages(check: bool = False) -> int:
    """Fill all pages and say which blocks changed; with `check` change nothing, and return 1 where one would."""
    stale = []
    for page in pages():
        old = page.read_text("utf-8")
        new, changed = filled(old, page.relative_to(ROOT).as_posix())
        stale += changed
        if not check and new != old:
            replace_file(page, new.encode())
    for each in stale:
        print(f"{each} {'is out of date: run python -m docs.fill' if check else 'was filled'}")
    return int(check and bool(stale))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.fill", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 where a block is out of date")
    return fill_pages(parser.parse_args().check)


if __name__ == "__main__":
    sys.exit(run_command(main))
