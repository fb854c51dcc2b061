"""What a configuration may not be: values outside their range, flags without a use, contradictions to a run."""

import types
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from data.errors import UserError, flag, nearest
from data.json_files import as_stored, is_finite
from data.recipe import kind_of
from engine.config.families import FAMILIES
from engine.config.sections import OPTIMIZER_FLAGS, Config, Text
from engine.config.settings import all_settings, flags, flat, gradient_only, make, marked, settings, stored
from makemore.config import Mark, Range


def check_values(config: Config) -> None:
    """Raise UserError for a number outside its range, and for a text that is none."""
    values = flat(config)
    for name in ("data", "val_data"):
        if values.get(name) == []:
            raise UserError(f"{flag(name)} names no text; it takes one or several")
    for name, setting in settings(type(config), config.model).items():
        if setting.range is not None and values.get(name) not in (None, "auto"):  # another family's: refused later
            check_range(name, values[name], setting.range)
    if values["steps"] is None and values["minutes"] is None:
        raise UserError("nothing ends the training: --steps and --minutes are both None; give one of them")


def check_range(name: str, value: float, limits: Range) -> None:
    """Raise UserError, which says what it may be, for a value outside these limits or that is not a number."""
    says = limits.says
    if not value >= limits.least or (limits.above is not None and not value > limits.above):
        below = "" if limits.below is None or limits.below >= 2**63 else f" and below {limits.below:g}"
        says = says or f"at least {limits.least:g}{below}"
    elif limits.most is not None and not value <= limits.most:
        says = says or f"at most {limits.most:,}"
    elif limits.below is not None and not value < limits.below:
        says = says or (f"below {limits.below:g}" if limits.below < 2**63 else "below 2^63")
    else:
        return
    raise UserError(f"{flag(name)} is {value}; it has to be {says}")


def check_mode(config: Config, explicit: set[str]) -> None:
    """Raise UserError for flags that do not go together, or that the chosen mode has no use for."""
    values = flat(config)
    if values.get("separator") is not None and values["kind"] not in ("documents", "stream"):
        raise UserError("--separator is what stands between documents: it goes with --kind documents, or stream")
    exclusive = [*(name for name in values if name in marked(type(config), Mark.USES_RUN)), "go_on", "overwrite"]
    modes = [name for name in exclusive if values[name] not in (None, False)]
    if len(modes) > 1:
        raise UserError(f"{' and '.join(map(flag, modes))} exclude each other")
    if config.run.go_on and not config.run.out:
        raise UserError("--go-on needs --out, the run directory: the same one each time")
    if marked(type(config), Mark.USES_RUN) & set(modes):
        mode = flag(modes[0])
        for name, does in (("watch", "shows"), ("profile", "records")):
            if name in explicit and modes[0] != "resume":
                raise UserError(f"{flag(name)} {does} a training, and {mode} is none; leave it out")
        if not config.run.out:
            raise UserError(f"{mode} needs --out, the run directory")
        if useless := sorted(explicit & {"preset", "config"}):
            raise UserError(f"{flag(useless[0])} is for a new run; with {mode} everything comes from --out")
        how = sorted(explicit & {"kind", "encoding", "separator", "text_column", "column"})
        if config.run.eval_only and how and not explicit & {"data", "val_data"}:
            other = " or --val-data" if isinstance(config.text, Text) else ""  # examples come with --data alone
            raise UserError(f"{flag(how[0])} goes with --data{other} here")
    else:
        refuse_useless(config, explicit)


def refuse_useless(config: Config, explicit: set[str]) -> None:
    """Raise UserError when a given flag means nothing to the chosen optimizer, schedule or way of fitting."""
    of_training = gradient_only(type(config)) | {"context", "mix_ngram"}
    if config.net.is_counted and (useless := sorted(explicit & of_training)):
        how = "--counts" if hasattr(config.net, "counts") else f"--model {config.model}"
        raise UserError(f"{flags(useless)} given, but {how} counts once and trains nothing; leave it out")
    if config.optim.grad_accum == "auto":
        if getattr(config.net, "carry_state", False):
            raise UserError(
                "--grad-accum auto cuts a batch, and --carry-state reads on from the whole of it; give a number"
            )
        if getattr(config.machine, "shard", False):
            raise UserError("--grad-accum auto tries what fits into one process, and --shard divides it; give a number")
    of_optimizers: set[str] = set().union(*OPTIMIZER_FLAGS.values())
    if useless := sorted(explicit & (of_optimizers - OPTIMIZER_FLAGS[config.optim.optimizer])):
        raise UserError(f"{flag(useless[0])} means nothing to --optimizer {config.optim.optimizer}; leave it out")
    if "lr_floor" in explicit and config.optim.schedule in ("constant", "step"):
        raise UserError(f"--lr-floor means nothing to --schedule {config.optim.schedule}; leave it out")
    if config.run.extend_vocabulary and config.run.init is None:
        raise UserError("--extend-vocabulary goes with --init, a run whose vocabulary to extend")
    _refuse_useless_teacher(config, explicit)
    _refuse_useless_masks(config, explicit)
    if config.run.checkpoint and not config.run.init:
        raise UserError("--checkpoint goes with --resume, --eval-only or --init")


