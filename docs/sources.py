"""Code of this repository by its name, for the pages: read by its syntax tree, never imported."""

import ast
import functools
import textwrap
from pathlib import Path

from data.errors import UserError, nearest

ROOT = Path(__file__).resolve().parent.parent

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def parsed(path: Path) -> tuple[ast.Module, list[str]]:
    """The syntax tree of a file, and its lines."""
    return _parsed(path.read_text("utf-8"))


@functools.cache
def _parsed(source: str) -> tuple[ast.Module, list[str]]:
    return ast.parse(source), source.split("\n")


def file_of(module: str) -> Path:
    """The file of `module`, as in 'makemore.bigram'. Raises UserError where there is none."""
    base = ROOT.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    raise UserError(f"there is no module {module}: {base.relative_to(ROOT)}.py does not exist")


def members(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """What a module or a class defines, by name: functions, classes and assignments."""
    named: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, Definition):
            named[node.name] = node
        elif isinstance(node, ast.Assign):
            named |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            named[node.target.id] = node
    return named


def find(name: str) -> tuple[Path, ast.stmt]:
    """The file and the node of 'MODULE:QUALNAME', as in 'makemore.bigram:Bigram.hidden'. Raises UserError where there
    is none."""
    module, colon, qualname = name.partition(":")
    if not (module and colon and qualname):
        raise UserError(f"'{name}' is not MODULE:NAME, as in makemore.bigram:Bigram.hidden")
    path = file_of(module)
    body, place = parsed(path)[0].body, module
    for part in qualname.split("."):
        named = members(body)
        if part not in named:
            raise UserError(f"{place} has no '{part}'.{nearest(part, named)}")
        node, place = named[part], f"{place}.{part}"
        body = node.body if isinstance(node, ast.ClassDef) else []
    return path, node


def quote(name: str) -> str:
    """The lines of 'MODULE:QUALNAME', decorators included and dedented, after a comment that says where they stand."""
    path, node = find(name)
    first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
    lines = parsed(path)[1][first - 1 : node.end_lineno]
    where = f"# {path.relative_to(ROOT).as_posix()}"
    if "." in (qualname := name.split(":")[1]):
        where += f", {qualname}"  # the class does not show
    return f"{where}\n{textwrap.dedent(chr(10).join(lines))}"
