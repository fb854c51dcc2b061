"""The course keeps its word: an article's commands run, its code, figures and pictures are those of the sources."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import UserError
from docs import course, experiments, fill, outline, results, sources
from docs.commands import Command, command_of, shortened
from docs.experiments import Experiment
from docs.figures import PICTURES
from docs.flags import TASKS
from engine.config.sections import Config
from engine.config.settings import all_settings
from tests.conftest import NAMES, ROOT
from tests.helpers import ok, refused
from tests.matrices import matrix

ARTICLES = outline.articles()
each_article = pytest.mark.parametrize("article", ARTICLES, ids=lambda article: article.path.stem)
FOLDERS = ["data", "kernels", "makemore", "engine", "finetune", "export", "explain", "bench", "docs"]
OF_SHAKESPEARE = {"-m makemore.scratch.skipgram", "-m makemore.scratch.glove"}  # unless told otherwise
EVERYDAY = {1, 14}
HEADINGS = ["The idea", "The mathematics", "The code", "The experiment", "What goes wrong", "Exercises", "Papers"]


def markers(text: str, *kinds: str) -> set[str]:
    """What the markers of these kinds name."""
    found = re.findall(rf"^<!-- (?:{'|'.join(kinds)}) (.*) -->$", text, re.MULTILINE)
    return {name for names in found for name in names.split()}


@each_article
def test_an_article_has_all_its_parts(article):
    text = article.path.read_text("utf-8")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert [word for word in HEADINGS if not any(heading.startswith(word) for heading in headings)] == []
    assert 800 <= article.words <= 1800
    assert text.count("<summary>Answer</summary>") >= 2
    shown = re.findall(r"!\[[^]]{20,}\]\(\.\./assets/pictures/(\w+)\.svg\)", text)
    assert shown and {*shown} == {picture.name for picture in article.pictures}
    named = markers(text, "code")
    assert [name for name in named if name.startswith("makemore.scratch")], "no code in NumPy"
    assert [name for name in named if not name.startswith("makemore.scratch")], "no code in torch"


@each_article
def test_an_article_says_what_to_type_and_what_comes_of_it(article):
    keys, text = {each.key for each in article.experiments}, article.path.read_text("utf-8")
    assert keys and markers(text, "command") == keys == markers(text, "result", "results")


def test_every_experiment_and_every_picture_belongs_to_an_article():
    assert [*experiments.experiments()] == [each.key for module in experiments.modules() for each in module.EXPERIMENTS]
    assert {*experiments.experiments()} == {each.key for article in ARTICLES for each in article.experiments}
    assert {*experiments.experiments()} == {*results.read()}
    names = {picture.name for article in ARTICLES for picture in article.pictures}
    assert names == {path.stem for path in PICTURES.iterdir()}
    assert names == {path.stem for path in (ROOT / "docs/figures").glob("*.py")} - {"__init__"}


@pytest.fixture
def shortly(cli, monkeypatch, tmp_path):
    """`shortly(lines, folder)` runs commands with two steps in a folder of their own: what they leave. Shakespeare, who
    is downloaded, is a text of the test there."""

    def run(lines: list[str], folder: str) -> course.Ran:
        (place := tmp_path / folder).mkdir()
        monkeypatch.chdir(place)
        said = [f"{NAMES[i % 9].upper()}:\nThe sea, {name}, the sea and the sea.\n" for i, name in enumerate(NAMES * 6)]
        Path("shakespeare.txt").write_text("\n".join(said), "utf-8")
        for line in lines:
            command = shortened(command_of(line), 2)
            words = [{"shakespeare": "shakespeare.txt", "names32k": "names"}.get(w, w) for w in command.arguments]
            if command.script in OF_SHAKESPEARE and "--data" not in words:
                words += ["--data", "shakespeare.txt"]
            ended = ok(cli(command.script, *words, env=command.environment))
        return course.Ran(ended.out, course.run_of(command, place), 0.0)

    return run


# The commands of all articles take minutes: in `make test` those of two, in CI all.
@pytest.mark.parametrize(
    "article", matrix(ARTICLES, lambda article: article.number in EVERYDAY), ids=lambda article: article.path.stem
)
def test_the_commands_run_give_their_figures_and_the_pictures_are_drawn(article, shortly, drawn, few_strings, tmp_path):
    ran = {each.key: shortly(each.lines, each.key) for each in article.experiments}
    for each in article.experiments:
        assert isinstance(course.figure_of(each, ran[each.key]), float)
    first, again = (course.draw(article.pictures, ran, tmp_path / name) for name in ("first", "again"))
    assert len(first) == len(article.pictures)
    for one, other in zip(first, again, strict=True):
        assert one.read_bytes() == other.read_bytes() and b"<svg" in one.read_bytes()[:1000]
        assert (PICTURES / one.name).exists(), f"run python -m docs.course: {one.name} was never drawn"
    known = {line for each in article.experiments for line in each.lines}
    for i, block in enumerate(
        re.findall(r"^```sh\n(.*?)^```", article.path.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    ):
        if others := [line for line in block.splitlines() if line not in known]:
            shortly([*known & {*block.splitlines()}, *others], f"block-{i}")


def test_a_picture_of_another_model_is_refused(cli):
    ok(cli("train.py", "--model", "mlp", "--steps", 2, "--batch-size", 2, "--eval-tokens", 200, "--out", "run"))
    refused(cli("-m docs.figures.gru_gates", "run"), "run is a mlp; this picture is of --model gru")
    refused(cli("-m docs.figures.embedding_plane", "run"), "the plane takes --n-embd 2")


def flags() -> set[str]:
    """Every flag that a command of this project has."""
    named = {name for cls in (Config, *TASKS.values()) for name in all_settings(cls)}
    found = {"--help", *(f"--{way}{name}" for name in named for way in ("", "no_"))}
    for path in [ROOT / "sample.py", *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]:
        source = path.read_text("utf-8")
        found |= {*re.findall(r'add_argument\(\s*"(--[\w-]+)"', source)}
        if "tyro.cli" in source:
            found |= {f"--{name}" for name in re.findall(r"^    (\w+): ", source, re.MULTILINE)}
    return {flag.replace("_", "-") for flag in found}


@each_article
def test_every_flag_exists(article):
    named = {*re.findall(r"(?<![\w-])--[a-z][\w-]*", article.path.read_text("utf-8"))}
    assert named <= flags()


def test_the_pages_are_up_to_date(capsys):
    assert fill.fill_pages(check=True) == 0, capsys.readouterr().out


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A small project: a source, and a page that shows it."""
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    for name in ("makemore", "docs"):
        (tmp_path / name).mkdir()
    (tmp_path / "makemore/cells.py").write_text(
        '"""Cells."""\n\nLIMIT = (\n    3\n)\n\n\nclass Cell:\n    size: int = 4  # wide\n\n'
        "    @property\n    def step(self):\n        return 1\n"
    )
    (tmp_path / "mkdocs.yml").write_text("nav:\n")
    (tmp_path / "docs/page.md").write_text(
        "Before.\n<!-- code makemore.cells:Cell.step makemore.cells:LIMIT makemore.cells:Cell.size -->\nold\n"
        "<!-- end -->\nAfter.\n"
    )
    return tmp_path


