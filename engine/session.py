"""What `train.py` does: start a run, go on with one, or evaluate one."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.batches import Loader, counting_arrays, eval_batches
from data.errors import UserError, fault, is_fault, warn
from data.prepare import print_notes
from data.store import Store
from data.tokenizers import Tokenizer
from engine import runtime, threads
from engine.backends import check_backends
from engine.config import flags
from engine.config.checks import refuse_contradictions, refuse_useless
from engine.config.sections import CHANGEABLE, MODEL_FIELDS, WHERE_THE_TEXT_LIES, Config
from engine.eval_only import evaluate_run
from engine.evaluate import evaluate
from engine.registry import build_model, is_counted, layers, refuse_foreign_flags
from engine.run import checkpoint, folder, report
from engine.run.identity import check_identity, identity
from engine.run.load import Run, load_parent
from engine.run.weights import check_sizes, keep_frozen, load_weights
from engine.texts import long_lines, make_loader, prepare_text, store_of_run, with_context
from engine.training import extend
from engine.training.metrics import Metrics, check_log
from engine.training.trainer import Progress, Trainer
from makemore.base import LanguageModel, count_parameters
from makemore.counts.mixture import Mixture


def run(config: Config, given: set[str]) -> int:
    """Do what the command line asks for. Returns the exit code; raises UserError."""
    if config.eval_only:
        threads.use(config.threads if "threads" in given else None)
        return evaluate_run(config, given)
    path = resume_run(config, given) if config.resume else start_run(config, given)
    print(f"\nrun directory: {path}\nmore samples:  {folder.sample_command(path)}")
    return 0


def start_run(config: Config, given: set[str]) -> Path:
    """A new run, from data to summary."""
    refuse_foreign_flags(config, given)
    check_log(config.log)
    device, _ = runtime.choose_device(config.device)
    check_backends(config, device)
    config = threads.settle(config, given, device)
    parent = _parent(config, given) if config.init else None
    store = prepare_text(config, parent.tokenizer if parent else None, extend=config.extend_vocabulary)
    config = with_context(config, store)
    torch.manual_seed(config.seed)
    model = build_model(config, store.tokenizer.vocab_size, store.tokenizer.special)
    if parent:
        extend.load_extended(model, parent.model)
    count_to_mix(model, store)
    loader = None if is_counted(config) else make_loader(config, store)
    with folder.create(config.out, config.overwrite, flags.stored(config), store.tokenizer, _told(store)) as path:
        ours = identity(folder.read_facts(path), store.tokenizer)
        metrics = Metrics(path, config.log, flags.stored(config))
        print_notes(store.meta["notes"] + long_lines(config, store))
        if parent:
            _tell_of_unknown(config, store, parent.tokenizer)
        _introduce(config, store, model, device, path)
        if loader is None:
            progress = _count(model, config, store, device, path, metrics, ours)
        else:
            trainer = _trainer(model, loader, config, store, device, path, metrics, ours)
            keep_frozen(model, path, ours)
            train(trainer)
            progress = trainer.progress
        report.finish(model, progress, config, store, device, path, metrics)
    return path


def resume_run(config: Config, given: set[str]) -> Path:
    """Go on with the run in `--out`, exactly where its `last/` was saved."""
    with going_on(config, given) as (config, path, facts, tokenizer, device):
        check_sizes_to_go_on(lambda: build_model(config, tokenizer.vocab_size, tokenizer.special), config, path)
        store = store_of_run(config, facts, tokenizer, given)
        if store.tokenizer.to_json() != tokenizer.to_json():
            raise UserError(f"{path / 'tokenizer.json'} is not the tokenizer of the run's text")
        torch.manual_seed(config.seed)
        model = build_model(config, tokenizer.vocab_size, tokenizer.special)
        count_to_mix(model, store)
        metrics = Metrics(path, config.log, flags.stored(config))
        ours = identity(facts, tokenizer)
        if is_counted(config):
            check_identity(path / "last", ours)
            folder.write_facts(path, facts | {"config": flags.stored(config)})
            _introduce(config, store, model, device, path)
            metrics.cut_back(-1)
            progress = _count(model, config, store, device, path, metrics, ours)
        else:
            trainer = _trainer(model, make_loader(config, store), config, store, device, path, metrics, ours)
            restore(trainer, path, config, given)
            folder.write_facts(path, facts | {"config": flags.stored(config)})
            _introduce(config, store, model, device, path)
            train(trainer)
            progress = trainer.progress
        report.finish(model, progress, config, store, device, path, metrics)
    return path


@contextlib.contextmanager
def going_on(config: Any, given: set[str]) -> Iterator[tuple[Any, Path, dict[str, Any], Tokenizer, torch.device]]:
    """The run in `--out`, locked, checked and cleared up after a crash, to go on with: its configuration with the
    threads it uses, its folder, its facts, its tokenizer, and the device."""
    path = Path(config.out)
    folder.read_facts(path)
    with folder.writing(path):
        facts = folder.read_facts(path)
        refuse_contradictions(config, given, facts["config"], CHANGEABLE | WHERE_THE_TEXT_LIES, "--resume")
        if is_counted(config):
            refuse_useless(config, given)
        as_now = json.loads(json.dumps(flags.stored(config)))
        follow = given | ({"steps"} if "minutes" in given else set())  # minutes alone end a run that had steps
        if any(facts["config"].get(name, value) != value for name, value in as_now.items() if name not in follow):
            raise UserError(f"{path} was changed by another process just now; try again")
        check_log(config.log)
        device, _ = runtime.choose_device(config.device)
        check_backends(config, device)
        config = threads.settle(config, given, device, facts["config"])
        for name in ("base", "best", "last"):
            checkpoint.settle(path / name)
        yield config, path, facts, folder.read_tokenizer(path, facts["vocab_size"]), device


def count_to_mix(model: LanguageModel, store: Store) -> None:
    """Count the training text for a model that mixes with counts. Not stored but counted again on resume: what each
    part's counts say of the others."""
    if isinstance(model, Mixture):
        model.count(*counting_arrays(store.train))


