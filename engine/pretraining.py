"""The task of `train.py`: a language model of a text, by any family."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.batches import Batch, counting_arrays
from data.errors import UserError
from data.prepare import VAL_FRACTION, prepare, print_notes
from data.store import Store
from data.tables import is_table
from data.tokenizers import Tokenizer
from engine import runtime
from engine.config.checks import refuse_contradictions
from engine.config.sections import Config
from engine.config.settings import get, marked, replace, shape, stored
from engine.distributed.buffers import once_a_host
from engine.evaluate import evaluate
from engine.registry import build_model
from engine.run import folder, report, results
from engine.run.load import Run, load_parent, load_run
from engine.task import Batches, Session, Task
from engine.texts import long_lines, make_loader, prepare_text, store_of_run, validation_batches, with_context
from engine.training import extend
from engine.training.distilling import check_hash, distilled, keep_hash, load_teacher, plain
from engine.training.progress import Evaluation, Progress
from makemore.base import LanguageModel, count_parameters
from makemore.config import Mark
from makemore.counts.mixture import Mixture

_EVALUATION_MAY_CHANGE = {
    "data", "val_data", "kind", "separator", "text_column", "column", "encoding", "eval_tokens", "device", "threads",
    "dtype", *marked(Config, Mark.BACKEND),
}  # fmt: skip
_ENTRIES_OF_TRAINING = ("longest_copied", "mfu", "peak_tflops", "gpu_peak_memory_mb")  # that some summaries have


class Pretraining(Task):
    """Its data is a `Store`: a prepared text."""

    teacher: Run | None = None  # of a new run

    def parent(self, config: Config, explicit: set[str]) -> Run:
        parent = load_parent(config)
        refuse_contradictions(config, explicit & shape(Config), stored(parent.config), set(), "--init")
        if parent.config.net.is_counted:
            raise UserError(f"{config.run.init} is a model that counts: there are no weights to start from")
        extend.check_extendable(config, parent.tokenizer)
        return parent

    def read(self, config: Config, explicit: set[str], parent: Run | None) -> tuple[Config, Store]:
        if config.run.teacher:
            self.teacher = load_teacher(config)
            theirs = stored(self.teacher.config)
            vocabulary = {"tokenizer", "bpe_sample"}
            refuse_contradictions(config, explicit & vocabulary, theirs, set(), "--teacher")
            config = replace(config, **{name: theirs[name] for name in vocabulary if parent is None})
        known = parent or self.teacher  # in whose vocabulary the text is read
        store = prepare_text(config, known.tokenizer if known else None, extend=config.run.extend_vocabulary)
        if parent and config.run.extend_vocabulary:
            extend.tell_added(parent.tokenizer, store.tokenizer)
        return with_context(config, store), store

    def read_again(self, config: Config, explicit: set[str], facts: dict[str, Any], tokenizer: Tokenizer) -> Store:
        store = store_of_run(config, facts, tokenizer, explicit)
        if store.tokenizer.to_json() != tokenizer.to_json():
            raise UserError(f"{config.run.path / 'tokenizer.json'} is not the tokenizer of the run's text")
        return store

    def build(self, config: Config, data: Store, parent: Run | None = None) -> LanguageModel:
        model = build_model(config, data.tokenizer.vocab_size, data.tokenizer.special)
        if parent:
            extend.load_extended(model, parent.model)
        return model

    def trained(self, config: Config, data: Store, model: LanguageModel, folder: Path | None) -> Any:
        if isinstance(model, Mixture):  # what each part's counts say of the others is not stored but counted again
            once_a_host(model, lambda: model.count(*counting_arrays(data.train)), self.ranks)
        if config.run.teacher is None:
            return model
        teacher = self.teacher or load_teacher(config)
        if folder is not None:
            check_hash(teacher.model, folder, config)
        return distilled(config, model, teacher, data.tokenizer)

    def keep(self, session: Session) -> None:
        super().keep(session)
        if session.config.run.teacher is not None:
            keep_hash(session.model.other, session.folder)

    def batches(self, config: Config, data: Store, model: LanguageModel) -> Batches:
        def val() -> Iterator[Batch]:  # what counts knows its history only once it has counted
            return validation_batches(config, data, model.history)()

        loader = None if config.net.is_counted else make_loader(config, data, self.format)
        return Batches(loader, val, data.characters())

    def notes(self, config: Config, data: Store, parent: Run | None) -> list[str]:
        found = data.meta["notes"] + long_lines(config, data)
        if parent and not config.run.extend_vocabulary and (hint := extend.unknown_hint(config, parent.tokenizer)):
            found += [hint] if data.train.tokens.has(parent.tokenizer.special.unk) else []
        return found

    def introduce(self, session: Session) -> str:
        config, store, model = session.config, session.data, session.model
        size = "counts" if config.net.is_counted else f"{count_parameters(model):,} parameters"
        rows = "" if store.train.offsets is None else f" in {len(store.train.offsets) - 1:,} {store.kind}"
        reads = ", reading both ways" if not getattr(model, "causal", True) else ""
        return (
            f"{config.model} ({size}{reads}) on {store.meta['name']}: {len(store.train.tokens):,} training tokens"
            f"{rows}, {len(store.val.tokens):,} for validation, {store.tokenizer.vocab_size} ids"
        )

    def finish(self, session: Session, progress: Progress) -> None:
        report.finish(
            plain(session.model), progress, session.config, session.data, session.device, session.folder,
            session.metrics, self.ranks.world,
        )  # fmt: skip
        writes = plain(session.model).causal
        way_on = "more samples:  " if writes else "fill the gaps: "
        command = folder.sample_command(session.folder) + ("" if writes else " --fill 'a text with ? in it'")
        if session.data.kind == "series":
            way_on, command = "what follows:  ", folder.forecast_command(session.folder)
        print(f"\nrun directory: {session.folder}\n{way_on}{command}")

    def evaluate(self, config: Config, explicit: set[str]) -> dict[str, Any]:
        """The validation loss of the run in `--out`, on its own text or another."""
        path = config.run.path
        facts = folder.read_facts(path)
        refuse_contradictions(config, explicit, facts["config"], _EVALUATION_MAY_CHANGE, "--eval-only")
        backends = {name: get(config, name) for name in marked(Config, Mark.BACKEND) & explicit}
        run = load_run(path, config.run.checkpoint or "best", config.machine.device, of_series=True, **backends)
        store = store_to_evaluate(config, explicit, facts, run)
        loss = validation_loss(run, store, config)
        known = results.read_summary(path)
        summary = results.describe(run.config.model, count_parameters(run.model), Progress())
        summary |= {name: known.get(name) for name in summary if name not in ("model", "params", "peak_memory_mb")}
        summary |= {name: known[name] for name in _ENTRIES_OF_TRAINING if name in known}
        return summary | {
            "val_loss": loss.loss, "val_bits_per_char": loss.bits_per_char, "val_tokens": loss.n_tokens,
            "best_step": run.facts.get("step"),
        } | results.by_the_byte(store, loss.bits_per_char)  # fmt: skip


def validation_loss(run: Run, store: Store, config: Config) -> Evaluation:
    """The loss of `run` over the validation split of `store`, with the dtype and the number of tokens of `config`."""
    measured = replace(run.config, eval_tokens=config.text.eval_tokens)
    batches = validation_batches(measured, store, run.model.history)
    with runtime.autocast(run.device, runtime.choose_dtype(config.machine.dtype, run.device)[0]):
        return evaluate(run.model, batches, store.characters(), run.device)


def store_to_evaluate(config: Config, explicit: set[str], facts: dict[str, Any], run: Run) -> Store:
    """The text whose validation split `--eval-only` takes: the run's own, or the one given."""
    if not explicit & {"data", "val_data"}:
        return store_of_run(config, facts, run.tokenizer)
    if {"data", "val_data"} <= explicit:
        raise UserError("--eval-only takes --data (its validation split) or --val-data (all of it), not both")
    text = config.text
    data, part = (text.val_data, 1) if "val_data" in explicit else (text.data, VAL_FRACTION)
    if data is None:
        raise UserError("--val-data names no text; it takes one or several")
    files = map(Path, [data] if isinstance(data, str) else data)
    of_texts = text.text_column if "text_column" in explicit or all(map(is_table, files)) else None
    store = prepare(
        data, kind=text.kind, separator=text.separator, text_column=of_texts, column=text.column,
        encoding=text.encoding, vocabulary=run.tokenizer, val_fraction=part,
    )  # fmt: skip
    print_notes(store.meta["notes"])
    return store
