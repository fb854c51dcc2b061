"""The command line into a `Config`: layers of defaults, which flags were given, and what is refused. Imports no
torch."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data.errors import UserError, nearest
from data.sources import KINDS
from engine import presets
from engine.config import CALL_ONLY, CHANGEABLE, GRADIENT_ONLY, MODEL_FIELDS, MODELS, OPTIMIZER_FLAGS, SCHEDULES, Config
from engine.folder import read_facts

_FIELDS = {field.name: field for field in dataclasses.fields(Config)}
_AT_LEAST_ONE = (
    "n_layer", "n_head", "n_kv_head", "n_embd", "n_hidden", "context", "order", "window", "steps", "batch_size",
    "grad_accum", "eval_interval", "eval_tokens", "patience",
)  # fmt: skip
_FRACTIONS = ("dropout", "label_smoothing", "beta1", "beta2", "momentum")  # in [0, 1)
_NOT_NEGATIVE = ("weight_decay", "grad_clip", "warmup", "lr_floor", "seed")
_POSITIVE = ("lr", "muon_lr")


def parse(argv: list[str]) -> tuple[Config, set[str]]:
    """The configuration that `argv` asks for and the names of the flags given. `--help` and unknown flags leave the
    process (codes 0 and 2); every other mistake is a UserError."""
    import tyro

    given = {name for name in (_flag_name(word) for word in argv) if name in _FIELDS}
    defaults = Config(**_defaults(argv))
    config = tyro.cli(Config, args=argv, default=defaults, prog="train.py")
    check_values(config, given)
    return config, given


def stored(config: Config) -> dict[str, Any]:
    """What a run keeps of its configuration."""
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in CALL_ONLY}


def config_of(facts: dict[str, Any]) -> Config:
    """The configuration of a run, from what its config.json says."""
    return Config(**_known(facts["config"], "the run's config.json"))


def refuse_contradictions(
    config: Config, given: set[str], kept: dict[str, Any], may_change: set[str], doing: str
) -> None:
    """Raise UserError naming every given flag that contradicts a run's configuration `kept` and may not change."""
    if contradicting := sorted(n for n in given & set(kept) - may_change if getattr(config, n) != kept[n]):
        listed = ", ".join(f"{flag(n)} {getattr(config, n)} (the run has {kept[n]})" for n in contradicting)
        allowed = ", ".join(map(flag, sorted(may_change & CHANGEABLE)))
        way_out = f"; may change: {allowed}. A new run can start from it with --init" if allowed else ""
        raise UserError(f"{doing} cannot change {listed}{way_out}")


def check_values(config: Config, given: Iterable[str] = ()) -> None:
    """Raise UserError for a number outside its range, or a given flag that the chosen mode has no use for."""
    for name in _AT_LEAST_ONE:
        if (value := getattr(config, name)) is not None and value < 1:
            raise UserError(f"{flag(name)} is {value}; it has to be at least 1")
    for name in _FRACTIONS:
        if not 0 <= getattr(config, name) < 1:
            raise UserError(f"{flag(name)} is {getattr(config, name)}; it has to be at least 0 and below 1")
    for name in _NOT_NEGATIVE:
        if not getattr(config, name) >= 0:
            raise UserError(f"{flag(name)} is {getattr(config, name)}; it cannot be negative")
    for name in _POSITIVE:
        if not 0 < getattr(config, name) < float("inf"):
            raise UserError(f"{flag(name)} is {getattr(config, name)}; it has to be above 0")
    if (config.resume or config.eval_only) and not config.out:
        raise UserError(f"{'--resume' if config.resume else '--eval-only'} needs --out, the run directory")
    exclusive = [flag(n) for n in ("resume", "overwrite", "eval_only") if getattr(config, n)]
    if len(exclusive) > 1:
        raise UserError(f"{' and '.join(exclusive)} exclude each other")
    if not (config.resume or config.eval_only):
        refuse_useless(config, set(given))


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
    if config.checkpoint and not config.init:
        raise UserError("--checkpoint goes with --resume, --eval-only or --init")


def flag(name: str) -> str:
    """The flag of a field: 'n_layer' -> '--n-layer'."""
    return "--" + name.replace("_", "-")


def _defaults(argv: list[str]) -> dict[str, Any]:
    """The defaults of this command line, from the general to the particular: family, text, optimizer, preset, file; of
    a run that goes on, all that it was; of one that starts from another, that one's model."""
    if _has(argv, "resume") or _has(argv, "eval_only"):
        return _known(read_facts(Path(out))["config"], out) if (out := _peek(argv, "out")) else {}
    file = _read_file(path) if (path := _peek(argv, "config")) else {}
    if init := _peek(argv, "init"):
        kept = _known(read_facts(Path(init))["config"], init)
        file |= {name: value for name, value in kept.items() if name in MODEL_FIELDS}
    model = _one_of(_peek(argv, "model") or file.get("model", "transformer"), MODELS, "model")
    data = _peek(argv, "data") or file.get("data", "names")
    kind = _peek(argv, "kind") or file.get("kind") or KINDS.get(data, "stream")
    optimizer = _peek(argv, "optimizer") or file.get("optimizer", "adamw")
    _one_of(_peek(argv, "optimizer") or "adamw", tuple(presets.OPTIMIZER), "optimizer")
    _one_of(_peek(argv, "schedule") or "cosine", SCHEDULES, "schedule")
    layers = [{"model": model}, presets.FAMILY[model]]
    if kind == "stream":
        layers += [{"steps": 2000, "context": presets.STREAM_CONTEXT}, presets.STREAM[model]]
    layers.append(presets.OPTIMIZER[optimizer])
    if name := _peek(argv, "preset"):
        layers.append(presets.preset(_one_of(name, presets.PRESETS, "preset"), model))
    return {name: value for layer in (*layers, file) for name, value in layer.items()}


def _has(argv: list[str], name: str) -> bool:
    return flag(name) in argv


def _flag_name(word: str) -> str:
    if not word.startswith("--"):
        return ""
    name = word[2:].split("=")[0].replace("-", "_")
    return name if name in _FIELDS else name.removeprefix("no_")


def _peek(argv: list[str], name: str) -> str | None:
    """The value of a flag before the real parsing: defaults depend on it."""
    found = None
    for word, following in zip(argv, [*argv[1:], None], strict=True):
        if word.startswith("--") and _flag_name(word) == name:
            found = word.split("=", 1)[1] if "=" in word else following
    return found


def _one_of(value: str, choices: tuple[str, ...], what: str) -> str:
    if value not in choices:
        raise UserError(f"unknown {what} '{value}'; there are: {', '.join(choices)}.{nearest(value, choices)}")
    return value


def _read_file(path: str) -> dict[str, Any]:
    try:
        read = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise UserError(f"cannot read --config {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"--config {path} is not JSON: {error}") from error
    return _known(read.get("config", read) if isinstance(read, dict) else None, path)


def _known(values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise UserError(f"{where} holds no configuration")
    if unknown := sorted(set(values) - set(_FIELDS)):
        raise UserError(f"{where} has unknown settings: {', '.join(unknown)}.{nearest(unknown[0], _FIELDS)}")
    return {name: value for name, value in values.items() if name not in CALL_ONLY}