def _told(store: Store) -> dict[str, str]:
    return {"key": store.key, "folder": store.folder.name, "name": store.meta["name"], "start": store.meta["start"]}


def train(trainer: Trainer, program: str = "train.py") -> None:
    """Train to the end. A signal, a loss that diverges, memory that is out and a disk that fails end in a message that
    says how to go on (with `program`)."""
    try:
        trainer.train()
    except runtime.Interrupted:
        with contextlib.suppress(OSError):  # the same Ctrl-C may have ended who reads this
            command = folder.resume_command(trainer.folder, program)
            print(f"saved at step {trainer.progress.step}; go on with: {command}", flush=True)
        raise
    except OSError as error:
        if not is_fault(error):
            raise
        command = folder.resume_command(trainer.folder, program)
        raise UserError(f"{fault(error)}. What was saved before is whole; go on with: {command}") from error
    except (MemoryError, RuntimeError) as error:
        if not runtime.is_out_of_memory(error):
            raise
        raise UserError(
            "out of memory; lower --batch-size (and raise --grad-accum by as much), --context or the sizes"
        ) from error


def check_sizes_to_go_on(build: Callable[[], nn.Module], config: Any, path: Path) -> None:
    """Raise UserError when the model that `build` makes has not the sizes of the checkpoint to go on from."""
    which = config.checkpoint or "last"
    with _offering_best(path) if which == "last" else contextlib.nullcontext():
        check_sizes(build, layers(config), path / which)


def restore(trainer: Trainer, path: Path, config: Config, given: set[str]) -> None:
    """Load the checkpoint to go on from: `last/`, or `best/` where the user says so (weights only)."""
    _restore(trainer, path, config)
    if "steps" in given and config.steps < trainer.progress.step:
        raise UserError(
            f"--steps {config.steps} is less than the {trainer.progress.step} that {path} has done already; give at "
            "least as many"
        )
    used, minutes = trainer.progress.elapsed / 60, config.minutes
    if "minutes" in given and minutes <= used:
        raise UserError(f"--minutes {minutes:g}, but {path} has used {used:.2g} minutes already; give more")


def _restore(trainer: Trainer, path: Path, config: Config) -> None:
    if config.checkpoint == "best":
        check_identity(path / "best", trainer.belongs_to)
        facts = load_weights(trainer.model, path / "best")
        step, loss, bits = facts["step"], facts["val_loss"], facts["val_bits_per_char"]
        trainer.progress = Progress(step=step, evaluated=step, best_step=step, best_val=loss, best_bits=bits)
        trainer.metrics.cut_back(step)
        warn(f"going on from {path / 'best'} at step {step}: optimizer and data order start anew")
        return
    if checkpoint.find(path / "last") is None and _was_never_saved(path):
        if config.init:  # the weights it started from are not in it
            raise UserError(f"{path} was stopped before its first save: start it once more, with --overwrite")
        trainer.metrics.cut_back(-1)  # nothing to go on from, so begin
        keep_frozen(trainer.model, path, trainer.belongs_to)
        return
    for which in ("last", "best"):
        check_identity(path / which, trainer.belongs_to, exact=True)
    with _offering_best(path):
        trainer.resume(path / "last")


