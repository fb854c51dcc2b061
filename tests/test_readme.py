"""The README and the pages of docs/ keep their word: commands run as they stand there, links lead to files, the tree in
docs/house.md is complete."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from hatch_build import FOLDERS
from tests.conftest import ROOT
from tests.kernel_helpers import DEVICE
from tests.matrices import matrix
from tests.readme_files import write_conversations, write_labelled, write_preferences, write_texts

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]  # tests/test_articles.py runs what articles say
BLOCKS = [block for page in TEXTS for block in re.findall(r"```(\w*)\n(.*?)```", page.read_text("utf-8"), re.DOTALL)]
TREE = re.search(r"```\n(.*?)```", (ROOT / "docs/house.md").read_text("utf-8"), re.DOTALL)[1]
LINES = [line.split("#")[0].strip() for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
EVERY = [*dict.fromkeys(line.replace("uv run ", "python ") for line in LINES)]  # some stand on two pages
SEVERAL = [c for c in EVERY if c.startswith("torchrun ")]
COMMANDS = [c for c in EVERY if c not in SEVERAL]
TRAIN = [
    c for c in COMMANDS if "train.py" in c and "--resume" not in c and "--eval-only" not in c and "--init" not in c
]
FIRST_PAGE = {line.split("#")[0].strip() for line in TEXTS[0].read_text("utf-8").splitlines()}
EXPORT = [c for c in COMMANDS if c.startswith("python -m export")]
EXPLAIN = [c for c in COMMANDS if c.startswith("python -m explain")]
FORECAST = [c for c in COMMANDS if c.startswith("python -m forecast")]
FIRST = [
    c for c in COMMANDS if "runs/transformer-names-1" in c and c not in (*EXPORT, *EXPLAIN)
]  # after the very first one
BUNDLED = [c for c in COMMANDS if c == "python sample.py"]  # with the run that comes with it
FILL = [c for c in COMMANDS if "--objective masked" in c or "--fill" in c]  # a run, then its gaps
GO_ON = [c for c in COMMANDS if "runs/transformer-poems-1" in c and not c.startswith("python -m")]
CLASSIFY = [c for c in COMMANDS if c.startswith("python -m finetune.classify")]
TRANSLATE = [c for c in COMMANDS if c.startswith("python -m finetune.translate")]
INSTRUCT = [c for c in COMMANDS if "finetune.instruct" in c or "--chat" in c]
MODULES = [
    c
    for c in COMMANDS
    if c.startswith("python -m") and "finetune." not in c and c not in (*EXPORT, *EXPLAIN, *FORECAST)
]
MAKE = [c for c in COMMANDS if c.startswith("make ")]  # these set up .venv from an index
# What a test run adds so that a command ends at once; what counts takes no steps.
SHORT = ["--steps", "2", "--batch-size", "2", "--eval-tokens", "200"]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def test_gaps_are_filled(cli):
    assert len(FILL) == 2
    train, fill = (shlex.split(command) for command in FILL)
    assert cli(*train[1:], *SHORT).code == 0
    assert len(cli(*fill[1:]).out.splitlines()[0]) == len("ma?ia?")


def test_every_command_is_run_by_a_test_below():
    assert set(COMMANDS) - {""} == {
        *TRAIN,
        *FIRST,
        *BUNDLED,
        *FILL,
        *EXPORT,
        *EXPLAIN,
        *FORECAST,
        *GO_ON,
        *CLASSIFY,
        *INSTRUCT,
        *TRANSLATE,
        *MODULES,
        *MAKE,
    }


def heading_links(page: Path) -> set[str]:
    """What the headings of a page are called in a link."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    prose = re.sub(r"^ *```.*?^ *```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose):  # in code, `table[name](x)` is none
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not heading or heading in heading_links(target), f"{page.name} links to {link}"


def test_a_page_of_docs_links_to_nothing_outside_of_docs():
    for page in PAGES[1:]:  # the site has no sources: a path stands there as code
        for link in re.findall(r"\]\((?!https?:|#)([^)\s]+)\)", page.read_text("utf-8")):
            target = (page.parent / link.partition("#")[0]).resolve()
            assert target.is_relative_to(ROOT / "docs") and target.suffix != ".py", f"{page.name} links to {link}"