FILLED = """Before.
<!-- code makemore.cells:Cell.step makemore.cells:LIMIT makemore.cells:Cell.size -->

```python
# makemore/cells.py, Cell.step
@property
def step(self):
    return 1
```

```python
# makemore/cells.py
LIMIT = (
    3
)
```

```python
# makemore/cells.py, Cell.size
size: int = 4  # wide
```

<!-- end -->
After.
"""


def test_code_comes_from_the_source_and_one_changed_character_is_noticed(cli, project):
    page, source = project / "docs/page.md", project / "makemore/cells.py"
    assert cli("-m docs.fill", "--check").code == 1
    ok(cli("-m docs.fill"))
    assert page.read_text() == FILLED
    ok(cli("-m docs.fill", "--check"))
    source.write_text(source.read_text().replace("return 1", "return 2"))
    ended = cli("-m docs.fill", "--check")
    assert ended.code == 1 and "docs/page.md:2: <!-- code makemore.cells:Cell.step" in ended.out
    assert "run python -m docs.fill" in ended.out and page.read_text() == FILLED


@pytest.mark.parametrize(
    "block, words",
    [
        ("<!-- code makemore.cells:Cel -->\n<!-- end -->", ["docs/page.md:1", "makemore.cells has no 'Cel'", "'Cell'"]),
        ("<!-- code makemore.cells:Cell.no -->\n<!-- end -->", ["makemore.cells.Cell has no 'no'"]),
        ("<!-- code makemore.no:Cell -->\n<!-- end -->", ["makemore/no.py does not exist"]),
        ("<!-- code makemore.cells -->\n<!-- end -->", ["is not MODULE:NAME"]),
        ("<!-- code -->\n<!-- end -->", ["docs/page.md:1", "names nothing"]),
        ("<!-- coed makemore.cells:Cell -->\n<!-- end -->", ["no marker 'coed'", "Did you mean 'code'?"]),
        ("\n<!-- code makemore.cells:Cell -->\ntext", ["docs/page.md:2", "has no <!-- end --> after it"]),
        ("text\n<!-- end -->", ["docs/page.md:2", "an end without a block"]),
        ("<!-- code a:b -->\n<!-- code a:c -->\n<!-- end -->", ["docs/page.md:2", "stands inside the block of line 1"]),
        ("<!-- result no-such -->\n<!-- end -->", ["no experiment 'no-such'"]),
        ("<!-- flags textt -->\n<!-- end -->", ["no flags of 'textt'", "Did you mean 'text'?"]),
        ("<!-- api makemore.cells:Cell.step -->\n<!-- end -->", ["no function or class with a docstring"]),
    ],
)
def test_a_marker_that_is_wrong_is_refused_by_its_place(cli, project, block, words):
    (project / "docs/page.md").write_text(block)
    refused(cli("-m docs.fill"), *words)
    assert (project / "docs/page.md").read_text() == block


