"""Loading the checkpoint that a run goes on from."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from data.errors import UserError, warn
from engine.config.sections import Config
from engine.registry import layers
from engine.run import checkpoint
from engine.run.identity import check_identity
from engine.run.weights import check_sizes, load_weights
from engine.training.progress import Progress
from engine.training.trainer import Trainer


def check_sizes_to_go_on(build: Callable[[], nn.Module], config: Any, path: Path) -> None:
    """Raise UserError when the model that `build` makes has not the sizes of the checkpoint to go on from."""
    which = config.run.checkpoint or "last"
    with offering_best(path) if which == "last" else contextlib.nullcontext():
        check_sizes(build, layers(config), path / which)


def restore(trainer: Trainer, config: Config, explicit: set[str], keep: Callable[[], None]) -> None:
    """Load the checkpoint to go on from: `last/`, or `best/` where the user says so (weights only). A run that was
    never saved begins: `keep` stores what its checkpoints leave out."""
    path = trainer.folder
    if trainer.ranks.world > 1 and not trainer.draws_by_step:
        raise UserError(
            f"{path} was begun by an earlier version, whose dropout follows from what one process has drawn: go on "
            "with it without torchrun"
        )
    if config.run.checkpoint == "best":
        _restore_best(trainer)
    elif was_never_saved(path):
        if config.run.init:  # the weights it started from are not in it
            raise UserError(f"{path} was stopped before its first save: start it once more, with --overwrite")
        if trainer.ranks.is_first:
            trainer.metrics.cut_back(-1)  # nothing to go on from, so begin
        keep()
    else:
        assert trainer.belongs_to is not None  # a session gives it
        for which in ("last", "best"):
            check_identity(path / which, trainer.belongs_to, exact=True)
        with offering_best(path):
            trainer.resume(path / "last")
    check_budget(path, trainer.progress, config, explicit)


def _restore_best(trainer: Trainer) -> None:
    best = trainer.folder / "best"
    assert trainer.belongs_to is not None
    check_identity(best, trainer.belongs_to)
    facts = load_weights(trainer.plain, best)
    if trainer.sharded is not None:
        trainer.sharded.spread()
    step, loss, bits = facts["step"], facts["val_loss"], facts["val_bits_per_char"]
    trainer.progress = Progress(step=step, evaluated=step, best_step=step, best_val=loss, best_bits=bits)
    if trainer.ranks.is_first:
        trainer.metrics.cut_back(step)
    warn(f"going on from {best} at step {step}: optimizer and data order start anew")


def check_budget(path: Path, progress: Progress, config: Config, explicit: set[str]) -> None:
    """Raise UserError where fewer steps or minutes are asked for than the run `path` has used."""
    steps, minutes = config.optim.steps, config.optim.minutes
    if "steps" in explicit and steps is not None and steps < progress.step:
        raise UserError(
            f"--steps {steps} is less than the {progress.step} that {path} has done already; give at least as many"
        )
    used = progress.elapsed / 60
    if "minutes" in explicit and minutes is not None and minutes <= used:
        raise UserError(f"--minutes {minutes:g}, but {path} has used {used:.2g} minutes already; give more")


@contextlib.contextmanager
def offering_best(path: Path) -> Iterator[None]:
    """Inside, what is wrong with `last/` is said with the way out, where there is one."""
    try:
        yield
    except UserError as error:
        way_out = "; --resume --checkpoint best goes on from the best weights" if checkpoint.find(path / "best") else ""
        raise UserError(f"{error}{way_out}") from error


def was_never_saved(path: Path) -> bool:
    """Whether there is no checkpoint, or only the `best/` of the very beginning, which is saved just before `last/`."""
    if checkpoint.find(path / "last") is not None:
        return False
    return checkpoint.find(path / "best") is None or checkpoint.load(path / "best", ())[1].get("step") == 0
