"""What a configuration may not be: values outside their range, flags without a use, contradictions to a run."""

import dataclasses
import math
import types
import typing
from typing import Any

from data.errors import UserError, nearest
from data.json_files import is_finite
from engine.config.sections import CHANGEABLE, GRADIENT_ONLY, OPTIMIZER_FLAGS, USES_RUN, Config

_AT_LEAST_ONE = (
    "n_layer", "n_head", "n_kv_head", "n_embd", "n_hidden", "context", "order", "window", "steps", "batch_size",
    "grad_accum", "eval_interval", "eval_tokens", "patience", "hash_rows",
)  # fmt: skip
_SIZES = (
    "n_layer", "n_head", "n_kv_head", "n_embd", "n_hidden", "context", "order", "window", "batch_size", "hash_rows",
)  # fmt: skip
_BELOW_ONE = ("dropout", "label_smoothing", "beta1", "beta2", "momentum")
_NOT_NEGATIVE = ("weight_decay", "grad_clip", "warmup")
_POSITIVE = ("lr", "muon_lr")
MAX_SEED = 2**63 - 1
MAX_CONTEXT = 1 << 20  # tables of positions are as long
MAX_SIZE = 2**31 - 1
MAX_THREADS = 1024  # more than any machine has processors


def flag(name: str) -> str:
    """The flag of a field: 'n_layer' -> '--n-layer'."""
    return "--" + name.replace("_", "-")


def check_values(config: Config) -> None:
    """Raise UserError for a number outside its range, and for a text that is none."""
    for name in ("data", "val_data"):
        if getattr(config, name) == []:
            raise UserError(f"{flag(name)} names no text; it takes one or several")
    for name in _AT_LEAST_ONE:
        value = getattr(config, name)
        _demand(value is None or value >= 1, name, value, "at least 1")
        _demand(value is None or value < 2**63, name, value, "below 2^63")
    for name in _SIZES:
        value, most = getattr(config, name), MAX_CONTEXT if name == "context" else MAX_SIZE
        _demand(value is None or value <= most, name, value, f"at most {most:,}")
    for name in _BELOW_ONE:
        _demand(0 <= getattr(config, name) < 1, name, getattr(config, name), "at least 0 and below 1")
    for name in _NOT_NEGATIVE:
        _demand(0 <= getattr(config, name) < math.inf, name, getattr(config, name), "at least 0 and finite")
    for name in _POSITIVE:
        _demand(0 < getattr(config, name) < math.inf, name, getattr(config, name), "above 0 and finite")
    _demand(config.minutes is None or 0 < config.minutes < math.inf, "minutes", config.minutes, "above 0 and finite")
    if config.steps is None and config.minutes is None:
        raise UserError("nothing ends the training: --steps and --minutes are both None; give one of them")
    _demand(config.threads is None or 1 <= config.threads <= MAX_THREADS, "threads", config.threads, "from 1 to 1024")
    _demand(0 <= config.hash_ngrams <= 16, "hash_ngrams", config.hash_ngrams, "from 2 to 16, or 0 for none")
    _demand(0 <= config.mix_ngram <= 16, "mix_ngram", config.mix_ngram, "from 1 to 16, or 0 for none")
    _demand(0 <= config.lr_floor <= 1, "lr_floor", config.lr_floor, "from 0 to 1")
    _demand(0 <= config.seed <= MAX_SEED, "seed", config.seed, f"from 0 to {MAX_SEED}")