@given(st.text())
def test_a_text_without_blocks_stays_as_it_is(text):
    fenced = f"```md\n<!-- code no:name -->\n```\n{text}"
    assert fill.filled(fenced) == (fenced, [])


COINS = Experiment("coins", "python coins.py", r"^heads +(\d+) times", 1, 50, unit="heads", digits=0)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """`tiny(experiment)` makes it the only one of a course of one script, whose results are in `tmp_path`."""
    monkeypatch.setattr(results, "PATH", tmp_path / "results.json")
    for module in (sources, course):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "coins.py").write_text("print('heads 2 times')\nprint('heads 12 times')\n")

    def only(experiment: Experiment) -> None:
        module = SimpleNamespace(__name__="docs.experiments.tiny", EXPERIMENTS=[experiment], PICTURES=[])
        monkeypatch.setattr(experiments, "modules", lambda: [module])

    return only


def test_a_figure_in_its_interval_is_stored_and_said(tiny, tmp_path):
    tiny(COINS)
    ran, wrong = course.measure([COINS], tmp_path)
    assert not wrong and ran["coins"].seconds > 0
    result = results.read()["coins"]
    assert (result.value, result.low, result.high) == (12, 1, 50) and result.machine and result.commit
    assert "Measured: **12** heads; expected 1 to 50." in results.sentence("coins")
    assert "| `python coins.py` | **12** | 1 to 50 |" in results.table(["coins"])


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"low": 40}, "12 heads is not between 40 and 50"),
        ({"figure": r"^tails +(\d+)"}, "nothing in the output of"),
        ({"figure": "val_loss"}, "made no run"),
        ({"figure": r"^(heads)"}, "finds 'heads', which is no number"),
        ({"command": "python no_such.py"}, "ended with exit code 2"),
        ({"command": "train.py"}, "is no command of this project"),
    ],
)
def test_a_figure_outside_its_interval_makes_the_course_fail_and_stores_nothing(tiny, cli, changes, words):
    wanted = Experiment(**COINS.__dict__ | changes)
    tiny(wanted)
    ended = cli("-m docs.course")
    assert ended.code == 1 and "coins: " in ended.out and words in ended.out, ended.out + ended.err
    assert not results.PATH.exists()


