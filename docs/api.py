"""The Python interface for the reference page, from signatures and docstrings; nothing is imported."""

import ast
import inspect
import textwrap
from pathlib import Path

from data.errors import UserError
from docs.sources import Definition, find, parsed


def entries(names: list[str]) -> str:
    """Functions, classes and methods: for each a heading, its signature and its docstring."""
    return "\n\n".join(map(entry, names))


def entry(name: str) -> str:
    """One of 'MODULE:QUALNAME'. Raises UserError for what has no docstring."""
    path, node = find(name)
    if not isinstance(node, Definition) or not (documented := ast.get_docstring(node)):
        raise UserError(f"{name} is no function or class with a docstring")
    head = _fields(path, node) if isinstance(node, ast.ClassDef) else _signature(path, node)
    module, _, qualname = name.partition(":")
    return f"### {qualname}\n\n```python\n# {module}\n{head}\n```\n\n{inspect.cleandoc(documented)}"


def _signature(path: Path, node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """The lines from `def` to the colon."""
    lines = parsed(path)[1][node.lineno - 1 : node.body[0].lineno - 1]
    return textwrap.dedent("\n".join(lines)).removesuffix(":")


def _fields(path: Path, node: ast.ClassDef) -> str:
    """The line of a class, with its fields where it is a dataclass, else with its constructor."""
    lines = parsed(path)[1]
    shown = [each for each in node.body if isinstance(each, ast.AnnAssign)]
    body = [line for each in shown for line in lines[each.lineno - 1 : each.end_lineno]]
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and each.name == "__init__":
            body += textwrap.indent(_signature(path, each), "    ").splitlines()
    return "\n".join([lines[node.lineno - 1].removesuffix(":"), *body])
