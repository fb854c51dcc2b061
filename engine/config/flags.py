"""The command line into a `Config`, over layers of defaults, with the names of the flags given. Imports no torch."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data.errors import UserError, nearest
from data.json_files import read_json
from data.sources import DATA_SETS
from engine.config import presets
from engine.config.checks import check_mode, check_stored, check_values
from engine.config.sections import CALL_ONLY, MODEL_FIELDS, MODELS, SCHEDULES, TASKS, USES_RUN, Config
from engine.run.folder import read_facts
from nanogpt import pretrained


def parse(
    argv: list[str],
    kind: type[Config] = Config,
    prog: str = "train.py",
    defaults: Callable[[presets.Defaults], presets.Defaults] = lambda wanted: {},
) -> tuple[Config, set[str]]:
    """The configuration that `argv` asks for and the names of the flags given. `--help` and unknown flags leave the
    process (codes 0 and 2); every other mistake is a UserError.

    Another command of the suite has more flags, in a `kind` of its own, and defaults of its own: `defaults` makes them
    from what the command line and its --config say of the model, the data and what to start from."""
    import tyro

    names = {field.name for field in dataclasses.fields(kind)}
    given = {name for word in argv if (name := _flag_name(word, names)) in names}
    config = tyro.cli(
        kind,
        args=argv,
        default=kind(**_defaults(argv, given, kind, defaults)),
        prog=prog,
        config=(tyro.conf.SuppressFixed,),
    )
    check_values(config)
    check_mode(config, given)
    return config, given


def stored(config: Config) -> dict[str, Any]:
    """What a run keeps of its configuration."""
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in CALL_ONLY}


def config_of(
    folder: Path, kind: type[Config] = Config, check: Callable[[Config, set[str]], None] = lambda config, given: None
) -> Config:
    """The configuration of the run in `folder`; `check` is what another command asks of its own flags besides."""
    config = kind(**run_settings(folder, kind))
    with _of_file(folder / "config.json"):
        check(config, set())
    return config


@contextlib.contextmanager
def _of_file(path: Path) -> Iterator[None]:
    """Inside, a mistake in a setting is a mistake in `path`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from error


def run_settings(folder: Path, kind: type[Config] = Config) -> dict[str, Any]:
    """The settings of the run in `folder` that a `kind` has. Raises UserError for what a run cannot have."""
    path = folder / "config.json"
    facts = read_facts(folder)
    if kind is Config and "classify" in facts:
        raise UserError(
            f"{folder} labels texts: it is for python -m finetune.classify, with --out, --resume or --predict"
        )
    values = facts["config"]
    if kind is Config and "instruct" in facts:  # its model is a language model like any other
        values = {field.name: values[field.name] for field in dataclasses.fields(Config) if field.name in values}
    settings = _stored_settings(values, str(path), kind)
    if missing := [name for name in ("model", "kind", "context") if settings.get(name) is None]:
        raise UserError(f"{path} is damaged: it does not say the {' and the '.join(missing)} of the run")
    with _of_file(path):
        check_values(kind(**settings))
    return settings


