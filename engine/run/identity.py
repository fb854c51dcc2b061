"""The identity of a run: its settings, tokenizer, text and labels.

Every checkpoint stores it, so that a `config.json` edited by hand, or a tokenizer of another run, is noticed before the
weights are used with it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.json_files import as_stored
from data.tokenizers import Tokenizer
from engine.config.sections import Config
from engine.config.settings import gradient_only, marked
from engine.run import checkpoint
from engine.run.folder import OF_EVERY_RUN
from makemore.config import Mark

# Settings that matter to training alone: for sampling, scoring and labelling they may differ.
_TRAINING_ONLY = gradient_only(Config) | {"dropout", "seed", "init"}
# What a resume may change: of every run, and, as whoever samples from a run cannot ask its task, of single tasks.
FREE = marked(Config, Mark.RESUMABLE, Mark.PLACE) | {"test_data", "beams", "reward_seconds"}


def identity(facts: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """The identity of the run whose `config.json` has these `facts`: everything that belongs to its weights."""
    ours: dict[str, Any] = {"settings": {n: v for n, v in facts["config"].items() if n not in FREE}}
    ours["tokenizer"] = hashlib.sha256(json.dumps(tokenizer.to_json()).encode()).hexdigest()
    ours["run"] = facts.get("id")
    ours["text"] = facts["data"]["key"]
    ours["start"] = facts["data"]["start"]
    ours["task"] = {name: value for name, value in facts.items() if name not in OF_EVERY_RUN}
    return as_stored(ours)


def check_identity(folder: Path, ours: dict[str, Any], exact: bool = False) -> None:
    """Raise UserError where checkpoint `folder`, or the `base/` beside it, belongs to another run than `ours`. `exact`:
    also where settings of the training differ, which do not matter for sampling and scoring. Checkpoints of format 1
    store no identity."""
    for part in (folder, folder.parent / "base"):
        theirs = checkpoint.belongs_to(part)
        if isinstance(theirs, dict):
            _check(part, theirs, ours, exact)


def _check(folder: Path, theirs: dict[str, Any], ours: dict[str, Any], exact: bool) -> None:
    run = folder.parent
    if ours["run"] is not None and theirs.get("run") not in (ours["run"], None):
        raise UserError(f"{folder} is the checkpoint of another run than {run / 'config.json'}: put its own back")
    stored = theirs.get("settings")
    settings = stored if isinstance(stored, dict) else {}
    names = settings.keys() & ours["settings"].keys() - (set() if exact else _TRAINING_ONLY)
    for name in sorted(names, key=lambda name: (name != "model", name)):
        if settings[name] != ours["settings"][name]:
            raise UserError(
                f"{run / 'config.json'} says {name} {ours['settings'][name]}, but {folder} was trained with "
                f"{settings[name]}: put that back. A new run may start from it with --init"
            )
    if theirs.get("tokenizer") != ours["tokenizer"]:
        raise UserError(f"{run / 'tokenizer.json'} is not the tokenizer that {folder} was trained with: put that back")
    for key, entry in (("task", "labels or template"), ("start", "start text"), ("text", "text")):
        if theirs.get(key) != ours[key]:
            raise UserError(f"{run / 'config.json'} has not the {entry} that {folder} was trained with: put that back")
