"""Training from Python: `train(data="poems.txt", model="gru", steps=500)` does what the command does."""

from pathlib import Path
from typing import Any

from data.errors import UserError, flag, nearest
from data.program import command
from engine import session
from engine.config import flags
from engine.config.checks import check_stored
from engine.config.sections import Config
from engine.config.settings import all_settings
from engine.pretraining import Pretraining
from engine.run.load import Run, load_run


def train(**settings: Any) -> Run:
    """Train a model and return its run, the best weights loaded. `settings` are the flags of train.py by their names:
    `train(data="poems.txt", model="gru", n_layer=2, steps=500)`; what is left out has the command's defaults, and
    `resume=True` with `out` goes on.

    Works in a notebook and in any thread; outside of the main one signals are left alone. Raises TypeError for an
    unknown name, UserError for a value that cannot be, and whatever train.py would end with."""
    known = all_settings(Config)
    if unknown := sorted(settings.keys() - known.keys()):
        raise TypeError(f"train() has no setting '{unknown[0]}'.{nearest(unknown[0], known)}")
    settings = {name: _plain(value) for name, value in settings.items() if value is not None}
    config, explicit = flags.parse(_words(check_stored(settings, "train()")))
    if config.run.eval_only:
        raise UserError(f"train() trains; load_run(...) and {command('train')} --eval-only evaluate")
    return load_run(session.train(Pretraining(), config, explicit), device=config.machine.device, of_series=True)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _words(settings: dict[str, Any]) -> list[str]:
    """The same as words of the command line."""
    words = []
    for name, value in settings.items():
        if isinstance(value, bool):
            words.append(flag(name) if value else f"--no-{flag(name)[2:]}")
        elif isinstance(value, list):
            words += [flag(name), *map(str, value)]
        else:
            words.append(f"{flag(name)}={value}")
    return words
