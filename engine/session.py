"""What `train.py` does: start a run, go on with one, or evaluate one; and end it with samples, summary and picture."""

import contextlib
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch

from data.batches import LaneLoader, LineLoader, Loader, StreamLoader, counting_arrays, eval_batches, longest_line
from data.errors import UserError, warn
from data.prepare import VAL_FRACTION, prepare, read_notes
from data.sources import cache_folder
from data.store import Store, open_store
from data.tokenizers import Tokenizer
from engine import checkpoint, flags, folder, presets, report, runtime
from engine.checks import refuse_contradictions
from engine.config import CHANGEABLE, MODEL_FIELDS, Config
from engine.evaluate import evaluate
from engine.metrics import Metrics, check_log
from engine.registry import build_model, is_counted, refuse_foreign_flags
from engine.runs import Run, load_run, load_weights
from engine.trainer import Progress, Trainer
from makemore.base import LanguageModel, count_parameters

_EVAL_ONLY_MAY_CHANGE = {"data", "val_data", "kind", "encoding", "eval_tokens", "device", "dtype"}


def run(config: Config, given: set[str]) -> int:
    """Do what the command line asks for. Returns the exit code; raises UserError."""
    if config.eval_only:
        return evaluate_run(config, given)
    path = resume_run(config, given) if config.resume else start_run(config, given)
    print(f"\nrun directory: {path}\nmore samples:  {folder.sample_command(path)}")
    return 0


def start_run(config: Config, given: set[str]) -> Path:
    """A new run, from data to summary."""
    refuse_foreign_flags(config, given)
    check_log(config.log)
    device, _ = runtime.choose_device(config.device)
    parent = _parent(config, given) if config.init else None
    store = prepare(
        config.data, val_data=config.val_data, kind=config.kind, tokenizer=config.tokenizer, encoding=config.encoding,
        vocabulary=parent.tokenizer if parent else None,
    )  # fmt: skip
    config = _with_context(config, store)
    _check_kind(config, store)
    torch.manual_seed(config.seed)
    model = build_model(config, store.tokenizer.vocab_size)
    if parent:
        model.load_state_dict(parent.model.state_dict())
    loader = None if is_counted(config) else _loader(config, store)
    path = folder.create(config.out, config.overwrite, flags.stored(config), store)
    metrics = Metrics(path, config.log, flags.stored(config))
    read_notes(store.meta["notes"] + _long_lines(config, store))
    _introduce(config, store, model, device, path)
    if loader is None:
        progress = _count(model, config, store, device, path, metrics)
    else:
        trainer = _trainer(model, loader, config, store, device, path, metrics)
        _train(trainer)
        progress = trainer.progress
    _finish(model, progress, config, store, device, path, metrics)
    return path


def resume_run(config: Config, given: set[str]) -> Path:
    """Go on with the run in `--out`, exactly where its `last/` was saved."""
    path = Path(config.out)
    facts = folder.read_facts(path)
    refuse_contradictions(config, given, facts["config"], CHANGEABLE, "--resume")
    device, _ = runtime.choose_device(config.device)
    for name in ("best", "last"):
        checkpoint.settle(path / name)
    tokenizer = folder.read_tokenizer(path)
    store = _store_of_run(config, facts, tokenizer)
    if store.tokenizer.to_json() != tokenizer.to_json():
        raise UserError(f"{path / 'tokenizer.json'} is not the tokenizer of the run's text")
    torch.manual_seed(config.seed)
    model = build_model(config, tokenizer.vocab_size)
    check_log(config.log)
    metrics = Metrics(path, config.log, flags.stored(config))
    if is_counted(config):
        _introduce(config, store, model, device, path)
        metrics.cut_back(-1)
        progress = _count(model, config, store, device, path, metrics)
    else:
        trainer = _trainer(model, _loader(config, store), config, store, device, path, metrics)
        _restore(trainer, path, config)
        folder.write_facts(path, facts | {"config": flags.stored(config)})
        _introduce(config, store, model, device, path)
        _train(trainer)
        progress = trainer.progress
    _finish(model, progress, config, store, device, path, metrics)
    return path