@contextlib.contextmanager
def _offering_best(path: Path) -> Iterator[None]:
    """Inside, what is wrong with `last/` is said with the way out, where there is one."""
    try:
        yield
    except UserError as error:
        way_out = "; --checkpoint best goes on from the best weights" if checkpoint.find(path / "best") else ""
        raise UserError(f"{error}{way_out}") from error


def _was_never_saved(path: Path) -> bool:
    """Whether there is no checkpoint, or only the `best/` of the very beginning, which is saved just before `last/`."""
    return checkpoint.find(path / "best") is None or checkpoint.load(path / "best", ())[1].get("step") == 0


def _trainer(
    model: LanguageModel,
    loader: Loader,
    config: Config,
    store: Store,
    device: torch.device,
    path: Path,
    metrics: Metrics,
    ours: dict[str, Any],
) -> Trainer:
    runtime.move_and_compile(model, device, config.compile)
    batches = eval_batches(store.val, config.context, config.eval_tokens, model.history)
    characters = store.tokenizer.characters()
    return Trainer(model, loader, batches, characters, config, path, device, metrics, belongs_to=ours)


def _count(
    model: LanguageModel,
    config: Config,
    store: Store,
    device: torch.device,
    path: Path,
    metrics: Metrics,
    ours: dict[str, Any],
) -> Progress:
    """Fit a model that counts: one step, and its only checkpoint is the best one and the last one."""
    started = time.perf_counter()
    inputs, targets, position = counting_arrays(store.train)
    model.fit(inputs, targets, position)
    seconds = time.perf_counter() - started
    model.to(device).eval()
    found = evaluate(
        model,
        eval_batches(store.val, config.context, config.eval_tokens, model.history),
        store.tokenizer.characters(),
        device,
    )
    progress = Progress(
        step=1, tokens=len(targets), seconds=seconds, evaluated=1, best_val=found.loss, best_bits=found.bits_per_char,
        best_step=1, val_tokens=found.n_tokens,
    )  # fmt: skip
    metrics.write({"step": 1, "train_loss": None, "val_loss": found.loss, "val_bits_per_char": found.bits_per_char,
                   "tokens": len(targets), "seconds": round(seconds, 3)})  # fmt: skip
    order = f"order {model.order}, " if hasattr(model, "order") else ""
    facts = {"step": 1, "val_loss": found.loss, "val_bits_per_char": found.bits_per_char}
    for name in ("best", "last"):
        checkpoint.save(path / name, {"model": model.state_dict()}, facts, ours)
    with contextlib.suppress(OSError):
        print(f"counted {len(targets):,} tokens in {seconds:.2f} s: {order}val {found.loss:.4f}")
    return progress


def _parent(config: Config, given: set[str]) -> Run:
    parent = load_parent(config)
    refuse_contradictions(config, given & MODEL_FIELDS, flags.stored(parent.config), set(), "--init")
    if is_counted(parent.config):
        raise UserError(f"{config.init} is a model that counts: there are no weights to start from")
    extend.check_extendable(config, parent.tokenizer)
    return parent


def _tell_of_unknown(config: Config, store: Store, tokenizer: Tokenizer) -> None:
    """Say how the vocabulary grew, or that it could."""
    if config.extend_vocabulary:
        extend.tell_added(tokenizer, store.tokenizer)
    elif (hint := extend.unknown_hint(config, tokenizer)) and store.train.tokens.has(tokenizer.special.unk):
        warn(hint)


def _introduce(config: Config, store: Store, model: LanguageModel, device: torch.device, path: Path) -> None:
    size = "counts" if is_counted(config) else f"{count_parameters(model):,} parameters"
    rows = "" if store.train.offsets is None else f" in {len(store.train.offsets) - 1:,} {store.kind}"
    print(
        f"{config.model} ({size}) on {store.meta['name']}: {len(store.train.tokens):,} training tokens{rows}, "
        f"{len(store.val.tokens):,} for validation, {store.tokenizer.vocab_size} ids\n"
        f"on {device}, run directory {path}",
        flush=True,
    )
