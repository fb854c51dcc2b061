"""The command line into a configuration, over layers of defaults, with the names of the flags given. No torch."""

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError, flag, nearest
from data.json_files import read_json
from data.program import command
from data.sources import DATA_SETS, TOKENIZERS, data_set
from engine.config import presets
from engine.config.checks import check_mode, check_stored, check_values, refuse_foreign
from engine.config.families import FAMILIES
from engine.config.sections import OPTIMIZERS, SCHEDULES, Config
from engine.config.settings import all_settings, make, marked, sections, settings, shape, without_rare
from engine.run.folder import command_of, read_facts, task_of
from makemore.config import Mark
from nanogpt import pretrained


@dataclass
class First:
    """What the defaults of everything else depend on."""

    model: str | None = None
    data: str | list[str] | None = None
    kind: str | None = None
    init: str | None = None
    config: str | None = None
    preset: str | None = None
    optimizer: str | None = None
    schedule: str | None = None
    out: str | None = None


def parse(argv: list[str], cls: type[Config] = Config, prog: str = "") -> tuple[Any, set[str]]:
    """The configuration that `argv` asks for, a `cls`, and the names of the flags given. `--help` and unknown flags
    leave the process (codes 0 and 2); every other mistake is a UserError."""
    import tyro

    prog = prog or command(cls.program)
    known = all_settings(Config).keys() | all_settings(cls).keys()
    explicit = {name for word in argv if (name := _flag_name(word, known)) in known}
    first, _ = tyro.cli(First, args=argv, prog=prog, return_unknown_args=True, add_help=False)
    values = _defaults(first, argv, explicit, cls)
    model = values["model"]
    refuse_foreign((explicit - settings(cls, model).keys()) | (explicit & cls.fixed.keys()), cls, model, prog)
    family: Any = cls[sections(cls, model)["net"]]  # type: ignore[index]  # known only now
    default = make(cls, values)
    if {"-h", "--help"} & {*argv} and not explicit & marked(cls, Mark.RARE) and values.get("kind") != "series":
        family, default = without_rare(family, default)
    config = tyro.cli(
        family,
        args=argv,
        default=default,
        prog=prog,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.SuppressFixed),
    )
    check_values(config)
    check_mode(config, explicit)
    config.check(explicit)
    return config, explicit


def config_of(folder: Path, cls: type[Config] = Config) -> Any:
    """The configuration of the run in `folder`, read as a `cls`."""
    config = make(cls, run_settings(folder, cls))
    with _of_file(folder / "config.json"):
        config.check(set())
    return config


@contextlib.contextmanager
def _of_file(path: Path) -> Iterator[None]:
    """Inside, a mistake in a setting is a mistake in `path`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from error


def run_settings(folder: Path, cls: type[Config] = Config) -> dict[str, Any]:
    """The settings of the run in `folder` that a `cls` has. Raises UserError for what a run cannot have."""
    path = folder / "config.json"
    facts = read_facts(folder)
    task = task_of(facts)
    if task != cls.task and "labels" in facts.get(task or "", {}):
        raise UserError(f"{folder} labels texts: it is for {command_of(facts)}")
    if task != cls.task and facts.get(task or "", {}).get("needs_source"):
        raise UserError(f"{folder} writes a text only after another one, its source: it is for {command_of(facts)}")
    values = facts["config"]
    if task is not None and cls.task is None:  # its model is a language model like any other
        values = {name: value for name, value in values.items() if name in all_settings(cls)}
    found = _without_call(check_stored(values, str(path), cls), cls)
    if missing := [name for name in ("model", "kind", "context") if found.get(name) is None]:
        raise UserError(f"{path} is damaged: it does not say the {' and the '.join(missing)} of the run")
    with _of_file(path):
        check_values(make(cls, found))
    return found


def _defaults(first: First, argv: list[str], explicit: set[str], cls: type[Config]) -> dict[str, Any]:
    """The defaults of this command line, from the general to the particular: family, kind of text, the optimizer of
    --init's run, task, optimizer, preset, --config; of a run that goes on, all that it was; of one that starts from
    another, that one's model."""
    switches = _switches(argv, explicit, cls)
    if any(switches.get(name, True) for name in explicit & marked(cls, Mark.USES_RUN)):
        of_run = settings_to_go_on(Path(first.out), cls) if first.out else {}
        return {"model": "transformer"} | of_run | steps_of_minutes(explicit, of_run)
    file = read_file(first.config, cls) if first.config else {}
    start: presets.Defaults = {}
    said = {name: value for name in ("model", "data", "init") if (value := getattr(first, name)) is not None}
    wanted = file | said | switches
    if cls.no_init is not None and wanted.get("init") == cls.no_init:
        wanted.pop("init", None)
    if init := wanted.get("init"):
        own = Path(first.out) if switches.get("go_on") and first.out else None
        if own and not place_of_parent(init).exists() and (own / "config.json").exists():
            parent = run_settings(own, cls)  # the run that goes on has its parent's shape, and needs it no more
        else:
            parent = settings_of_parent(init, cls)
        of_parent = {name: parent[name] for name in shape(cls) - cls.fixed.keys() if name in parent}
        start = {"optimizer": parent.get("optimizer", "adamw")}  # what AdamW has trained is no start for Muon
        if first.preset in presets.TRANSFORMERS:
            raise UserError(
                f"--preset {first.preset} sets a model's parts, and --init {init} brings its own; leave one out"
            )
        file, wanted = file | of_parent, wanted | of_parent | said
    of_task = cls.usual(wanted)
    base = {"model": "transformer", "data": "names", "kind": None} | of_task | file
    model = _one_of(said.get("model") or base["model"], tuple(FAMILIES), "model")
    of_preset = presets.preset(_one_of(first.preset, presets.PRESETS, "preset"), model) if first.preset else {}
    data = said.get("data") or (base | of_preset | file)["data"]
    source = (data or [""])[0] if isinstance(data, list) else data
    name = data_set(source) or ""
    usual_kind = "documents" if "text_column" in explicit and cls.task is None else DATA_SETS.get(name, "stream")
    kind = first.kind or base["kind"] or usual_kind
    of_text: presets.Defaults = {"tokenizer": TOKENIZERS[name]} if name in TOKENIZERS and cls.task is None else {}
    usual = {"optimizer": "adamw"} | presets.FAMILY[model] | start | of_task | of_preset | file
    optimizer = _one_of(first.optimizer or usual["optimizer"], OPTIMIZERS, "optimizer")
    _one_of(first.schedule or "cosine", SCHEDULES, "schedule")  # a better message than the parser's
    layers = [
        presets.FAMILY[model],
        *presets.of_kind(kind, model),
        of_text,
        start,
        of_task,
        presets.OPTIMIZER[optimizer],
    ]
    values: dict[str, Any] = {}
    for layer in [*layers, of_preset, file]:
        values |= layer
    values["model"] = model
    if file.get("minutes") and "steps" not in file:
        values["steps"] = None
    return values | steps_of_minutes(explicit, file)


