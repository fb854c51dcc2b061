"""A run with rounded weights, as a run directory of its own: smaller on the disk, and read wherever a run is."""

from pathlib import Path
from typing import Any

from data.errors import UserError
from data.program import recorded
from data.store import Store
from engine.config.settings import replace
from engine.pretraining import store_to_evaluate, validation_loss
from engine.run import checkpoint, folder, results
from engine.run.folder import command_of, read_facts, task_of
from engine.run.identity import identity
from engine.run.quantised import dequantise, quantise
from engine.run.run import Run
from engine.training.progress import Evaluation


def save(run: Run, kind: str, path: Path, data: str | None) -> str:
    """Write the run `path`, its weights rounded as `kind` says, one of KINDS; what it cost, as a table. The loss is
    measured on the run's own validation text, or on that of the text `data`.

    Raises UserError for what is no run directory, or has rounded weights already."""
    if "weights" in run.facts:
        raise UserError(f"{run.folder} is rounded to {run.facts['weights']}: take the run that it was made from")
    try:
        facts = read_facts(run.folder)
    except UserError as error:  # gpt2:PATH
        raise UserError(
            f"{run.folder} is no run directory, and --to {kind} writes one: start a run with --init"
        ) from error
    store, why_not = _text(run, facts, data)
    before = validation_loss(run, store, run.config) if store else None
    rounded = quantise(run.model.state_dict(), kind, run.tokenizer.vocab_size)
    size = sum(tensor.nbytes for tensor in run.model.state_dict().values())
    run.model.load_state_dict(dequantise(rounded, path))
    after = validation_loss(run, store, run.config) if store else None
    _write(run, facts, rounded, kind, path, after if data is None else None)
    rows = [("float32", size, before, ""), (kind, _size(path), after, _change(before, after))]
    lines = [f"{'weights':8}{'bytes':>14}{'loss':>10}{'change':>10}"]
    lines += [f"{name:8}{n:14,}{_loss(loss):>10}{change:>10}" for name, n, loss, change in rows]
    return "\n".join([*lines, *why_not, f"wrote {path}: {folder.sample_command(path)}"])


def _write(
    run: Run, facts: dict[str, Any], rounded: dict[str, Any], kind: str, path: Path, loss: Evaluation | None
) -> None:
    """The run directory: the settings, text and task of the run, and a `best/` alone. `loss` on the run's own text."""
    task = task_of(facts)
    said = {} if task is None else {task: facts[task]}
    measured = {"val_loss": loss and loss.loss, "val_bits_per_char": loss and loss.bits_per_char}
    with folder.create(
        str(path), False, facts["config"], run.tokenizer, facts["data"], recorded("export"), can_resume=False, **said
    ):
        belongs_to = identity(read_facts(path), run.tokenizer)
        about = run.facts | measured | {"weights": kind}
        checkpoint.save(path / "best", {"model": rounded}, about, belongs_to)
        results.write_summary(path, results.read_summary(run.folder) | measured)


def _text(run: Run, facts: dict[str, Any], data: str | None) -> tuple[Store | None, list[str]]:
    """The text to measure the loss on; without one, why not."""
    advice = "--data TEXT measures it on the validation part of another text"
    if data is not None:
        return store_to_evaluate(replace(run.config, data=data), {"data"}, facts, run), []
    if task_of(facts) is not None:
        return None, [f"not measured: the loss, which is another one for a run of {command_of(facts)}; {advice}"]
    try:
        return store_to_evaluate(run.config, set(), facts, run), []
    except UserError as error:
        return None, [f"not measured: the loss, since the run's text is not there ({error}); {advice}"]


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path / "best").glob("model*.safetensors"))


def _loss(loss: Evaluation | None) -> str:
    return "-" if loss is None else f"{loss.loss:.4f}"


def _change(before: Evaluation | None, after: Evaluation | None) -> str:
    return f"{round(after.loss - before.loss, 4) + 0.0:+.4f}" if before and after else "-"  # no -0.0000
