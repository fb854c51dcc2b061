"""Any task from flags to a run: start one, go on with one, evaluate one."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.errors import StepFault, UserError, fault, is_fault, outlive_readers
from data.prepare import print_notes
from data.program import recorded, spoken
from data.tokenizers import Tokenizer
from engine import fitting, memory, precision, runtime, threads
from engine.backends import check_backends
from engine.config.checks import refuse_contradictions, refuse_useless, same_settings
from engine.config.sections import Config
from engine.config.settings import get, marked, stored
from engine.counting import count
from engine.distributed.buffers import once_a_host
from engine.distributed.ranks import Ranks, device_for, processes, together
from engine.distributed.sharding import Sharded
from engine.going_on import decide, is_unsaved
from engine.resume import check_sizes_to_go_on, restore, was_never_saved
from engine.run import checkpoint, folder, results
from engine.run.identity import identity
from engine.task import Batches, Session, Task
from engine.training import graphed
from engine.training.metrics import Metrics, check_log
from engine.training.progress import Progress
from engine.training.trainer import Trainer
from engine.watch.server import watching
from makemore.config import Mark


def run(task: Task, config: Any, explicit: set[str]) -> int:
    """Do what the command line asks for. Returns the exit code; raises UserError."""
    if config.run.eval_only:
        print(json.dumps(evaluate(task, config, explicit)))
        return 0
    outlive_readers()
    try:
        train(task, config, explicit)
    except runtime.Interrupted as stopped:
        return 128 + stopped.signum
    return 0


def train(task: Task, config: Any, explicit: set[str]) -> Path:
    """Start the run that `config` describes, or go on with the one in `--out`, in all processes that torchrun has
    started. Returns its folder."""
    with together(runtime.Interrupted) as task.ranks:
        check_processes(config, explicit, task.ranks)
        with watching(config.run.watch if task.ranks.is_first else None, config.run.out):
            if config.run.go_on:
                return go_on(task, config, explicit)
            return resume(task, config, explicit) if config.run.resume else start(task, config, explicit)


def go_on(task: Task, config: Any, explicit: set[str]) -> Path:
    """Start the run in `--out`, or go on with it where it is there already. Returns its folder."""
    what, config, explicit = decide(task, config, explicit)
    check_processes(config, explicit, task.ranks)
    if what == "start":
        return start(task, config, explicit)
    if what == "resume":
        return resume(task, config, explicit)
    steps = results.read_summary(config.run.path)["steps"]
    print(f"{config.run.path} is complete: {steps:,} steps; more of --steps or --minutes would go on with it")
    return config.run.path


def evaluate(task: Task, config: Any, explicit: set[str]) -> dict[str, Any]:
    """What the task measures of the run in `--out`."""
    if processes() > 1:
        raise UserError("--eval-only takes one process: leave out torchrun")
    threads.use(config.machine.threads if "threads" in explicit else None)
    return task.evaluate(config, explicit)


def start(task: Task, config: Any, explicit: set[str]) -> Path:
    """A new run, from data to summary."""
    device = _check_machine(config)
    config = threads.settle(config, explicit, device)
    parent = task.parent(config, explicit) if config.run.init else None
    with task.ranks.one_first():  # of each host one prepares the text, and the others find it prepared
        config, data = task.read(config, explicit, parent)
    torch.manual_seed(config.run.seed)
    model = task.build(config, data, parent)
    batches = task.batches(config, data, model)
    built, model = model, task.trained(config, data, model, None)
    config = precision.settle(config, device, model, task.ranks)
    graphed.check(config, device, task.ranks, model)
    # What does not divide or does not fit is refused before there is a folder.
    config, batches = fitting.settle(
        config, device, model, batches, task.ranks, lambda cut: task.batches(cut, data, built)
    )
    with _new_folder(task, config, data) as (path, facts):
        session = _session(task, config, data, model, batches, device, path, facts)
        print_notes(task.notes(config, data, parent))
        _introduce(session)

        if trainer := _trainer(session):
            _keep(session)
        _finish(session, _fit(session, trainer))
    return path


def resume(task: Task, config: Any, explicit: set[str]) -> Path:
    """Go on with the run in `--out`: exactly from its `last/`, or from the weights of its `best/`."""
    with _going_on(config, explicit, task.ranks) as (config, path, facts, tokenizer, device):
        task.format = facts["format"]
        with task.ranks.one_first():
            data = task.read_again(config, explicit, facts, tokenizer)

        def build() -> nn.Module:
            torch.manual_seed(config.run.seed)
            return task.build(config, data)

        if not config.net.is_counted:
            check_sizes_to_go_on(build, config, path)
        model = build()
        batches = task.batches(config, data, model)
        model = task.trained(config, data, model, path)
        fitting.settle(config, device, model, batches, task.ranks, lambda cut: batches)
        session = _session(task, config, data, model, batches, device, path, facts)

        if trainer := _trainer(session):
            restore(trainer, config, explicit, keep=lambda: _keep(session))
            if getattr(model, "fixed", ()):
                once_a_host(model, lambda: None, task.ranks)
        if task.ranks.is_first:
            _write_down(session, facts)
        _introduce(session)
        _finish(session, _fit(session, trainer))
    return path


@contextlib.contextmanager
def _new_folder(task: Task, config: Any, data: Any) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The directory of a new run, which the first process creates and locks, and its facts."""
    with contextlib.ExitStack() as stack:
        made = None
        if task.ranks.is_first:
            replaces = is_unsaved if config.run.go_on else config.run.overwrite
            path = stack.enter_context(
                folder.create(
                    config.run.out, replaces, stored(config), data.tokenizer, data.about,
                    recorded(config.program), **_named(config, task.facts(config, data)),
                )
            )  # fmt: skip
            made = [str(path), folder.read_facts(path)]
        path, facts = task.ranks.tell(made)
        yield Path(path), facts