def _refuse_useless_teacher(config: Config, explicit: set[str]) -> None:
    """Raise UserError where a teacher's flags have none, or a teacher meets what it has nothing to say of."""
    if config.run.teacher is None:
        if useless := sorted(explicit & {"teacher_weight", "teacher_temperature"}):
            raise UserError(f"{flag(useless[0])} means nothing without --teacher, the run to learn from")
        return
    for name in ("mix_ngram", "count_inputs"):
        if getattr(config.net, name, 0):
            raise UserError(f"{flag(name)} and --teacher exclude each other: a teacher knows nothing of counts")
    if config.run.extend_vocabulary:
        raise UserError("--extend-vocabulary and --teacher exclude each other: both have one vocabulary")
    if config.machine.shard:
        raise UserError("--shard divides one model, and --teacher is a second one")
    if config.run.out and Path(config.run.teacher).resolve() == config.run.path.resolve():
        raise UserError(f"--teacher {config.run.teacher} is the run in --out; name another --out")
    if config.machine.cuda_graph == "on":
        raise UserError("--cuda-graph on and --teacher exclude each other: a teacher's part has another size each step")


def _refuse_useless_masks(config: Config, explicit: set[str]) -> None:
    """Raise UserError where the flags of masks have no use, or masks meet what predicts the next token."""
    if not getattr(config.net, "fills", False):
        if useless := sorted(explicit & {"mask_rate", "mask_span"}):
            raise UserError(f"{flag(useless[0])} means nothing without --objective masked")
        return
    if reads_series(config):
        raise UserError("--objective masked fills gaps, and a series of numbers is gone on with: leave it out")
    for name in ("mix_ngram", "count_inputs", "carry_state", "teacher"):
        if getattr(config.run if name == "teacher" else config.net, name, None):
            raise UserError(f"{flag(name)} is about the next token, and --objective masked reads both ways")


def reads_series(config: Config) -> bool:
    """Whether the data of a training are series of numbers, by --kind or by their name."""
    text = config.text
    return isinstance(text, Text) and (text.kind or kind_of(text.data)) == "series"


def refuse_foreign(foreign: set[str], cls: type[Config], model: str, prog: str) -> None:
    """Raise UserError where some of these flags, which the parser does not know here, are those of another family."""
    others = sorted(foreign & all_settings(Config).keys())
    if not others:
        return
    has = {name for name, setting in settings(cls, model).items() if setting.section == "net"} - cls.fixed.keys()
    if set(others) & cls.fixed.keys() or not set(others) & _of_families():
        raise UserError(f"{flags(others)} means nothing to {prog}; leave it out")
    raise UserError(
        f"{flags(others)} means nothing to --model {model}; it has: {flags(sorted(has)) or 'no flags of its own'}"
    )


def _of_families() -> set[str]:
    return {name for name, setting in all_settings(Config).items() if setting.section == "net"}


def refuse_contradictions(
    config: Config,
    explicit: Collection[str],
    kept: dict[str, Any],
    may_change: set[str],
    doing: str,
    sources: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Raise UserError naming every given flag that contradicts a run's configuration `kept` and may not change. A run
    from before a flag was there has its default. `sources`: which words give a setting that is no flag of its own."""
    values = flat(config)
    kept = as_asked(values, with_defaults(config, kept))
    names = set(explicit) & set(kept) - may_change - {
        n for n in marked(type(config), Mark.SETTLED) if values.get(n) == "auto"
    }
    if contradicting := sorted(n for n in names if n in values and values[n] != kept[n]):
        given = {n: f"{flag(n)} {values[n]}" + (f" of {sources[n]}" if n in sources else "") for n in contradicting}
        listed = ", ".join(f"{words} (the run has {kept[n]})" for n, words in given.items())
        allowed = flags(sorted(may_change & marked(type(config), Mark.RESUMABLE)))
        way_out = f"; may change: {allowed}. A new run can start from it with --init" if allowed else ""
        raise UserError(f"{doing} cannot change {listed}{way_out}")


def as_asked(values: Mapping[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration `kept` as `values` ask for it: with --grad-accum auto --batch-size is that of a step."""
    if values.get("grad_accum") != "auto":
        return kept
    return kept | {"batch_size": kept["batch_size"] * kept["grad_accum"]}


def with_defaults(config: Config, kept: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration `kept`, with the defaults of flags that it is older than."""
    return stored(make(type(config), {"model": config.model})) | kept


def same_settings(config: Config, kept: dict[str, Any], explicit: set[str]) -> bool:
    """Whether a run's configuration `kept` is the one that `config` was made from, the flags given aside."""
    follow = explicit | ({"steps"} if "minutes" in explicit else set())  # minutes alone end a run that had steps
    as_now = as_stored(stored(config))
    return all(kept.get(name, value) == value for name, value in as_now.items() if name not in follow)


def check_stored(values: Any, where: str, cls: type[Config] = Config) -> dict[str, Any]:
    """The settings of a `cls` that a JSON file holds, of all families. Raises UserError for unknown names and wrong
    types."""
    if not isinstance(values, dict):
        raise UserError(f"{where} holds no configuration")
    known = all_settings(Config) | all_settings(cls)
    if unknown := sorted(set(values) - set(known)):
        raise UserError(f"{where} has unknown settings: {', '.join(unknown)}.{nearest(unknown[0], known)}")
    for name, value in values.items():
        hint = known[name].type
        if not (value in FAMILIES if name == "model" and isinstance(value, str) else _fits(value, hint)):
            choices = tuple(FAMILIES) if name == "model" else _choices(hint)
            hint = f"; there are: {', '.join(choices)}" if choices else ""
            raise UserError(f"{where} has {name} {value!r}, which cannot be{hint}")
    return values


def _choices(hint: Any) -> tuple[str, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return any(_fits(value, part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    if typing.get_origin(hint) is list:
        (part,) = typing.get_args(hint)
        return isinstance(value, list) and all(_fits(item, part) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value)
    return type(value) is hint
