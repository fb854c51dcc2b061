"""What the commands are called in messages, and --version."""

import ast
import json
import re
import subprocess
import sys
import tomllib

import pytest

from data import program
from engine.run import folder
from hatch_build import FOLDERS
from tests.conftest import ROOT
from tests.helpers import ok, quick

CALLS = re.compile(r"\bpython3? (?!-m $)|\b(train|sample)\.py|finetune\.|engine\.doctor|data\.prepare")


def messages(path) -> list[str]:
    """The texts of a file that a user may read: its strings, and the help that is written as docstrings of dataclasses
    and their fields; not the other docstrings, and not names of modules."""
    parsed = ast.parse(path.read_text("utf-8"))
    hidden = set()
    for node in ast.walk(parsed):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and not is_dataclass(node):
            hidden.add(id(body[0].value))
    strings = (node for node in ast.walk(parsed) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return [node.value for node in strings if id(node) not in hidden]


def is_dataclass(node) -> bool:
    return isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(each) for each in node.decorator_list)


@pytest.mark.parametrize("floor", FOLDERS)
def test_a_message_takes_the_name_of_a_command_from_one_place(floor):
    for path in [*(ROOT / floor).rglob("*.py"), ROOT / "train.py", ROOT / "sample.py"]:
        if path != ROOT / "data/program.py":
            assert not [text for text in messages(path) if CALLS.search(text)], path


def test_every_command_exists_and_says_the_version(cli):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    for name, (script, _) in program.COMMANDS.items():
        assert ok(cli(script, "--version")).out == f"charlm {version}\n", name


def test_version_beside_other_words_is_what_it_was_before(cli):
    assert cli("train.py", "--model", "gru", "--version").code == 2


def test_a_run_says_what_made_it_in_the_same_words_everywhere(cli, names, monkeypatch):
    ok(cli("train.py", "--data", "names.txt", "--kind", "lines", *quick()))
    said = json.loads((folder.Path("run") / "config.json").read_text())
    assert said["command"] == "python train.py" and folder.command_of(said) == "python train.py"
    monkeypatch.setattr(program, "IS_INSTALLED", True)
    assert folder.command_of(said) == "charlm train"
    assert folder.sample_command(folder.Path("my run")) == "charlm sample 'my run'"
    assert folder.resume_command(folder.Path("run"), "classify") == "charlm classify --resume --out run"
    assert folder.command_of({"command": "python own.py"}) == "python own.py"


def test_the_program_is_named_without_torch():
    check = "import sys, data.program as p; p.version(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0
