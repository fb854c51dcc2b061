"""Packaging: pyproject.toml names all that the code imports, in ranges; a checkout pins each within its range."""

import ast
import re
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement

from tests.conftest import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
NAMES_OF = {"yaml": "pyyaml"}  # packages that are called otherwise than they are imported
REQUIREMENTS = ("requirements.txt", "requirements-dev.txt", "requirements-docs.txt")


def expanded(requirements: list[str]) -> list[str]:
    """The requirements, those that name extras of this project replaced by these extras' packages."""
    found = []
    for line in requirements:
        extras = re.fullmatch(PROJECT["name"] + r"\[(.+)\]", line)
        found += expanded([each for name in extras[1].split(",") for each in EXTRAS[name]]) if extras else [line]
    return found


ALL = expanded(PROJECT["dependencies"] + [line for extra in EXTRAS.values() for line in extra])


def requirements_in(name: str) -> list[str]:
    lines = (ROOT / name).read_text("utf-8").splitlines()
    return [line.replace('"', "'") for line in lines if not line.startswith(("#", "-r "))]


def names(requirements: list[str]) -> set[str]:
    """What the packages are called; each is imported under this name, or that of `NAMES_OF`."""
    return {re.match(r"[\w-]+", line)[0] for line in expanded(requirements)}


def imported(folders: list[str], at_once: bool = False) -> set[str]:
    """The packages that the files there import but Python's own and this project's: anywhere, or `at_once`, when they
    are imported themselves."""
    found = set()
    for path in [each for folder in folders for each in sorted(ROOT.glob(folder))]:
        parsed = ast.parse(path.read_text("utf-8"))
        for node in parsed.body if at_once else ast.walk(parsed):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
    # `compression` is Python's own from 3.14 on.
    found = {NAMES_OF.get(name, name) for name in found}
    return found - {"compression"} - sys.stdlib_module_names - {path.stem for path in ROOT.iterdir()}


CODE = ["*.py", *(f"{path.parent.name}/**/*.py" for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests")]


def pins() -> dict[str, str]:
    """The version of each package that a checkout is used with, by its name."""
    lines = [line for name in REQUIREMENTS for line in requirements_in(name)]
    return {Requirement(line).name: line for line in lines}


def test_a_checkout_pins_what_the_package_names():
    """requirements.txt what runs need, with Triton; requirements-dev.txt what developers need besides."""
    runs = PROJECT["dependencies"] + EXTRAS["triton"]
    for file, ranges in zip(REQUIREMENTS, (runs, EXTRAS["dev"], EXTRAS["docs"]), strict=True):
        assert names(requirements_in(file)) == names(ranges) - (
            names(runs) if file == "requirements-dev.txt" else set()
        )


def test_each_pin_lies_in_its_range():
    wide = {Requirement(line).name: Requirement(line) for line in ALL}
    for name, line in pins().items():
        pin = Requirement(line)
        (one,) = pin.specifier
        assert one.operator == "==" and one.version in wide[name].specifier, line
        assert pin.marker == wide[name].marker, line


def test_uv_has_the_same_pins_and_those_of_the_logs():
    constraints = {Requirement(line).name: line for line in PYPROJECT["tool"]["uv"]["constraint-dependencies"]}
    assert constraints.items() >= pins().items()
    assert constraints.keys() == names(ALL)


def test_a_range_has_a_lower_bound_and_no_pin():
    for line in ALL:
        assert {one.operator for one in Requirement(line).specifier} in ({">="}, {">=", "<"}), line


def test_every_package_that_the_code_imports_is_named():
    named = names(ALL)
    assert imported(CODE) and imported(CODE) <= named


def test_an_optional_package_is_imported_where_it_is_used():
    needed = names(PROJECT["dependencies"])
    others = [folder for folder in CODE if not folder.startswith(("serve/", "kernels/", "*"))]
    assert imported([*others, "train.py", "sample.py"], at_once=True) <= needed
    # Triton's kernels are imported where it is there (tests/test_wheel.py); hatch_build.py is no part of the package.
    assert imported(["kernels/**/*.py"], at_once=True) <= needed | {"triton"}
    # The server is optional as a whole: what its flags and its messages need is not.
    assert imported(["serve/__main__.py", "serve/settings.py"], at_once=True) <= needed


def test_every_package_that_the_tests_import_is_a_developers():
    assert imported(["tests/*.py"]) <= names(PROJECT["dependencies"] + EXTRAS["dev"])


def test_a_message_that_says_what_to_install_names_packages_of_an_extra():
    named = names(ALL)
    for path in [each for folder in CODE for each in ROOT.glob(folder)]:
        for words in re.findall(r"pip install ([a-z ]+)", path.read_text("utf-8")):
            assert set(words.split()) <= named, path


def test_the_citation_is_one_of_this_version():
    """What the Citation File Format 1.2.0 demands."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert cited["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= cited.keys()
    known = {"cff-version", "message", "title", "authors", "type", "abstract", "version", "license", "keywords"}
    assert cited.keys() <= known and cited["type"] == "software"
    assert all(author.keys() == {"name"} for author in cited["authors"])
    assert (cited["version"], cited["license"]) == (PROJECT["version"], PROJECT["license"])
    newest = re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert newest[1] == PROJECT["version"]


@pytest.mark.parametrize(
    "name", ["pyproject.toml", "requirements.txt", "requirements-dev.txt", "requirements-docs.txt"]
)
def test_no_index_is_named(name):
    assert not re.search(r"://|index", (ROOT / name).read_text("utf-8"))


def test_uvs_lock_file_which_names_an_index_is_ignored():
    assert "uv.lock" in (ROOT / ".gitignore").read_text("utf-8").splitlines()