def _keep(session: Session) -> None:
    if session.task.ranks.is_first:
        session.task.keep(session)
    session.task.ranks.wait()


def _extra_metrics(session: Session) -> dict[str, float]:
    """What the task measures, of weights that `--shard` leaves on the CPU."""
    session.model.to(session.device)
    measured = session.task.extra_metrics(session)
    if session.config.machine.shard and session.task.ranks.world > 1:
        session.model.cpu()
    return measured


def _finish(session: Session, progress: Progress) -> None:
    if session.task.ranks.is_first:
        session.model.to(session.device)
        session.task.finish(session, progress)
    session.task.ranks.wait()


def _session(
    task: Task, config: Any, data: Any, model: nn.Module, batches: Batches, device: torch.device, path: Path,
    facts: dict[str, Any],
) -> Session:  # fmt: skip
    metrics = Metrics(path, config.machine.log if task.ranks.is_first else "none", stored(config))
    return Session(task, config, data, model, batches, device, path, metrics, identity(facts, data.tokenizer))


def check_processes(config: Any, explicit: set[str], ranks: Ranks) -> None:
    """Raise UserError for what several processes cannot do together, or one not alone."""
    if ranks.world == 1:
        if config.machine.shard and ("shard" in explicit or not config.run.resume):
            raise UserError("--shard divides a model among several processes: start them with torchrun")
        return
    if config.net.is_counted:
        raise UserError(f"--model {config.model} counts once, in one process: leave out torchrun")
    if "-" in ([config.text.data] if isinstance(config.text.data, str) else config.text.data or []):
        raise UserError("--data - reads standard input, which one process alone can: put the text into a file")


def _introduce(session: Session) -> None:
    said = session.task.introduce(session)
    print(f"{said}\non {session.device}, run directory {session.folder}", flush=True)


def _write_down(session: Session, facts: dict[str, Any]) -> None:
    """What a resume changed goes into `config.json`; settings of other families that an old run has stay there."""
    folder.write_facts(session.folder, facts | {"config": facts["config"] | stored(session.config)})


def _named(config: Config, facts: dict[str, Any]) -> dict[str, Any]:
    return {} if config.task is None else {config.task: facts}


