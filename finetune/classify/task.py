"""The classification task: from labelled examples to a trained classifier and its report."""

import shlex
from typing import Any

import numpy as np
import torch

from data.errors import UserError
from data.program import command
from data.rows import Row
from data.terminal import show
from data.tokenizers import Tokenizer
from engine.config.settings import replace
from engine.registry import build_model
from engine.run import results
from engine.run.load import Run
from engine.run.weights import load_best
from engine.task import Batches, Session
from engine.training.extend import load_extended
from engine.training.progress import Progress
from finetune.classify import baselines, labeller, measure
from finetune.classify.augment import AugmentedLoader
from finetune.classify.build import build_classifier, class_weights
from finetune.classify.classifier import Classifier
from finetune.classify.examples import ClassifierData, Labelled, encode, encode_sides, read_labelled
from finetune.classify.multi_label import choose_thresholds
from finetune.classify.options import ClassifyConfig, rarity_power
from finetune.task import FineTuning, refuse_edited, tokenizer_for
from makemore.base import LanguageModel, count_parameters

LONGEST = 256  # tokens of a text that are read unless --context says otherwise


class Classification(FineTuning):
    """Its data is a `ClassifierData`."""

    def read(
        self, config: ClassifyConfig, explicit: set[str], parent: Run | None
    ) -> tuple[ClassifyConfig, ClassifierData]:
        labelled = read_labelled(config)
        if labelled.is_multi and config.net.z_loss:
            raise UserError("--z-loss is for a softmax over the classes; where a text has several labels there is none")
        config, tokenizer = tokenizer_for(config, explicit, [e.text for e in labelled.sides["train"]], parent)
        config = settled(config, explicit, labelled, tokenizer, parent.model if parent else None)
        return config, encode_sides(labelled, tokenizer, config)

    def read_again(
        self, config: ClassifyConfig, explicit: set[str], facts: dict[str, Any], tokenizer: Tokenizer
    ) -> ClassifierData:
        labeller.read_classifier_facts(config.run.path)
        labelled = read_labelled(config)
        refuse_edited(config, labelled.key, facts, "start a new run")
        return encode_sides(labelled, tokenizer, config)

    def build(self, config: ClassifyConfig, data: ClassifierData, parent: Run | None = None) -> Classifier:
        body = build_model(config, data.tokenizer.vocab_size, data.tokenizer.special)
        if parent:
            load_extended(body, parent.model)
        labelled, power = data.labelled, rarity_power(config.tuning.class_weights)
        assert power is not None  # `ClassifyConfig.check`
        numbers, label_sets = labelled.numbers("train"), None
        if labelled.is_multi:
            label_sets, sets = torch.from_numpy(labelled.label_sets), labelled.label_sets[numbers]
            numbers = sets[sets >= 0]
        return build_classifier(config, body, class_weights(power, numbers, len(labelled.labels)), label_sets)

    def batches(self, config: Any, data: ClassifierData, model: Any) -> Batches:
        batches = super().batches(config, data, model)
        if not (rate := config.tuning.augment):
            return batches
        labelled, tokenizer, context = data.labelled, data.tokenizer, config.net.context
        numbers, texts = labelled.numbers("train"), [example.text for example in labelled.sides["train"]]

        def read(text: str, item: int) -> Row:
            return encode([text], tokenizer, context, numbers[item : item + 1])[0][0]

        loader = AugmentedLoader(
            data.rows["train"], texts, rate, read, config.optim.batch_size, config.run.seed, tokenizer.special.pad,
            context,
        )  # fmt: skip
        return batches._replace(train=loader)

    def characters(self, config: ClassifyConfig, data: ClassifierData) -> np.ndarray:
        labelled = data.labelled
        targets = len(labelled.label_sets if labelled.is_multi else labelled.labels)
        return np.zeros(targets, np.int64)  # a label has no characters

    def facts(self, config: ClassifyConfig, data: ClassifierData) -> dict[str, Any]:
        return {"labels": data.labelled.labels} | ({"multi_label": True} if data.labelled.is_multi else {})

    def extra_metrics(self, session: Session) -> dict[str, float]:
        """Of texts with several labels with the thresholds that are best there: these are chosen here, before the
        weights are saved, and go with them."""
        p, labelled, model = _probabilities(session, "val"), session.data.labelled, session.model
        if labelled.is_multi:
            model.thresholds.copy_(torch.from_numpy(choose_thresholds(p, labelled.has_label("val"))))
        scores = measure.measure_side(p, labelled, "val", labeller.thresholds_of(model))
        return {f"val_{name}": value for name, value in measure.headlines(scores).items()}

    def finish(self, session: Session, progress: Progress) -> None:
        path, labelled = session.folder, session.data.labelled
        load_best(session.model, path, progress.best_step)
        summary = results.describe(session.config.model, count_parameters(session.model), progress)
        summary |= results.of_memory(session.device)
        summary["labels"] = labelled.labels
        summary |= {side: _scores(session, side) for side in ("val", "test")} | {"baselines": None}
        results.write_summary(path, summary)  # whoever stops what follows loses the report alone
        results.draw_loss(session.metrics, path)
        if not labelled.is_multi:
            measure.draw_confusion(summary["test"], path / "confusion.png")
        show(f"\n{measure.table(summary['test'])}\n\n{baselines.line('this model', summary['test'])}", flush=True)
        summary["baselines"] = baselines.measure_baselines(
            labelled, progress.seconds, with_ngrams=session.config.run.baseline
        )
        results.write_summary(path, summary)
        for name, scores in summary["baselines"].items():
            print(baselines.line(name, scores))
        picture = f"confusion matrix in {path / 'confusion.png'}"
        if labelled.is_multi:
            picture = "the thresholds are those of the best F1 on the validation examples"
        print(
            f"\non {len(session.data.rows['test']):,} test examples, best weights of step {summary['best_step']}; "
            f"{picture}\n"
            f"label a text: {command(ClassifyConfig.program)} --out {shlex.quote(str(path))} --predict 'a text'"
        )

    def has_reported(self, summary: dict[str, Any]) -> bool:
        return summary.get("baselines") is not None

    def evaluate(self, config: ClassifyConfig, explicit: set[str]) -> dict[str, Any]:
        return labeller.evaluate(config, explicit)


def _probabilities(session: Session, side: str) -> np.ndarray:
    data = session.data
    return labeller.probabilities(session.model, data.rows[side], data.tokenizer.special.pad, session.device)


def _scores(session: Session, side: str) -> dict[str, Any]:
    p, thresholds = _probabilities(session, side), labeller.thresholds_of(session.model)
    return measure.measure_side(p, session.data.labelled, side, thresholds)


def settled(
    config: ClassifyConfig, explicit: set[str], labelled: Labelled, tokenizer: Tokenizer, parent: LanguageModel | None
) -> ClassifyConfig:
    """With the defaults that follow the data. N-grams: 4 from nothing, 0 with `--init`. Context: the parent's where it
    has one, else what was asked for, else the longest training text, at most `LONGEST`."""
    if config.tuning.ngrams is None:
        config = replace(config, ngrams=4 if parent is None else 0)
    if parent is not None and parent.context is not None:
        return replace(config, context=parent.context)
    longest = max(len(tokenizer.encode(e.text, "mask")) for e in labelled.sides["train"]) + 1
    asked = config.net.context if parent is None or "context" in explicit else None
    return replace(config, context=asked or min(longest, LONGEST))
