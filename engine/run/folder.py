"""The run directory on disk: creating, locking, describing and finding it. Imports no torch.

runs/<name>/  config.json  tokenizer.json  metrics.jsonl  summary.json  samples.txt  loss.png
              best/  model.safetensors
              last/  model.safetensors  trainer.safetensors
              lock   while a process writes into it
"""

import contextlib
import json
import secrets
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data.disk import remove, replace_file
from data.errors import FULL, UserError, flag
from data.json_files import Whole, as_stored, check_schema, read_json
from data.locks import hold
from data.program import command, recorded, spoken
from data.tokenizers import Tokenizer
from data.vocabulary import from_json

RUNS = Path("runs")
LOCK = "lock"
FORMATS = {
    1: "the first one",
    2: "checkpoints say which settings, tokenizer and labels they belong to (engine/run/identity.py)",
    3: "optimizer state by parameter name (engine/training/state.py); config.json has its family's settings alone",
    4: "dropout follows from the seed, the step and the micro-batch (engine/training/trainer.py); the order of a "
    "large epoch is computed (data/orders.py)",
    5: "training takes the fused ways of makemore/, which give other last bits (`LanguageModel.fused`)",
}
FORMAT = max(FORMATS)  # of a new run; older ones are read for ever
DRAWS_BY_STEP = COMPUTES_ORDER = 4  # a run of an older format goes on as it did, and is not rewritten as one of this
FUSES = 5
MAX_VOCABULARY = 1 << 24
_FACTS = {
    "format": Whole(1),
    "id?": str,  # random, since format 2
    "config": dict,
    "data": {"key": str, "folder": str, "name": str, "start": str, "series?": dict},
    "vocab_size": Whole(1, MAX_VOCABULARY),
    "command?": str,  # what made it
}
OF_EVERY_RUN = ("format", "id", "config", "data", "vocab_size", "command")  # what else is there is the run's task
_DESCRIPTION = {LOCK, "tokenizer.json", "tokenizer.json.new", "config.json.new"}  # written before config.json
_OURS = (
    LOCK, "config.json", "tokenizer.json", "metrics.jsonl", "summary.json", "samples.txt", "loss.png", "confusion.png",
    "generations.jsonl", "trace.json.gz", "tensorboard", "base", "best", "best.new", "best.old",
    "last", "last.new", "last.old",
)  # fmt: skip


@contextlib.contextmanager
def create(
    out: str | None,
    overwrite: bool | Callable[[Path], bool],
    config: dict[str, Any],
    tokenizer: Tokenizer,
    data: dict[str, Any],
    made_by: str = recorded("train"),
    can_resume: bool = True,
    **task: Any,
) -> Iterator[Path]:
    """A context with the directory of a new run, which is created, described and locked. Replaces a run only with
    `overwrite`, or where that says so of its folder.

    `data`: the key, name, cache folder and start text of the prepared text, and the scale of a series; `task`, by its
    name, what a run is for besides being a language model; `made_by` the command that does, as config.json has it, and
    whether that has --resume."""
    folder = Path(out) if out else RUNS
    try:
        if not out:
            folder = _make_next_free("-".join([*task, config["model"], data["name"]]))
        _check_free(folder, overwrite, can_resume)
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(writing(folder))
            _check_free(folder, overwrite, can_resume)  # another process may have been faster
            _clear(folder)
            _describe(folder, config, tokenizer, data, {"command": made_by, **task})
            locked = stack.pop_all()
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()  # where it is empty
        if error.errno in FULL:
            raise
        raise UserError(f"cannot make the run directory {folder}: {error.strerror}; choose another --out") from error
    with locked:
        yield folder


def writing(folder: Path) -> contextlib.AbstractContextManager[None]:
    """A context with the lock of the run `folder`: one process writes into it at a time. Raises UserError with the
    holder."""
    return hold(folder / LOCK, f"the run {folder}")


