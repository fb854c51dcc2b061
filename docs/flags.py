"""Tables of flags for the reference page, from the dataclasses that the command lines are read into. No torch."""

import ast
import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from tyro.conf import Fixed

import sample
from data.errors import UserError, flag, nearest
from docs.sources import file_of, members, parsed
from engine.config.families import FAMILIES
from engine.config.flags import parse
from engine.config.sections import Config
from engine.config.settings import flat, sections
from finetune.classify.options import ClassifyConfig
from finetune.instruct.options import InstructConfig
from finetune.translate.options import TranslateConfig
from makemore.scratch.options import NumPyConfig

TASKS: dict[str, type[Config]] = {
    "classify": ClassifyConfig, "instruct": InstructConfig, "translate": TranslateConfig, "scratch": NumPyConfig,
}  # fmt: skip
SECTIONS = ("text", "optim", "machine", "run")  # of every family
FIXED = typing.get_args(Fixed[int])[1]


@dataclass(frozen=True)
class Row:
    """A flag: its name, type, default and help."""

    name: str
    hint: Any
    default: Any
    help: str


def table(names: list[str]) -> str:
    """The flags of a section of train.py (text, optim, machine, run), of a family, of what a task has besides, or of
    sample.py; several names make one table."""
    rows = [row for name in names for row in _rows(name)]
    lines = [f"| {_spelled(row)} | {_default(row.default)} | {_meaning(row)} |" for row in rows]
    return "\n".join(["| flag | default | meaning |", "|---|---|---|", *lines])


def _rows(name: str) -> list[Row]:
    if name == "sample":
        return [*_fields(sample.Options, {})]
    if name in TASKS:
        shared = {row.name: row.help for section in SECTIONS for row in _section(Config, section)}
        own = [section for section in sections(TASKS[name], "transformer") if section != "net"]
        rows = [row for section in own for row in _section(TASKS[name], section)]
        return [row for row in rows if shared.get(row.name) != row.help]
    if name in FAMILIES:
        return _section(Config, "net", name)
    if name in SECTIONS:
        return _section(Config, name)
    raise UserError(f"there are no flags of '{name}'.{nearest(name, (*SECTIONS, *FAMILIES, *TASKS, 'sample'))}")


def _section(cls: type[Config], section: str, model: str = "transformer") -> list[Row]:
    """The flags of a section, with the defaults that the command has for this family."""
    values = flat(parse(["--model", model], cls)[0])
    return [*_fields(sections(cls, model)[section], values)]


def _fields(section: type, values: dict[str, Any]) -> Iterator[Row]:
    """The fields of a dataclass that the command line may set; `values` replace their defaults."""
    hints = typing.get_type_hints(section, include_extras=True)
    for field in dataclasses.fields(section):
        notes = getattr(hints[field.name], "__metadata__", ())
        if FIXED not in notes:
            hint = typing.get_args(hints[field.name])[0] if notes else hints[field.name]
            yield Row(field.name, hint, values.get(field.name, field.default), _help(section, field.name))


def _help(section: type, name: str) -> str:
    """The string below a field: in the class, or in the parent that has one."""
    for cls in section.__mro__:
        if cls is object or not isinstance(node := _definition(cls), ast.ClassDef):
            continue
        for field, below in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and ast.unparse(field.target) == name and isinstance(below, ast.Expr):
                return " ".join(str(ast.literal_eval(below.value)).split())
    return ""


def _definition(cls: type) -> ast.stmt | None:
    """The syntax tree of a class; None for one that was made at run time."""
    return members(parsed(file_of(cls.__module__))[0].body).get(cls.__name__)


def _spelled(row: Row) -> str:
    if row.name == "run":
        return "RUN"  # the one argument without a name
    name = flag(row.name)
    if row.hint is bool and row.default:
        name = f"--no-{name[2:]}"
    return f"`{name}`"


def _default(value: Any) -> str:
    if value is None or value in ("", (), dataclasses.MISSING):
        return ""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else f"`{value}`"


def _meaning(row: Row) -> str:
    choices = ", ".join(f"`{choice}`" for choice in _choices(row.hint))
    text = f"{choices}. {row.help}" if choices else row.help
    return text.replace("|", "\\|").replace("<", "&lt;").replace("$", "\\$")


def _choices(hint: Any) -> list[str]:
    """The values of a Literal, also of one that may be None."""
    if typing.get_origin(hint) is Literal:
        return [*typing.get_args(hint)]
    return [choice for part in typing.get_args(hint) for choice in _choices(part)]
