"""--go-on: what a command line says, and the configuration with which the run in --out goes on; imports no torch.

The line begins the run and goes on with it. Whatever it says, by flags, --preset, --config or --init, has to be what
the run has, or something that --resume may change.
"""

from typing import Any

from engine.config import presets
from engine.config.checks import check_values, refuse_contradictions, with_defaults
from engine.config.flags import place_of_parent, read_file, settings_of_parent, steps_of_minutes
from engine.config.settings import all_settings, flat, make, marked, settings, shape
from makemore.config import Mark


def to_go_on(config: Any, explicit: set[str], kept: dict[str, Any]) -> tuple[Any, set[str]]:
    """The configuration with which the run of settings `kept` goes on, and the names of what it changes, where `config`
    is what the command line would begin. Raises UserError where they contradict each other."""
    cls, line = type(config), flat(config)
    sources = _sources(config)
    said = {name for name in {*explicit, *sources, *cls.apart} if name in line} - marked(cls, Mark.CALL)
    before = with_defaults(config, kept)
    said = {
        name for name in said if not _is_settled(name, line[name], cls) or (name in explicit and line[name] != "auto")
    }
    free = marked(cls, Mark.RESUMABLE, Mark.PLACE)
    refuse_contradictions(config, said, kept, free, "--go-on", {n: s for n, s in sources.items() if n not in explicit})
    limits = steps_of_minutes({name for name in said if line[name] is not None}, kept)
    if line["grad_accum"] == "auto":
        said.discard("batch_size")  # that of a step, which the run has cut
    values = kept | limits | {name: line[name] for name in said}
    going = make(cls, values | {"out": config.run.out, "resume": True})
    check_values(going)
    going.check(set())
    return going, {name for name in said if line[name] != before.get(name)}


def _sources(config: Any) -> dict[str, str]:
    """The settings that --preset, --config and --init give, each with these words."""
    cls, run = type(config), config.run
    found: dict[str, str] = {}
    if run.preset:
        found |= dict.fromkeys(presets.preset(run.preset, config.model), f"--preset {run.preset}")
    if run.config:
        found |= dict.fromkeys(read_file(run.config, cls), f"--config {run.config}")
    if run.init and place_of_parent(run.init).exists():
        # How much of a text a tuned model reads may be another than its parent's.
        parent = settings_of_parent(run.init, cls).keys() & shape(cls) - cls.fixed.keys()
        found |= dict.fromkeys(parent, f"--init {run.init}")
        found.pop("context", None)
    return {name: source for name, source in found.items() if name in settings(cls, config.model)}


def _is_settled(name: str, value: Any, cls: type) -> bool:
    """Whether a run has another value than this in the end, which followed its data."""
    return Mark.SETTLED in all_settings(cls)[name].marks and (value is None or value is True or value == "auto")
