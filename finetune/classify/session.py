"""What `finetune.classify` does: from examples to a trained classifier and its report, and going on with one."""

import dataclasses
import shlex
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch

from data.errors import UserError
from data.rows import Row
from data.terminal import show
from data.tokenizers import Tokenizer
from engine import session
from engine.config import flags
from engine.registry import build_model
from engine.run import folder, report
from engine.run.identity import identity
from engine.run.weights import keep_frozen, load_best
from engine.training.extend import load_extended
from engine.training.trainer import Trainer
from finetune.classify import baselines, measure
from finetune.classify.build import build_classifier, class_weights
from finetune.classify.classifier import Classifier
from finetune.classify.labeller import probabilities, read_classifier_facts
from finetune.classify.options import ClassifyConfig, rarity_power
from finetune.classify.task import Task, encode_task, read_task
from finetune.start import begin, tokenizer_for, trainer_of_rows
from makemore.base import LanguageModel

PROGRAM = "-m finetune.classify"
LONGEST = 256  # tokens of a text that are read unless --context says otherwise


def start_run(config: ClassifyConfig, given: set[str]) -> int:
    """A new run, from examples to the report."""
    config, device, start = begin(config, given)
    parent = start and start.model
    task = read_task(config)
    tokenizer = tokenizer_for(config, [e.text for e in task.sides["train"]], start)
    config = settled(config, given, task, tokenizer, parent)
    rows = encode_task(task, tokenizer, config)
    torch.manual_seed(config.seed)
    body = build_model(config, tokenizer.vocab_size, tokenizer.special)
    if parent:
        load_extended(body, parent)
    model = build_classifier(config, body, _class_weights(config, task))
    with create(config, task, tokenizer) as path:
        trainer = _trainer(model, rows, task, config, tokenizer, device, path)
        keep_frozen(model, path, trainer.belongs_to)
        return _finish(trainer, rows, task, config, tokenizer)


def resume_run(config: ClassifyConfig, given: set[str]) -> int:
    """Go on with the run in `--out`, exactly where its `last/` was saved."""
    with session.going_on(config, given) as (config, path, facts, tokenizer, device):
        read_classifier_facts(path)
        task = read_task(config)
        if task.key != facts["data"]["key"]:
            raise UserError(f"the examples of {config.data} have changed since the run began; start a new run")
        torch.manual_seed(config.seed)
        weights = _class_weights(config, task)
        session.check_sizes_to_go_on(lambda: _build(config, tokenizer, weights), config, path)
        model = _build(config, tokenizer, weights)
        rows = encode_task(task, tokenizer, config)
        trainer = _trainer(model, rows, task, config, tokenizer, device, path)
        session.restore(trainer, path, config, given)
        folder.write_facts(path, facts | {"config": flags.stored(config)})
        return _finish(trainer, rows, task, config, tokenizer)


def _build(config: ClassifyConfig, tokenizer: Tokenizer, weights: torch.Tensor) -> Classifier:
    body = build_model(config, tokenizer.vocab_size, tokenizer.special)
    return build_classifier(config, body, weights)


def settled(
    config: ClassifyConfig, given: set[str], task: Task, tokenizer: Tokenizer, parent: LanguageModel | None
) -> ClassifyConfig:
    """With the defaults that follow the data: n-grams where the model starts from nothing, and how many tokens of a
    text are read, what was asked for or the longest training text, but never more than the model takes."""
    if config.ngrams is None:
        config = dataclasses.replace(config, ngrams=4 if parent is None else 0)
    if parent is not None and parent.context is not None:
        return dataclasses.replace(config, context=parent.context)
    longest = max(len(tokenizer.encode(e.text, "mask")) for e in task.sides["train"]) + 1
    asked = config.context if parent is None or "context" in given else None
    return dataclasses.replace(config, context=asked or min(longest, LONGEST))


def create(config: ClassifyConfig, task: Task, tokenizer: Tokenizer) -> AbstractContextManager[Path]:
    """The run directory, locked, with all that labelling needs."""
    data = {"key": task.key, "folder": "", "name": task.name, "start": ""}
    return folder.create(
        config.out, config.overwrite, flags.stored(config), tokenizer, data, classify={"labels": task.labels}
    )


def _trainer(
    model: Classifier,
    rows: dict[str, list[Row]],
    task: Task,
    config: ClassifyConfig,
    tokenizer: Tokenizer,
    device: torch.device,
    path: Path,
) -> Trainer:
    pad, actual = tokenizer.special.pad, task.numbers("val")

    def judge() -> dict[str, float]:
        predicted = probabilities(model, rows["val"], pad, device).argmax(1)
        found = measure.measure(predicted, actual, task.labels)
        return {"val_accuracy": found["accuracy"], "val_macro_f1": found["macro_f1"]}

    sizes = ", ".join(f"{len(examples):,} {side}" for side, examples in task.sides.items())
    what = f"{task.name}: {sizes}, {len(task.labels)} classes"
    no_text = np.zeros(len(task.labels), np.int64)  # a label has no characters
    ours = identity(folder.read_facts(path), tokenizer)
    return trainer_of_rows(model, rows, pad, what, no_text, config, path, device, judge, ours)


def _finish(
    trainer: Trainer, rows: dict[str, list[Row]], task: Task, config: ClassifyConfig, tokenizer: Tokenizer
) -> int:
    session.train(trainer, PROGRAM)
    path, model, pad = trainer.folder, trainer.model, tokenizer.special.pad
    load_best(model, path, trainer.progress.best_step)
    summary = report.describe(model, trainer.progress, config) | {"labels": task.labels}
    for side in ("val", "test"):
        predicted = probabilities(model, rows[side], pad, trainer.device).argmax(1)
        summary[side] = measure.measure(predicted, task.numbers(side), task.labels)
    summary["baselines"] = None
    report.write_summary(path, summary)  # the run is whole: whoever stops what follows loses the baselines alone
    report.draw_loss(trainer.metrics, path)
    measure.draw_confusion(summary["test"], path / "confusion.png")
    show(f"\n{measure.table(summary['test'])}\n\n{baselines.line('this model', summary['test'])}", flush=True)
    summary["baselines"] = baselines.measure_baselines(task, trainer.progress.seconds)
    report.write_summary(path, summary)
    for name, found in summary["baselines"].items():
        print(baselines.line(name, found))
    print(
        f"\non {len(rows['test']):,} test examples, best weights of step {summary['best_step']}; confusion matrix in "
        f"{path / 'confusion.png'}\nlabel a text: python {PROGRAM} --out {shlex.quote(str(path))} --predict 'a text'"
    )
    return 0


def _class_weights(config: ClassifyConfig, task: Task) -> torch.Tensor:
    return class_weights(rarity_power(config.class_weights), task.numbers("train"), len(task.labels))
