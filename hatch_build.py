"""The build of the wheel: every folder of the checkout below `charlm`, and the imports between them rewritten to that.

In a checkout the folders are `data`, `kernels` and so on, for people to read; installed beside other packages they must
not have such names. The lines keep their numbers.
"""

import ast
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "charlm"
FOLDERS = (
    "data",
    "kernels",
    "makemore",
    "nanogpt",
    "engine",
    "finetune",
    "export",
    "explain",
    "forecast",
    "serve",
    "tune",
)
SCRIPTS = ("train.py", "sample.py")  # they become modules of charlm.commands: `charlm.train` is a function


class Hook(BuildHookInterface):
    """Hatchling's part: a tree of the rewritten files, which it packs."""

    tree: TemporaryDirectory

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            raise ValueError("a checkout is used where it stands: python train.py, or python -m charlm")
        self.tree = TemporaryDirectory()
        write_package(Path(self.root), Path(self.tree.name))
        build_data["force_include"][str(Path(self.tree.name) / PACKAGE)] = PACKAGE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self.tree.cleanup()


def write_package(root: Path, target: Path) -> None:
    """Write the package of the checkout `root` into the folder `target`."""
    package = target / PACKAGE
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / PACKAGE, package, ignore=ignored)
    for folder in FOLDERS:
        shutil.copytree(root / folder, package / folder, ignore=ignored)
    (package / "commands").mkdir()
    (package / "commands/__init__.py").write_text('"""The two scripts of a checkout."""\n', "utf-8")
    for script in SCRIPTS:
        shutil.copy(root / script, package / "commands")
    for path in package.rglob("*.py"):
        path.write_bytes(rewritten(path.read_bytes(), path.relative_to(target)))


def rewritten(source: bytes, path: Path) -> bytes:
    """A module with its imports of this project's folders from `charlm`. Raises ValueError for an import that cannot
    be rewritten within its line."""
    lines = source.splitlines(keepends=True)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in sorted(nodes, key=lambda node: (node.lineno, node.col_offset), reverse=True):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        if not any(name.split(".")[0] in FOLDERS for name in names):
            continue
        before, rest = lines[node.lineno - 1][: node.col_offset], lines[node.lineno - 1][node.col_offset :]
        (name, *others) = names
        if isinstance(node, ast.ImportFrom):
            rest = rest.replace(b"from ", b"from charlm.", 1)
        elif not others and "." not in name:
            rest = rest.replace(b"import ", b"from charlm import ", 1)  # `import kernels`, as another name or not
        elif not others and node.names[0].asname:
            rest = rest.replace(b"import ", b"import charlm.", 1)
        else:
            raise ValueError(f"{path}:{node.lineno}: {ast.unparse(node)} cannot be rewritten: import one module a line")
        lines[node.lineno - 1] = before + rest
    return b"".join(lines)
