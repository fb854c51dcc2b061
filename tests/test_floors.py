"""The house: no import runs upward, there is no circle, and what the command line reads first needs no torch."""

import ast
import graphlib
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.matrices import matrix

GROUND = {"data", "kernels"}
MAY_STAND_ON = {
    "data": set(),
    "kernels": set(),
    "makemore": GROUND,
    "nanogpt": GROUND | {"makemore"},
    "engine": GROUND | {"makemore", "nanogpt"},
    "makemore/scratch": GROUND | {"makemore", "nanogpt", "engine"},
    "finetune": GROUND | {"makemore", "nanogpt", "engine"},
    "export": GROUND | {"makemore", "nanogpt", "engine", "finetune"},
    "explain": GROUND | {"makemore", "nanogpt", "engine", "finetune"},
    "forecast": GROUND | {"makemore", "nanogpt", "engine"},
    "serve": GROUND | {"makemore", "nanogpt", "engine", "finetune"},
    "tune": {"data", "engine", "finetune"},
    "bench": GROUND | {"makemore", "nanogpt", "engine", "makemore/scratch", "finetune"},
    "docs": GROUND | {"makemore", "makemore/scratch", "nanogpt", "engine", "finetune", "explain"},
    "charlm": {"data", "engine"},
    "train.py": {"data", "engine"},
    "sample.py": {"data", "engine", "finetune"},
}

OURS = {*MAY_STAND_ON, "tests"}


def files_of(floor: str) -> list[Path]:
    if floor.endswith(".py"):
        return [ROOT / floor]
    return sorted(path for path in (ROOT / floor).rglob("*.py") if floor_of(module_of(path)) == floor)


def floor_of(module: str) -> str:
    """The floor of a module: the models in NumPy lie in makemore/, but stand on more."""
    return "makemore/scratch" if f"{module}.".startswith("makemore.scratch.") else module.split(".")[0]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for floor in MAY_STAND_ON for path in files_of(floor)}


def imports_of(path: Path) -> set[str]:
    """The modules of this project that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relative to itself"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return {name for name in found if name.split(".")[0] in OURS}


def test_the_parsing_sees_every_kind_of_import(tmp_path):
    path = tmp_path / "some.py"
    path.write_text(
        "import data.store\nfrom engine.run import folder\n"
        "def f():\n    from engine.library import train\n    import os\n"
    )
    assert imports_of(path) == {"data.store", "engine.run.folder", "engine.library"}


@pytest.mark.parametrize("floor", MAY_STAND_ON)
def test_a_floor_imports_only_what_is_below_it(floor):
    for path in files_of(floor):
        below = MAY_STAND_ON[floor] | {floor}
        upward = {name for name in imports_of(path) if floor_of(name) not in below}
        assert not upward, f"{path.relative_to(ROOT)} imports {', '.join(sorted(upward))}"


def test_every_floor_of_the_house_is_known():
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"} <= set(MAY_STAND_ON)


def test_no_modules_import_each_other_in_a_circle():
    graphlib.TopologicalSorter({name: imports_of(path) for name, path in MODULES.items()}).prepare()


def test_every_module_says_in_its_first_line_what_it_does():
    for path in MODULES.values():
        documented = ast.get_docstring(ast.parse(path.read_text("utf-8")))
        assert documented, f"{path.relative_to(ROOT)} has no docstring"


def test_a_number_that_others_have_to_know_stands_in_one_file():
    home = module_of(ROOT / "makemore/constants.py")
    numbers = {value for name, value in vars(importlib.import_module(home)).items() if name.isupper()}
    for name, path in MODULES.items():
        if name.split(".")[0] in ("makemore", "nanogpt", "export") and name != home:
            constants = (node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if type(node) is ast.Constant)
            assert not numbers & {node.value for node in constants if type(node.value) is float}, name


@pytest.mark.parametrize(
    "module",
    [
        "engine.config.sections",
        "engine.config.flags",
        "engine.run.folder",
        "engine.config.presets",
        "data.errors",
        "train",
        "finetune.classify.options",
        "finetune.instruct.options",
        "tune.__main__",
        "explain.__main__",
        "forecast.__main__",
        "finetune.translate.options",
    ],
)
def test_the_flags_are_read_before_torch_is_loaded(module):
    check = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    "flags", [["--help"], ["--model", "lstm", "--data", "shakespeare", "--help"], ["--stpes", "3"]]
)
def test_help_and_a_misspelled_flag_never_load_torch(flags):
    check = """
import runpy, sys
sys.argv = ["train.py", *sys.argv[1:]]
try:
    runpy.run_path("train.py", run_name="__main__")
except SystemExit as end:
    print(end.code, "torch" in sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", check, *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.split()[-2:] == ["0" if "--help" in flags else "2", "False"]


@pytest.mark.parametrize("run", matrix(["transformer", "cnn-batch-norm", "gru-bpe"], ["transformer"]))
def test_a_sample_is_written_without_torchs_compiler(run):
    check = """
import runpy, sys
sys.argv, sys.path[0] = ["sample.py", *sys.argv[1:]], "."
try:
    runpy.run_path("sample.py", run_name="__main__")
except SystemExit:
    print("torch" in sys.modules, "torch._dynamo" in sys.modules)
"""
    command = [sys.executable, "-c", check, f"tests/old_runs/{run}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split()[-2:] == ["True", "False"]


def test_the_engine_knows_no_word_of_the_tasks_above_it():
    words = re.compile(r"\b(classify|classification|instruct|instructions|predict|preferences?|dpo|scratch|finetune)\b")
    said = {
        f"{path.name}: {match[0]}" for path in files_of("engine") for match in words.finditer(path.read_text("utf-8"))
    }
    assert not said


def test_the_training_loop_loads_no_family():
    check = "import sys, engine.training.trainer; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert "engine.training.trainer" in loaded
    assert not {"engine.registry", "nanogpt.model", "nanogpt.pretrained", "makemore.mlp"} & set(loaded)
