"""--go-on: whether the run in --out is to be started, gone on with, or complete."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

from data.json_files import check_schema
from engine.config.again import to_go_on
from engine.config.flags import settings_to_go_on
from engine.config.settings import flat, make, marked
from engine.resume import check_budget, offering_best, was_never_saved
from engine.run import checkpoint, folder, results
from engine.task import Task
from engine.training.budget import Budget
from engine.training.progress import Progress
from engine.training.state import TRAINER_FACTS
from makemore.config import Mark


class Decision(NamedTuple):
    """What to do, with which settings, of which `changed` are others than the run had, or have to be said again."""

    what: Literal["start", "resume", "nothing"]
    settings: dict[str, Any]
    changed: list[str]


def decide(task: Task, config: Any, explicit: set[str]) -> tuple[str, Any, set[str]]:
    """What to do with the run in `--out`, "start", "resume" or "nothing", with the configuration and the names of the
    flags given for it. The first process looks, and tells the others: a run may appear between two looks.

    Raises UserError where the command line is not that of the run."""
    what, settings, changed = task.ranks.tell(_look(task, config, explicit) if task.ranks.is_first else None)
    return what, make(type(config), settings), set(changed)


def is_unsaved(path: Path) -> bool:
    """Whether the run `path` was stopped before its first save, so that starting it once more loses nothing."""
    return (path / "config.json").is_file() and was_never_saved(path) and not results.read_summary(path)


def _look(task: Task, config: Any, explicit: set[str]) -> Decision:
    path = config.run.path
    start = Decision("start", flat(config), sorted(explicit))
    if not (path / "config.json").is_file():
        return start
    going, changed = to_go_on(config, explicit, settings_to_go_on(path, type(config)))
    if going.run.init and is_unsaved(path):
        return start  # the weights that it started from are not in it
    changed |= explicit & task.to_say_again(going)
    is_complete = _is_complete(task, path, going, changed)
    if is_complete and changed & marked(type(config), Mark.PLACE):  # the text lies elsewhere: is it the same?
        facts = folder.read_facts(path)
        task.read_again(going, changed, facts, folder.read_tokenizer(path, facts["vocab_size"]))
    return Decision("nothing" if is_complete else "resume", flat(going), sorted(changed))


def _is_complete(task: Task, path: Path, config: Any, changed: set[str]) -> bool:
    """Whether the run has used its steps or minutes, or its patience, and has reported what came of it. Raises
    UserError where `config` allows fewer than it has used."""
    summary = results.read_summary(path)
    if not summary or checkpoint.find(path / "last") is None:
        return False
    with offering_best(path):
        facts = checkpoint.load(path / "last", ())[1]
    if config.net.is_counted:
        return summary.get("steps") == facts.get("step") == 1
    check_schema(facts, TRAINER_FACTS, str(path / "last" / "facts.json"))
    progress = Progress(**facts["progress"])
    check_budget(path, progress, config, changed)
    has_ended = Budget(config.optim, progress).used >= 1 or progress.is_out_of_patience(config.optim.patience)
    is_reported = summary.get("steps") == progress.step and task.has_reported(summary)
    return has_ended and progress.evaluated == progress.step and is_reported