def test_lists_within_lists_are_indented_as_the_site_reads_them():
    for page in PAGES[1:]:
        assert not re.findall(r"^ {1,3}(?:-|\d+\.) .*", page.read_text("utf-8"), re.MULTILINE), page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_of_sources_exist(page):
    if page.name == "log.md":
        pytest.skip("tells what was, too")
    for path in re.findall(r"`([\w/]+/[\w/]+\.py)`", page.read_text("utf-8")):
        assert "NAME" in path or (ROOT / path).exists(), f"{page.name} names {path}"


def listed() -> set[str]:
    """Every path that the annotated tree of docs/house.md names."""
    folder, found = "", set()
    for line in TREE.splitlines():
        name = line.split()[0]
        folder = "" if not line.startswith(" ") else folder
        found.add(folder + name)
        folder = name if name.endswith("/") else folder
    return found


def test_the_tree_names_every_module():
    modules = {
        str(path.relative_to(ROOT))
        for folder in (*FOLDERS, "bench", "charlm")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py"
    }
    modules |= {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.py") if path.name != "__init__.py"}
    assert modules | {"train.py", "sample.py", "hatch_build.py"} == {name for name in listed() if name.endswith(".py")}


def test_the_tree_names_every_page():
    assert {f"docs/{page.name}" for page in TEXTS[1:]} == {name for name in listed() if name.endswith(".md")}


def test_everything_the_tree_names_exists():
    assert all((ROOT / name).exists() for name in listed())


@pytest.fixture
def texts(tmp_path):
    """The files that a reader of the pages has."""
    write_labelled(tmp_path)
    write_conversations(tmp_path)
    write_preferences(tmp_path)
    return write_texts(tmp_path)


@pytest.mark.parametrize("command", matrix(TRAIN, FIRST_PAGE.__contains__))
def test_training_commands_run(cli, texts, command):
    stdin = texts.encode() if "|" in command else b""
    command = command.replace("--data shakespeare", "--data poems.txt").replace("--watch 8000", "--watch 0")
    words = shlex.split(command.split("|")[-1].split("&&")[-1])
    assert words[:2] == ["python", "train.py"]
    short = ["--eval-tokens", "200"] if {"ngram", "--counts"} & set(words) else SHORT
    ended = cli("train.py", *words[2:], *short, "--out", "run", stdin=stdin)
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("command", matrix(SEVERAL, SEVERAL[:1]))
def test_commands_of_several_processes_run(ranks, texts, command):
    launcher, flag, world, *words = shlex.split(command)
    assert (launcher, flag) == ("torchrun", "--nproc-per-node")
    script, *words = [" ".join(words[:2]), *words[2:]] if words[0] == "-m" else words
    short = SHORT if script == "train.py" else SHORT[:4]
    results = [process.wait() for process in ranks(int(world), script, *words, *short)]
    assert [result.code for result in results] == [0] * int(world), results[0].err


def test_the_first_commands(cli):
    assert cli("train.py", *SHORT).code == 0
    assert len(FIRST) == 3
    for command in FIRST:
        _, script, *words = shlex.split(command)
        ended = cli(script, *words)
        assert ended.code == 0 and ended.out, (command, ended.err)


def test_the_commands_that_look_inside(cli, texts):
    assert len(EXPLAIN) == 8
    for begun in (("train.py",), ("train.py", "--model", "gru"), ("-m finetune.classify", "--data", "spam.tsv")):
        assert cli(*begun, *(SHORT if "train.py" in begun else SHORT[:4])).code == 0
    for command in EXPLAIN:
        ended = cli("-m explain", *shlex.split(command)[3:])
        assert ended.code == 0 and ended.out, (command, ended.err)


def test_the_commands_that_forecast(cli, texts):
    assert len(FORECAST) == 3
    assert cli("train.py", "--data", "hours", "--model", "gru", *SHORT).code == 0
    for command in FORECAST:
        ended = cli("-m forecast", *shlex.split(command)[3:], "--samples", "1", "--ahead", "2")
        assert ended.code == 0 and ended.out, (command, ended.err)


def test_the_command_that_needs_no_training(cli):
    assert len(BUNDLED) == 1 and cli(*shlex.split(BUNDLED[0])[1:]).out.count("\n") == 10


def test_the_commands_that_export_a_run(cli, texts):
    assert cli("train.py", *SHORT).code == 0
    assert cli("train.py", "--data", "poems.txt", *SHORT).code == 0
    assert cli("-m finetune.classify", "--data", "spam.tsv", *SHORT[:4]).code == 0
    assert len(EXPORT) == 5
    for command in EXPORT:
        ended = cli("-m export", *shlex.split(command)[3:])
        assert ended.code == 0, (command, ended.err)


def test_the_commands_that_go_on_with_a_run(cli, texts):
    assert cli("train.py", "--data", "poems.txt", *SHORT).code == 0
    assert len(GO_ON) == 5
    for command in GO_ON:
        _, script, *words = shlex.split(command)
        ended = cli(script, *words, *(SHORT if "--init" in words else []))
        assert ended.code == 0, (command, ended.err)


def test_the_lines_of_python_run(cli, texts, tmp_path):
    assert cli("train.py", "--data", "poems.txt", *SHORT).code == 0
    (code,) = (block for kind, block in BLOCKS if kind == "python" and "load_run" in block)
    script = tmp_path / "lines.py"
    code = re.sub(r"steps=\d+", "steps=2", code)
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{code}", "utf-8")
    ended = cli(str(script))
    assert ended.code == 0 and ended.out.count("The sea") >= 3, ended.err


def test_the_lines_with_kernels_run():
    (code,) = (block for kind, block in BLOCKS if kind == "python" and "kernels.attention" in block)
    q = torch.randn(1, 2, 20, 16, device=DEVICE)
    names = {"q": q, "k": q, "v": q, "x": q, "y": q, "weight": torch.ones(16, device=DEVICE)}
    exec(code, names)
    assert names["out"].shape == q.shape and torch.equal(names["x"], 2 * q)


def test_the_commands_that_classify(cli, texts, tmp_path, monkeypatch):
    assert cli("train.py", "--data", "poems.txt", *SHORT).code == 0
    monkeypatch.setenv("CHARLM_DATA", str(tmp_path))  # sst2 and imdb
    assert len(CLASSIFY) == 17
    for command in CLASSIFY:
        words = shlex.split(command)[3:]
        ended = cli("-m finetune.classify", *words, *([] if "--out" in words else SHORT[:4]))
        assert ended.code == 0, (command, ended.err)


def test_the_commands_that_follow_instructions(cli, texts, tmp_path):
    assert cli("train.py", "--data", "poems.txt", "--tokenizer", "byte", *SHORT).code == 0
    assert cli("train.py", "--model", "gru", *SHORT).code == 0
    (reward,) = (block for kind, block in BLOCKS if kind == "python" and "def short(" in block)
    (tmp_path / "my_rewards.py").write_text(reward)
    assert len(INSTRUCT) == 17
    short = [*SHORT[:4], "--max-answer", "2"]
    for command in INSTRUCT:
        words = shlex.split(command)[2 if "sample.py" in command else 3 :]
        if words == []:  # the bundled tasks: seconds of answering, tested elsewhere
            continue
        script = "sample.py" if "sample.py" in command else "-m finetune.instruct"
        ended = cli(script, *words, *([] if "--out" in words or "--chat" in words else short))
        assert ended.code == 0, (command, ended.err)


def test_the_commands_that_translate(cli, texts, few_pairs):
    assert len(TRANSLATE) == 10
    for command in TRANSLATE:
        words = shlex.split(command)[3:]
        ended = cli("-m finetune.translate", *words, *([] if {"--translate", "--eval-only"} & {*words} else SHORT[:4]))
        assert ended.code == 0, (command, ended.err)


@pytest.mark.parametrize("command", MODULES)
def test_module_commands_start(cli, texts, command):
    _, _, module, *words = shlex.split(command)
    takes_long = module.startswith("bench.") or module in ("kernels.aot", "kernels.bench", "serve", "tune")
    takes_long |= words == ["--check"]  # tests/test_kernel_programs.py runs it
    ended = cli(f"-m {module}", *(["--help"] if takes_long else words))
    assert ended.code == 0 and ended.out, ended.err