def _check_machine(config: Config) -> torch.device:
    check_log(config.machine.log)
    device, _ = runtime.choose_device(device_for(config.machine.device))
    check_backends(config, device)
    return device


def _trainer(session: Session) -> Trainer | None:
    """What trains the model, on its device; None for one that counts."""
    loader, val_batches, characters = session.batches
    if loader is None:
        return None
    ranks, sharded = session.task.ranks, None
    if session.config.machine.shard and ranks.world > 1:  # one process goes on with a sharded run, too
        sharded = Sharded(session.model, ranks, session.device)
    trained = sharded.model if sharded else session.model
    runtime.move_and_compile(trained, session.device, session.config.machine.compile)
    return Trainer(
        session.model, loader, val_batches, characters, session.config, session.folder, session.device, session.metrics,
        lambda: _extra_metrics(session), session.identity, ranks, session.task.format, sharded,
    )  # fmt: skip


def _fit(session: Session, trainer: Trainer | None) -> Progress:
    """Train, or count where there is no trainer."""
    if trainer is None:
        return count(session)
    with _saying_how_to_go_on(session, trainer):
        trainer.train()
    return trainer.progress


@contextlib.contextmanager
def _saying_how_to_go_on(session: Session, trainer: Trainer) -> Iterator[None]:
    """Inside, a signal, a disk that fails and what a step met outside of the run end in a message that says how to go
    on; memory that is out, in one that says what to lower."""
    config = session.config
    again = {name: get(config, name) for name in session.task.to_say_again(config)}
    command = folder.resume_command(session.folder, config.program, **again)

    def what_is_left() -> str:
        if config.run.init and was_never_saved(session.folder):  # the weights it started from are not in it
            return "Nothing was saved yet: start it once more, with --overwrite"
        return f"What was saved before is whole; go on with: {command}"

    try:
        yield
    except runtime.Interrupted:
        with contextlib.suppress(OSError):  # the same Ctrl-C may have ended who reads this
            print(f"saved at step {trainer.progress.step}; go on with: {command}", flush=True)
        raise
    except OSError as error:
        if not is_fault(error):
            raise
        raise UserError(f"{fault(error)}. {what_is_left()}") from error
    except StepFault as error:
        raise UserError(f"{error}. {what_is_left()}") from error
    except (MemoryError, RuntimeError) as error:
        if not runtime.is_out_of_memory(error):
            raise
        raise memory.not_enough(config, session.model, session.device) from error


@contextlib.contextmanager
def _going_on(
    config: Any, explicit: set[str], ranks: Ranks
) -> Iterator[tuple[Any, Path, dict[str, Any], Tokenizer, torch.device]]:
    """The run in `--out`, locked, checked and cleared up after a crash, to go on with: its configuration with the
    threads it uses, its folder, its facts, its tokenizer, and the device."""
    path = config.run.path
    folder.read_facts(path)  # no lock file where there is no run
    with folder.writing(path) if ranks.is_first else contextlib.nullcontext():
        ranks.wait()  # for the lock
        facts = folder.read_facts(path)  # again, now that nobody else changes it
        if (maker := facts.get("command", "")) and maker != recorded(config.program):
            raise UserError(
                f"{path} is a run of {spoken(maker)}, which cannot be gone on with; start one from it with "
                f"--init {path}"
            )
        free = marked(type(config), Mark.RESUMABLE, Mark.PLACE)
        refuse_contradictions(config, explicit, facts["config"], free, "--resume")
        if config.net.is_counted:
            refuse_useless(config, explicit)
        if not same_settings(config, facts["config"], explicit):
            raise UserError(f"{path} was changed by another process just now; try again")
        device = _check_machine(config)
        config = precision.resumed(threads.settle(config, explicit, device, facts["config"]), facts["config"])
        config = fitting.resumed(config, facts["config"])
        for name in ("base", "best", "last"):
            if ranks.is_first:
                checkpoint.settle(path / name)
        ranks.wait()
        yield config, path, facts, folder.read_tokenizer(path, facts["vocab_size"]), device