def test_what_stands_in_a_line():
    command = command_of('TRITON_INTERPRET=1 python -m kernels --only "a b"  # why')
    assert command == Command({"TRITON_INTERPRET": "1"}, "-m kernels", ["--only", "a b"])
    assert shortened(command_of("python train.py"), 3).arguments[:2] == ["--steps", "3"]
    assert shortened(command_of("python train.py --model ngram"), 3).arguments == ["--model", "ngram"]
    for line in ("train.py", "python", "python -m", "pip install torch", ""):
        with pytest.raises(UserError, match="is no command of this project"):
            command_of(line)


@pytest.mark.parametrize(
    "value, bounds, words",
    [
        (12, (1, 50), "**12** heads; expected 1 to 50."),
        (2.5e-13, (0, 1e-9), "**2.5e-13** heads; expected 0 to 1e-09."),
        (0, (0, 1.25), "**0** heads; expected 0.00 to 1.25."),
    ],
)
def test_how_a_page_says_a_figure(tiny, value, bounds, words):
    wanted = Experiment(**COINS.__dict__ | dict(zip(("low", "high"), bounds, strict=True)))
    tiny(wanted)
    results.write({"coins": results.Result(value, *bounds, 21.6, "a machine", "abc")})
    assert results.sentence("coins") == f"Measured: {words} 22 s of CPU time on a machine, at commit abc."


def test_a_trial_writes_nothing(tiny, cli):
    tiny(COINS)
    ok(cli("-m docs.course", "--steps", 2))
    assert not results.PATH.exists()


def test_two_figures_of_the_same_commands_are_of_one_run(tiny, monkeypatch, tmp_path):
    (tmp_path / "coins.py").write_text("open('tosses', 'a').write('x'); print('heads 2 times, tails 3 times')\n")
    monkeypatch.setattr(results, "PATH", tmp_path / "results.json")
    tails = Experiment("tails", "python coins.py", r"tails (\d+)", 1, 50)
    module = SimpleNamespace(__name__="docs.experiments.tiny", EXPERIMENTS=[COINS, tails], PICTURES=[])
    monkeypatch.setattr(experiments, "modules", lambda: [module])
    course.measure([Experiment(**COINS.__dict__ | {"figure": r"heads (\d+)"}), tails], tmp_path)
    assert [path.read_text() for path in tmp_path.glob("*/tosses")] == ["x"]
    assert {key: result.value for key, result in results.read().items()} == {"coins": 2, "tails": 3}


def test_results_of_experiments_that_are_gone_go_too(tiny, tmp_path):
    assert results.read() == {}
    tiny(COINS)
    results.write({"bygone": results.Result(1, 0, 2, 1.0, "a machine", "abc")})
    course.measure([COINS], tmp_path)
    assert [*results.read()] == ["coins"]


def test_a_result_of_another_interval_is_refused(tiny, tmp_path):
    tiny(COINS)
    course.measure([COINS], tmp_path)
    tiny(Experiment(**COINS.__dict__ | {"high": 60}))
    with pytest.raises(UserError, match="another interval.*python -m docs.course --only coins"):
        results.sentence("coins")
