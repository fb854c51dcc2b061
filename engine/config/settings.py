"""A configuration by the flat names of its settings, and what is noted of each; imports no torch.

A configuration is nested in the code (`config.optim.lr`) and flat outside: on the command line, and in the
`config.json` of a run.
"""

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, NamedTuple, TypeVar

from tyro.conf import Fixed

from data.errors import flag
from engine.config.families import FAMILIES
from engine.config.sections import Config
from makemore.config import Mark, ModelConfig, Range

Function = TypeVar("Function", bound=Callable[..., Any])


class Setting(NamedTuple):
    """One flag: which section it is in ("" for --model), its type, its marks and its range."""

    section: str
    type: Any
    marks: frozenset[Mark]
    range: Range | None
    default: Any


def cached(function: Function) -> Function:
    """`functools.cache` with the type of `function`: a checker takes the class of a dataclass for unhashable."""
    return functools.cache(function)  # type: ignore[return-value]


@cached
def sections(cls: type[Config], model: str) -> dict[str, type]:
    """The dataclass of each section of a `cls` whose family is `model`."""
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls) if field.name != "model"]
    return {name: _net(cls, model) if name == "net" else hints[name] for name in names}


def _net(cls: type[Config], model: str) -> type[ModelConfig]:
    """The dataclass of the family `model`, with what is fixed in a `cls` hidden from the command line."""
    net = FAMILIES[model].config
    hints = typing.get_type_hints(net, include_extras=True)
    fixed: Any = Fixed  # of a type that is known only now
    hidden = [(name, fixed[hints[name]], value) for name, value in cls.fixed.items() if name in hints]
    if not hidden:
        return net
    made = dataclasses.make_dataclass(net.__name__, hidden, bases=(net,))
    made.__doc__ = net.__doc__  # else a dataclass has its signature there, and --help shows it
    return made


def without_rare(cls: Any, config: Any) -> tuple[Any, Any]:
    """`cls`, a Config of a family, and `config`, one of it, with the settings marked RARE hidden from the command
    line."""
    fixed: Any = Fixed  # of a type that is known only now
    shown, kept = {}, {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    for name, section in kept.items():
        if not dataclasses.is_dataclass(section):
            continue
        hints = typing.get_type_hints(type(section), include_extras=True)
        notes = {
            each: typing.get_args(hint)[1:] for each, hint in hints.items() if typing.get_origin(hint) is Annotated
        }
        hidden = [(each, fixed[hints[each]], getattr(section, each)) for each in notes if Mark.RARE in notes[each]]
        if hidden:
            shown[name] = dataclasses.make_dataclass(type(section).__name__, hidden, bases=(type(section),))
            shown[name].__doc__ = type(section).__doc__
            kept[name] = shown[name](**vars(section))
    made = dataclasses.make_dataclass(type(config).__name__, [*shown.items()], bases=(cls,))
    made.__doc__ = type(config).__doc__
    return made, made(**kept)


@cached
def settings(cls: type[Config], model: str) -> dict[str, Setting]:
    """All flags of a `cls` whose family is `model`, by name."""
    found = {"model": Setting("", str, frozenset(), None, model)}
    for section, section_class in sections(cls, model).items():
        hints = typing.get_type_hints(section_class, include_extras=True)
        for field in dataclasses.fields(section_class):
            found[field.name] = _setting(section, hints[field.name], field.default)
    return found


def _setting(section: str, hint: Any, default: Any) -> Setting:
    notes: tuple[Any, ...] = ()
    while typing.get_origin(hint) is Annotated:
        hint, *more = typing.get_args(hint)
        notes += tuple(more)
    marks = frozenset(note for note in notes if isinstance(note, Mark))
    limits = next((note for note in notes if isinstance(note, Range)), None)
    return Setting(section, hint, marks, limits, default)


@cached
def all_settings(cls: type[Config]) -> dict[str, Setting]:
    """The flags of a `cls` of any family."""
    return {name: setting for model in FAMILIES for name, setting in settings(cls, model).items()}


def marked(cls: type[Config], *marks: Mark) -> set[str]:
    """The names of the flags that have one of these marks."""
    return {name for name, setting in all_settings(cls).items() if setting.marks & set(marks)}


def gradient_only(cls: type[Config]) -> set[str]:
    """The flags that a model that counts has no use for."""
    return {name for name, setting in all_settings(cls).items() if setting.section == "optim"} | marked(
        cls, Mark.TRAINING
    )


def shape(cls: type[Config]) -> set[str]:
    """The flags that make a model what it is: --init takes these over."""
    of_net = {n for n, s in all_settings(cls).items() if s.section == "net" and Mark.OWN not in s.marks}
    return {"model", "tokenizer", "bpe_sample"} | of_net | marked(cls, Mark.SHAPE)


def make(cls: type[Config], values: dict[str, Any]) -> Any:
    """A `cls` of these flat values; defaults for the others. Values that its family has no use for are left out."""
    model = values.get("model", "transformer")
    parts = {}
    for name, section in sections(cls, model).items():
        parts[name] = section(**{f.name: values[f.name] for f in dataclasses.fields(section) if f.name in values})
    return cls(model=model, **parts)


def _parts(config: Config) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(config):
        if field.name != "model":
            yield field.name, getattr(config, field.name)


def flat(config: Config) -> dict[str, Any]:
    """All settings by their names."""
    values: dict[str, Any] = {"model": config.model}
    for _, part in _parts(config):
        values |= {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    return values


def get(config: Config, name: str) -> Any:
    """One setting by its name; AttributeError where the family has none of it."""
    for _, part in _parts(config):
        if hasattr(part, name):
            return getattr(part, name)
    return getattr(config, name)


def replace(config: Any, **changes: Any) -> Any:
    """`config` with other values for some settings; those that its family has not are left out."""
    assert not (unknown := changes.keys() - all_settings(type(config)).keys() - all_settings(Config).keys()), unknown
    parts = {}
    for name, part in _parts(config):
        own = {field.name for field in dataclasses.fields(part)} & changes.keys()
        parts[name] = dataclasses.replace(part, **{n: changes[n] for n in own})
    return dataclasses.replace(config, **parts)


def stored(config: Config) -> dict[str, Any]:
    """What a run keeps of its configuration."""
    about_call = marked(type(config), Mark.CALL)
    return {name: value for name, value in flat(config).items() if name not in about_call}


def flags(names: Iterable[str]) -> str:
    """Names as the command line spells them: 'n_layer' -> '--n-layer'."""
    return ", ".join(flag(name) for name in names)