def place_of_parent(init: str) -> Path:
    """The folder that `--init` names."""
    return pretrained.folder_of(init) or Path(init)


def settings_of_parent(init: str, cls: type[Config]) -> dict[str, Any]:
    """The settings of the run, or of the GPT-2, that `--init` names, for a `cls`."""
    if cls.own_parents:
        return settings_to_go_on(Path(init), cls)
    weights = pretrained.folder_of(init)
    return pretrained.read_settings(weights) if weights else run_settings(Path(init))


def _switches(argv: list[str], explicit: set[str], cls: type[Config]) -> dict[str, bool]:
    """The flags given that are either on or off."""
    known, words = all_settings(cls), {word.replace("_", "-") for word in argv}
    return {n: flag(n) in words for n in explicit if n in known and known[n].type is bool}


def steps_of_minutes(explicit: Collection[str], before: dict[str, Any]) -> presets.Defaults:
    """No limit of steps where `--minutes` is given for the first time: it alone ends the training then."""
    return {"steps": None} if "minutes" in explicit and before.get("minutes") is None else {}


def settings_to_go_on(folder: Path, cls: type[Config]) -> dict[str, Any]:
    """The settings of a run that --resume and the like work on: it has to be of the same command."""
    facts = read_facts(folder)
    task = task_of(facts)
    if task != cls.task:
        if cls.task is not None:
            for_what = f"; it is for {command_of(facts)}"
            way_out = for_what if cls.own_parents else f"; start one from it with --init {folder}"
            raise UserError(f"{folder} is not a run of {command(cls.program)}{way_out}")
        assert task is not None  # `cls.task` is, and this is another
        if "labels" in facts[task]:
            return run_settings(folder, cls)  # which says so
        raise UserError(f"{folder} is a run of another task: go on with it by {command_of(facts)}")
    return run_settings(folder, cls)


def _flag_name(word: str, names: set[str]) -> str:
    """The setting that a word of the command line sets: '--n-layer=3' and '--no-bias' give 'n_layer' and 'bias'."""
    if not word.startswith("--"):
        return ""
    name = word[2:].split("=")[0].replace("-", "_")
    return name if name in names else name.removeprefix("no_")


def _one_of(value: str, choices: tuple[str, ...], what: str) -> str:
    if value not in choices:
        raise UserError(f"unknown {what} '{value}'; there are: {', '.join(choices)}.{nearest(value, choices)}")
    return value


def read_file(path: str, cls: type[Config]) -> dict[str, Any]:
    """The settings in the file that `--config` names."""
    try:
        read = read_json(Path(path))
    except UserError as error:
        raise UserError(f"--config {path}: {error}") from error
    values = read.get("config", read) if isinstance(read, dict) else None
    return _without_call(check_stored(values, path, cls), cls)


def _without_call(values: dict[str, Any], cls: type[Config]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in marked(cls, Mark.CALL)}