def _describe(
    folder: Path, config: dict[str, Any], tokenizer: Tokenizer, data: dict[str, Any], task: dict[str, Any]
) -> None:
    """Write `tokenizer.json` and `config.json` of a new run, and read them back: a run that cannot be read must not
    begin."""
    facts = {"format": FORMAT, "id": secrets.token_hex(8), "config": config, "data": data}
    facts |= {"vocab_size": tokenizer.vocab_size, **task}
    try:
        replace_file(folder / "tokenizer.json", json.dumps(tokenizer.to_json()).encode())
        write_facts(folder, facts)
    except BaseException:  # a full disk, Ctrl-C: leave no incomplete run
        _clear(folder)
        raise
    read_back = read_tokenizer(folder, tokenizer.vocab_size).to_json(), read_facts(folder)
    if read_back != (tokenizer.to_json(), as_stored(facts)):
        raise RuntimeError(f"{folder} does not say what was written into it")


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Replace `config.json`. A run of format 1 or 2 becomes one of format 3, the last that trains as it does."""
    written = max(facts["format"], DRAWS_BY_STEP - 1)
    replace_file(folder / "config.json", json.dumps(facts | {"format": written}, indent=1).encode())


def read_facts(folder: Path) -> dict[str, Any]:
    """The content of `config.json` of a run: `config`, `data`, `vocab_size` and so on. Raises UserError where there is
    no run, or one that cannot be read."""
    path = folder / "config.json"
    try:
        is_there, has_file = folder.is_dir(), path.is_file()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not is_there:
        raise UserError(f"no run directory {folder}{_suggest()}")
    if not has_file:
        raise UserError(f"{folder} is not a run directory: it has no config.json")
    facts = read_json(path, {"format": Whole(1)})
    if facts["format"] > FORMAT:
        raise UserError(f"{path} has format {facts['format']}; this version reads up to {FORMAT}: take a newer one")
    check_schema(facts, _FACTS | {name: dict for name in facts if name not in OF_EVERY_RUN}, str(path))
    if Path(facts["data"]["folder"]).name != facts["data"]["folder"] or facts["data"]["folder"] == "..":
        raise UserError(f"{path} is damaged: data.folder is no name of a folder in the cache")
    return facts


def task_of(facts: dict[str, Any]) -> str | None:
    """The task of a fine-tuned run, which is the name of its own entry in `facts`; None for a language model."""
    return next((name for name in facts if name not in OF_EVERY_RUN), None)


def command_of(facts: dict[str, Any]) -> str:
    """The command that a run is for, as far as it says so: those of old formats do not."""
    return spoken(facts.get("command", "the command that made it"))


def read_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer of a run, which has to have `vocab_size` ids. Raises UserError with the file."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{path} is missing")
    stored = read_json(path)
    try:
        tokenizer = from_json(stored)
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if tokenizer.vocab_size != vocab_size:
        raise UserError(f"{path} has {tokenizer.vocab_size} ids, config.json {vocab_size}")
    return tokenizer


def sample_command(folder: Path) -> str:
    """The command that samples from this run."""
    return f"{command('sample')} {shlex.quote(str(folder))}"


def forecast_command(folder: Path) -> str:
    """The command that forecasts with this run."""
    return f"{command('forecast')} {shlex.quote(str(folder))}"


def resume_command(folder: Path, program: str = "train", **settings: Any) -> str:
    """The command that resumes this run, with these settings."""
    words = [f"{flag(name)} {shlex.quote(str(value))}" for name, value in settings.items()]
    return " ".join([f"{command(program)} --resume --out {shlex.quote(str(folder))}", *words])


def _make_next_free(base: str) -> Path:
    """The first free directory of runs/<base>-1, -2, ..., created here, so that two processes never get the same."""
    name = "".join(c if c.isalnum() or c in "._" else "-" for c in base)[:80]
    RUNS.mkdir(exist_ok=True)
    n = 1
    while True:
        folder = RUNS / f"{name}-{n}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            n += 1


def _check_free(folder: Path, overwrite: bool | Callable[[Path], bool], can_resume: bool) -> None:
    """Raise UserError where `folder` is not free for a new run: it exists, and may not be overwritten."""
    if not folder.is_dir():
        is_free = not folder.exists()
    else:
        names = {path.name for path in folder.iterdir()}
        was_killed = LOCK in names and names <= _DESCRIPTION  # a start that was killed while it described its run
        is_free = names <= {LOCK} or was_killed
    if is_free:
        return
    if not (overwrite(folder) if callable(overwrite) else overwrite):
        go_on = "--resume to go on with it, " if can_resume else ""
        raise UserError(f"{folder} already exists; use {go_on}--overwrite, or another --out")
    is_run = folder.is_dir() and (
        (folder / "config.json").is_file() or {path.name for path in folder.iterdir()} <= _names()
    )
    if not is_run:
        raise UserError(f"{folder} is not a run directory: --overwrite does not touch it; choose another --out")


def _names() -> set[str]:
    """The names of all files and folders that a run may have, leftovers of a crash included."""
    return {name + end for name in _OURS for end in ("", ".new")}


def _clear(folder: Path) -> None:
    """Remove the files of a run, and nothing else; `config.json` last, so that a kill in between leaves a run that can
    be overwritten."""
    for name in sorted(_names() - {LOCK}, key=lambda name: name == "config.json"):
        remove(folder / name)


def _suggest() -> str:
    if RUNS.is_dir() and (names := sorted(str(path) for path in RUNS.iterdir() if (path / "config.json").is_file())):
        return f"; there are: {', '.join(names[-5:])}"
    return ""