def evaluate_run(config: Config, given: set[str]) -> int:
    """Evaluate a run on its own validation text or on the given data, and print one JSON line."""
    path = Path(config.out)
    facts = folder.read_facts(path)
    refuse_contradictions(config, given, facts["config"], _EVAL_ONLY_MAY_CHANGE, "--eval-only")
    loaded = load_run(path, config.checkpoint or "best", config.device)
    if "data" in given and "val_data" in given:
        raise UserError("--eval-only takes --data (its validation split) or --val-data (all of it), not both")
    if given & {"data", "val_data"}:
        data, part = (config.val_data, 1) if "val_data" in given else (config.data, VAL_FRACTION)
        store = prepare(
            data, kind=config.kind, encoding=config.encoding, vocabulary=loaded.tokenizer, val_fraction=part
        )
        read_notes(store.meta["notes"])
    else:
        store = _store_of_run(config, facts, loaded.tokenizer)
    batches = eval_batches(store.val, loaded.config.context, config.eval_tokens, loaded.model.history)
    with runtime.autocast(loaded.device, runtime.choose_dtype(config.dtype, loaded.device)[0]):
        found = evaluate(loaded.model, batches, loaded.tokenizer.characters(), loaded.device)
    known = report.read_summary(path)
    summary = _summary(loaded.model, Progress(), loaded.config)
    summary |= {name: known.get(name) for name in summary if name not in ("model", "params", "peak_memory_mb")}
    summary |= {
        "val_loss": found.loss, "val_bits_per_char": found.bits_per_char, "val_tokens": found.n_tokens,
        "best_step": loaded.facts.get("step"),
    }  # fmt: skip
    print(json.dumps(summary))
    return 0


def _train(trainer: Trainer) -> None:
    try:
        trainer.train()
    except runtime.Interrupted:
        with contextlib.suppress(BrokenPipeError):  # the same Ctrl-C may have ended who reads this
            command = folder.resume_command(trainer.folder)
            print(f"saved at step {trainer.progress.step}; go on with: {command}", flush=True)
        raise
    except (MemoryError, RuntimeError) as error:
        if not runtime.is_out_of_memory(error):
            raise
        raise UserError(
            "out of memory; lower --batch-size (and raise --grad-accum by as much), --context or the sizes"
        ) from error


def _restore(trainer: Trainer, path: Path, config: Config) -> None:
    """Load the checkpoint to go on from: `last/`, or `best/` where the user says so (weights only)."""
    if config.checkpoint == "best":
        facts = load_weights(trainer.model, path / "best")
        step, loss, bits = facts["step"], facts["val_loss"], facts["val_bits_per_char"]
        trainer.progress = Progress(step=step, evaluated=step, best_step=step, best_val=loss, best_bits=bits)
        trainer.metrics.cut_back(step)
        warn(f"going on from {path / 'best'} at step {step}: optimizer and data order start anew")
        return
    if checkpoint.find(path / "last") is None and _was_never_saved(path):
        trainer.metrics.cut_back(-1)  # stopped before its first save was whole: nothing to go on from, so begin
        return
    try:
        trainer.resume(path / "last")
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
) -> Trainer:
    model.to(device)
    if runtime.choose_compile(config.compile, device)[0]:
        runtime.compile_or_warn(model)
    batches = eval_batches(store.val, config.context, config.eval_tokens)
    return Trainer(model, loader, batches, store.tokenizer.characters(), config, path, device, metrics)


