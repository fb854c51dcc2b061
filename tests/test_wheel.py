"""The wheel, built and installed into an environment of its own, and used from an empty folder."""

import json
import os
import re
import subprocess
import tarfile
import zipfile
from importlib.metadata import Distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from data.program import COMMANDS
from hatch_build import FOLDERS, rewritten
from tests.conftest import ROOT
from tests.helpers import build
from tests.test_packaging import EXTRAS, PROJECT

LIMIT = 1_200_000  # bytes


@pytest.fixture
def charlm(env, tmp_path):
    """`charlm("train", ...)` runs the installed command in an empty folder and returns what it printed."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words, program: str = "charlm", code: int = 0) -> subprocess.CompletedProcess:
        command = [str(env / "bin" / program), *map(str, words)]
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


def test_the_wheel_has_one_name_and_is_small(wheel):
    assert wheel.stat().st_size < LIMIT
    files = zipfile.ZipFile(wheel).namelist()
    version = PROJECT["version"]
    assert {name.split("/")[0] for name in files} == {"charlm", f"charlm-{version}.dist-info"}
    ours = {
        path.relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    inside = {name.removeprefix("charlm/") for name in files if name.startswith("charlm/")}
    assert inside - {f"commands/{name}.py" for name in ("__init__", "train", "sample")} - ours == {
        "__init__.py", "__main__.py", "py.typed",
    }  # fmt: skip
    assert ours <= inside and {"data/names.txt", "data/surnames/Czech.txt"} <= inside


def test_the_wheel_says_what_it_needs(env):
    (site,) = env.glob("lib/python*/site-packages/charlm-*.dist-info")
    said = Distribution.at(site)
    needed = {Requirement(line).name for line in said.requires if "extra ==" not in line}
    assert needed == {Requirement(line).name for line in PROJECT["dependencies"]}
    assert set(said.metadata.get_all("Provides-Extra")) == set(EXTRAS)
    assert said.metadata["License-Expression"] == "MIT" and (site / "licenses/LICENSE").exists()


@pytest.mark.exhaustive
def test_an_archive_of_the_source_builds_the_same_wheel(wheel, tmp_path):
    archive = build("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "source", filter="data")
    (checkout,) = (tmp_path / "source").iterdir()
    again = build("wheel", checkout, tmp_path / "again")
    assert again.read_bytes() == wheel.read_bytes()


@pytest.mark.exhaustive
def test_a_run_is_trained_listed_sampled_and_loaded(charlm, env, tmp_path):
    trained = charlm("train", "--model", "gru", "--n-hidden", 16, "--steps", 3, "--eval-tokens", 200)
    assert "more samples:  charlm sample runs/gru-names-1" in trained.stdout
    (row,) = map(json.loads, charlm("runs", "--json").stdout.splitlines())
    assert (row["family"], row["data"], row["steps"]) == ("gru", "names", 3)
    assert charlm("sample", "runs/gru-names-1", "--num", 3).stdout.count("\n") == 3
    facts = json.loads((tmp_path / "runs/gru-names-1/config.json").read_text())
    assert facts["command"] == "python train.py"  # as in a checkout, where it can be gone on with
    searched = charlm("tune", "--try", "n_hidden=4,8", "--", "--model", "gru", "--steps", 2, "--eval-tokens", 200)
    assert "\n    charlm train --model gru --steps 2 --eval-tokens 200 --n-hidden " in searched.stdout
    code = """
import sys, charlm
run = charlm.load_run("runs/gru-names-1")
print(len(run.generate("ma", num=3)), charlm.__version__, charlm.__file__)
print([name for name in sys.modules if name.split(".")[0] in FOLDERS])
"""
    first, others = charlm("-c", f"FOLDERS = {FOLDERS}\n{code}", program="python").stdout.splitlines()
    assert first.startswith(f"3 {PROJECT['version']} {env}/lib") and others == "[]"


def test_every_command_starts(charlm):
    listing = charlm("--help").stdout
    assert all(f"\n  {name} " in listing for name in COMMANDS)
    code = """
import sys
from charlm.__main__ import main
for name in COMMANDS:
    for flag in ("--help", "--version"):
        sys.argv[1:] = [name, flag]
        try:
            code = main()
        except SystemExit as end:
            code = end.code
        assert not code, (name, code)
"""
    out = charlm("-c", f"COMMANDS = {list(COMMANDS)}\n{code}", program="python").stdout
    assert out.count(f"\ncharlm {PROJECT['version']}\n") == len(COMMANDS)
    assert all(re.search(rf"^usage: charlm {name}\s", out, re.MULTILINE) for name in COMMANDS)
    assert "python " not in out
    assert charlm("-m", "charlm", "--version", program="python").stdout == f"charlm {PROJECT['version']}\n"
    assert "no command 'trian'" in (said := charlm("trian", code=2).stderr) and "Did you mean 'train'?" in said


@pytest.mark.exhaustive
def test_work_in_several_processes_and_without_triton(charlm, tmp_path):
    """A worker of the pool is a new interpreter: it has to find the package, from a folder with names of its own."""
    (tmp_path / "data.py").write_text("raise SystemExit('a file of the user')")
    (tmp_path / "poems.txt").write_text("The sea, the sea.\n\nA boat.\n\n" * 3000)
    charlm("prepare", "--data", "poems.txt", "--tokenizer", "bpe:270", "--workers", 2)
    code = """
import sys
sys.modules["triton"] = None
from charlm.__main__ import main
sys.argv[1:] = "train --data poems.txt --n-embd 16 --steps 2 --eval-tokens 200 --out run".split()
assert main() == 0
sys.argv[1:] = "sample run --max-new-tokens 9 --prompt".split() + ["The sea"]
assert main() == 0
"""
    (tmp_path / "both.py").write_text(code, "utf-8")
    assert "\nThe sea" in charlm("-P", "both.py", program="python").stdout


@pytest.mark.parametrize(
    "source, expected",
    [
        (b"from data.errors import UserError  # \xc3\xa4\n", b"from charlm.data.errors import UserError  # \xc3\xa4\n"),
        (b"def f():\n    from engine import load_run\n", b"def f():\n    from charlm.engine import load_run\n"),
        (b"import kernels\n", b"from charlm import kernels\n"),
        (b"import kernels as k; x = 1\n", b"from charlm import kernels as k; x = 1\n"),
        (b"import data.store as store\n", b"import charlm.data.store as store\n"),
        (b"import os, data_tools\nfrom database import x\n'from data import y'\n", None),
        (b"from kernels import (\n    a,\n    b,\n)\n", b"from charlm.kernels import (\n    a,\n    b,\n)\n"),
    ],
)
def test_imports_are_rewritten(source, expected):
    assert rewritten(source, Path("a.py")) == (source if expected is None else expected)


@pytest.mark.parametrize("source", [b"import data.store\n", b"import os, kernels\n"])
def test_an_import_that_cannot_be_rewritten_ends_the_build(source):
    with pytest.raises(ValueError, match="a.py:1: import .* cannot be rewritten"):
        rewritten(source, Path("a.py"))