def _defaults(
    argv: list[str],
    given: set[str],
    kind: type[Config],
    defaults: Callable[[presets.Defaults], presets.Defaults],
) -> dict[str, Any]:
    """The defaults of this command line, from the general to the particular: family, text, optimizer, preset, file; of
    a run that goes on, all that it was; of one that starts from another, that one's model."""
    if given & USES_RUN:
        settings = _settings_to_go_on(Path(out), kind) if (out := _peek(argv, "out")) else {}
        return settings | _steps_of_minutes(given, settings)
    file = _read_file(path, kind) if (path := _peek(argv, "config")) else {}
    name = _peek(argv, "preset")
    start: presets.Defaults = {}
    said = {name: value for name in ("model", "data", "init") if (value := _peek(argv, name))}
    wanted = file | said | {name: f"--{name}" in argv for name in given & {"dpo"}}
    if wanted.get("init") == "scratch":
        del wanted["init"]
    if init := wanted.get("init"):
        folder = pretrained.folder_of(init)
        parent = pretrained.read_settings(folder) if folder else run_settings(Path(init))
        taken = MODEL_FIELDS - {"mix_ngram"} if kind.task else MODEL_FIELDS  # fine-tuning leaves its counts behind
        of_parent = {name: value for name, value in parent.items() if name in taken}
        start = {"optimizer": parent.get("optimizer", "adamw")}  # what AdamW has trained is no start for Muon
        if name in presets.TRANSFORMERS:
            raise UserError(f"--preset {name} sets a model's parts, and --init {init} brings its own; leave one out")
        file, wanted = file | of_parent, wanted | of_parent | said
    layer = defaults(wanted)
    base = {"model": "transformer", "data": "names", "kind": None} | layer | file
    model = _one_of(said.get("model") or base["model"], MODELS, "model")
    data = said.get("data") or base["data"]
    first = data[0] if isinstance(data, list) and data else data
    usual_kind = "documents" if "text_column" in given and not kind.task else DATA_SETS.get(first, "stream")
    text = _peek(argv, "kind") or base["kind"] or usual_kind
    named = presets.preset(_one_of(name, presets.PRESETS, "preset"), model) if name else {}
    usual = {"optimizer": "adamw"} | presets.FAMILY[model] | start | layer | named | file
    optimizer = _one_of(_peek(argv, "optimizer") or usual["optimizer"], tuple(presets.OPTIMIZER), "optimizer")
    _one_of(_peek(argv, "schedule") or "cosine", SCHEDULES, "schedule")
    layers = [{"model": model}, presets.FAMILY[model]]
    if text == "stream":
        layers += [{"steps": 2000, "context": presets.STREAM_CONTEXT}, presets.STREAM[model]]
    elif text == "documents":
        layers += [{"steps": 2000}, presets.STREAM[model]]
    else:
        layers.append(presets.LINES)
    layers += [start, layer | {"model": model}, presets.OPTIMIZER[optimizer], named]
    settings = {name: value for layer in (*layers, file) for name, value in layer.items()}
    if file.get("minutes") and "steps" not in file:
        settings["steps"] = None
    return settings | _steps_of_minutes(given, file)


def _steps_of_minutes(given: set[str], before: dict[str, Any]) -> presets.Defaults:
    """No limit of steps where `--minutes` is given for the first time: it alone ends the training then."""
    return {"steps": None} if "minutes" in given and before.get("minutes") is None else {}


def _settings_to_go_on(folder: Path, kind: type[Config]) -> dict[str, Any]:
    """The settings of a run that --resume and the like work on: it has to be of the same command."""
    facts = read_facts(folder)
    if (task := next((task for task in TASKS if task in facts), None)) != kind.task:
        if kind.task:
            raise UserError(f"{folder} is not a run of finetune.{kind.task}; start one from it with --init {folder}")
        if task != "classify":  # which has a message of its own
            raise UserError(f"{folder} is a run of finetune.{task}: go on with it by python -m finetune.{task}")
    return run_settings(folder, kind)


def _flag_name(word: str, names: set[str]) -> str:
    """The field that a word of the command line sets: '--n-layer=3' and '--no-bias' give 'n_layer' and 'bias'."""
    if not word.startswith("--"):
        return ""
    name = word[2:].split("=")[0].replace("-", "_")
    return name if name in names else name.removeprefix("no_")


def _peek(argv: list[str], name: str) -> str | None:
    """The value of a flag, of several the first, before the real parsing: defaults depend on it."""
    found = None
    for word, following in itertools.zip_longest(argv, argv[1:]):
        if _flag_name(word, {name}) == name:
            found = word.split("=", 1)[1] if "=" in word else following
    return found


def _one_of(value: str, choices: tuple[str, ...], what: str) -> str:
    if value not in choices:
        raise UserError(f"unknown {what} '{value}'; there are: {', '.join(choices)}.{nearest(value, choices)}")
    return value


def _read_file(path: str, kind: type[Config]) -> dict[str, Any]:
    try:
        read = read_json(Path(path))
    except UserError as error:
        raise UserError(f"--config {path}: {error}") from error
    return _stored_settings(read.get("config", read) if isinstance(read, dict) else None, path, kind)


def _stored_settings(values: Any, where: str, kind: type[Config]) -> dict[str, Any]:
    return {name: value for name, value in check_stored(values, where, kind).items() if name not in CALL_ONLY}