def _count(
    model: LanguageModel, config: Config, store: Store, device: torch.device, path: Path, metrics: Metrics
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
    print(f"counted {len(targets):,} tokens in {seconds:.2f} s: {order}val {found.loss:.4f}")
    facts = {"step": 1, "val_loss": found.loss, "val_bits_per_char": found.bits_per_char}
    for name in ("best", "last"):
        checkpoint.save(path / name, {"model": model.state_dict()}, facts)
    return progress


def _finish(
    model: LanguageModel,
    progress: Progress,
    config: Config,
    store: Store,
    device: torch.device,
    path: Path,
    metrics: Metrics,
) -> None:
    """Samples of the best weights, summary, picture."""
    facts = load_weights(model, path / "best")
    best = Run(path, model.eval(), store.tokenizer, config, store.meta["start"], facts, device)
    text = report.samples(best, store)
    (path / "samples.txt").write_text(text + "\n", "utf-8")
    summary = _summary(model, progress, config)
    report.write_summary(path, summary)
    report.draw_loss(metrics, path)
    print(f"\n{text}\n")
    print(
        f"val loss {summary['val_loss']:.4f} ({summary['val_bits_per_char']:.3f} bits a character) at step "
        f"{summary['best_step']}; {summary['seconds']:.1f} s of training, loss curve in {path / 'loss.png'}"
    )


def _summary(model: LanguageModel, progress: Progress, config: Config) -> dict[str, Any]:
    return {
        "model": config.model,
        "params": count_parameters(model),
        "steps": progress.step,
        "tokens": progress.tokens,
        "seconds": round(progress.seconds, 3),
        "train_loss": progress.train_loss,
        "val_loss": progress.best_val,
        "val_bits_per_char": progress.best_bits,
        "val_tokens": progress.val_tokens,
        "best_step": progress.best_step,
        "tokens_per_second": round(progress.tokens / progress.seconds) if progress.seconds else 0,
        "peak_memory_mb": round(runtime.peak_memory_mb(), 1),
    }


def _parent(config: Config, given: set[str]) -> Run:
    parent = load_run(config.init, config.checkpoint or "best", "cpu")
    refuse_contradictions(config, given & MODEL_FIELDS, flags.stored(parent.config), set(), "--init")
    if is_counted(parent.config):
        raise UserError(f"{config.init} is a model that counts: there are no weights to start from")
    return parent


def _store_of_run(config: Config, facts: dict[str, Any], tokenizer: Tokenizer) -> Store:
    """The text of a run: prepared already, or prepared again and then checked to be the same."""
    kept = cache_folder() / "prepared" / facts["data"]["folder"]
    if (kept / "meta.json").is_file():
        return open_store(kept)
    store = prepare(
        config.data, val_data=config.val_data, kind=config.kind, tokenizer=config.tokenizer, encoding=config.encoding,
        vocabulary=tokenizer if config.init else None,
    )  # fmt: skip
    if store.key != facts["data"]["key"]:
        raise UserError(
            f"the text of {config.data} has changed since the run began; start a new run with --init {config.out}"
        )
    return store


def _with_context(config: Config, store: Store) -> Config:
    """Lines without a given context get one that holds the longest, within reason; everything else has one."""
    if config.context is None:
        length = (
            max(longest_line(store.train), longest_line(store.val)) if store.kind == "lines" else presets.STREAM_CONTEXT
        )
        config = dataclasses.replace(config, context=min(length, presets.LINES_CONTEXT))
    return dataclasses.replace(config, kind=store.kind)


def _check_kind(config: Config, store: Store) -> None:
    if config.carry_state and store.kind != "stream":
        raise UserError("--carry-state is for streams: lines do not go on from one to the next; use --kind stream")


def _loader(config: Config, store: Store) -> Loader:
    kind = LaneLoader if config.carry_state else StreamLoader if store.kind == "stream" else LineLoader
    return kind(store.train, config.context, config.batch_size, config.seed)


def _long_lines(config: Config, store: Store) -> list[str]:
    if store.kind != "lines":
        return []
    lengths = [split.offsets[1:] - split.offsets[:-1] for split in (store.train, store.val)]
    long = sum(int((length > config.context).sum()) for length in lengths)
    total = sum(len(length) for length in lengths)
    return (
        [f"{long:,} of {total:,} lines are longer than the context of {config.context}: cut into pieces"]
        if long
        else []
    )


def _introduce(config: Config, store: Store, model: LanguageModel, device: torch.device, path: Path) -> None:
    size = "counts" if is_counted(config) else f"{count_parameters(model):,} parameters"
    rows = "" if store.train.offsets is None else f" in {len(store.train.offsets) - 1:,} lines"
    print(
        f"{config.model} ({size}) on {store.meta['name']}: {len(store.train.tokens):,} training tokens{rows}, "
        f"{len(store.val.tokens):,} for validation, {store.tokenizer.vocab_size} ids\n"
        f"on {device}, run directory {path}",
        flush=True,
    )