def check_mode(config: Config, given: set[str]) -> None:
    """Raise UserError for flags that do not go together, or that the chosen mode has no use for."""
    if config.separator is not None and config.kind != "documents":
        raise UserError("--separator is what stands between documents: it goes with --kind documents")
    modes = [
        name
        for name in ("resume", "overwrite", "eval_only", "predict")
        if getattr(config, name, None) not in (None, False)
    ]
    if len(modes) > 1:
        raise UserError(f"{' and '.join(map(flag, modes))} exclude each other")
    if USES_RUN & set(modes):
        mode = flag(modes[0])
        if not config.out:
            raise UserError(f"{mode} needs --out, the run directory")
        if useless := sorted(given & {"preset", "config"}):
            raise UserError(f"{flag(useless[0])} is for a new run; with {mode} everything comes from --out")
        how = sorted(given & {"kind", "encoding", "separator", "text_column"})
        if config.eval_only and how and not given & {"data", "val_data"}:
            raise UserError(f"{flag(how[0])} goes with --data{'' if config.task else ' or --val-data'} here")
    else:
        refuse_useless(config, given)


def refuse_useless(config: Config, given: set[str]) -> None:
    """Raise UserError when a given flag means nothing to the chosen optimizer, schedule or way of fitting."""
    counted = config.model == "ngram" or (config.model == "bigram" and config.counts)
    if counted and (useless := sorted(given & (GRADIENT_ONLY | {"context"}))):
        how = "--model ngram" if config.model == "ngram" else "--counts"
        raise UserError(
            f"{', '.join(map(flag, useless))} given, but {how} counts once and trains nothing; leave it out"
        )
    of_optimizers = set().union(*OPTIMIZER_FLAGS.values())
    if useless := sorted(given & (of_optimizers - OPTIMIZER_FLAGS[config.optimizer])):
        raise UserError(f"{flag(useless[0])} means nothing to --optimizer {config.optimizer}; leave it out")
    if "lr_floor" in given and config.schedule in ("constant", "step"):
        raise UserError(f"--lr-floor means nothing to --schedule {config.schedule}; leave it out")
    if config.extend_vocabulary and config.init in (None, "scratch"):
        raise UserError("--extend-vocabulary goes with --init, a run whose vocabulary to extend")
    if config.checkpoint and not config.init:
        raise UserError("--checkpoint goes with --resume, --eval-only or --init")


def refuse_contradictions(
    config: Config, given: set[str], kept: dict[str, Any], may_change: set[str], doing: str
) -> None:
    """Raise UserError naming every given flag that contradicts a run's configuration `kept` and may not change."""
    if contradicting := sorted(n for n in given & set(kept) - may_change if getattr(config, n) != kept[n]):
        listed = ", ".join(f"{flag(n)} {getattr(config, n)} (the run has {kept[n]})" for n in contradicting)
        allowed = ", ".join(map(flag, sorted(may_change & CHANGEABLE)))
        way_out = f"; may change: {allowed}. A new run can start from it with --init" if allowed else ""
        raise UserError(f"{doing} cannot change {listed}{way_out}")


def check_stored(values: Any, where: str, kind: type[Config] = Config) -> dict[str, Any]:
    """The settings of `kind` that a JSON file holds. Raises UserError for unknown names and wrong types."""
    if not isinstance(values, dict):
        raise UserError(f"{where} holds no configuration")
    fields = {field.name for field in dataclasses.fields(kind)}
    types_of = typing.get_type_hints(kind)
    if unknown := sorted(set(values) - fields):
        raise UserError(f"{where} has unknown settings: {', '.join(unknown)}.{nearest(unknown[0], fields)}")
    for name, value in values.items():
        if not _fits(value, types_of[name]):
            choices = typing.get_args(types_of[name]) if typing.get_origin(types_of[name]) is typing.Literal else ()
            hint = f"; there are: {', '.join(choices)}" if choices else ""
            raise UserError(f"{where} has {name} {value!r}, which cannot be{hint}")
    return values


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return any(_fits(value, part) for part in typing.get_args(kind))
    if typing.get_origin(kind) is typing.Literal:
        return value in typing.get_args(kind)
    if typing.get_origin(kind) is list:
        (part,) = typing.get_args(kind)
        return isinstance(value, list) and all(_fits(item, part) for item in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value)
    return type(value) is kind


def _demand(holds: bool, name: str, value: Any, range_: str) -> None:
    if not holds:
        raise UserError(f"{flag(name)} is {value}; it has to be {range_}")
