"""Lines of code a folder: without blank ones, comments and docstrings; python -m bench.size."""

import ast
import io
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UNCOUNTED = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def lines_of(source: str) -> int:
    """The number of lines on which something stands that runs."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in UNCOUNTED:
            lines |= {*range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= {*range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    return len(lines)


def main() -> None:
    files, lines = Counter[str](), Counter[str]()
    folders = {init.parent.name: init.parent.rglob("*.py") for init in ROOT.glob("*/__init__.py")}
    for folder, paths in (folders | {"commands": ROOT.glob("*.py")}).items():
        for path in paths:
            files[folder] += 1
            lines[folder] += lines_of(path.read_text("utf-8"))
    for folder, count in lines.most_common():
        print(f"{folder:10} {files[folder]:4} files {count:6,} lines")
    print(f"all but tests: {sum(lines.values()) - lines['tests']:,} lines")


if __name__ == "__main__":
    main()
