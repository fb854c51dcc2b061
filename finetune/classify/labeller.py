"""A trained classifier at work: loading it, labelling texts, measuring it on labelled ones."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.errors import UserError, flag, warn
from data.examples import Columns, read_examples
from data.labelled import several
from data.program import command
from data.reading import file_or_text, read_chunks, read_lines
from data.rows import Row, by_length, collate
from data.terminal import show
from data.tokenizers import Tokenizer
from engine import runtime, threads
from engine.backends import check_backends
from engine.config import flags
from engine.config.settings import replace
from engine.evaluate import in_evaluation_mode
from engine.registry import build_model, layers
from engine.run import folder
from engine.run.identity import check_identity, identity
from engine.run.weights import check_sizes, load_weights
from finetune.classify import measure
from finetune.classify.build import build_classifier
from finetune.classify.classifier import Classifier
from finetune.classify.examples import Labelled, encode, read_labelled
from finetune.classify.options import USE_FLAGS, ClassifyConfig
from finetune.task import UNKNOWN_ALLOWED, backends_of, refuse_edited, refuse_useless_here


@dataclasses.dataclass
class Labeller:
    """A trained classifier in memory."""

    model: Classifier
    tokenizer: Tokenizer
    config: ClassifyConfig
    labels: list[str]
    device: torch.device

    @property
    def thresholds(self) -> np.ndarray | None:
        """The least probability of each label, (labels,), for a text to have it; None where a text has one label."""
        return thresholds_of(self.model)

    def answer(self, p: np.ndarray) -> dict[str, str | list[str]]:
        """What a text with these probabilities (labels,) is said to have: its `label`, or the `labels` that reach their
        thresholds, the most probable first."""
        ordered, thresholds = np.argsort(-p, kind="stable"), self.thresholds
        if thresholds is None:
            return {"label": self.labels[ordered[0]]}
        return {"labels": [self.labels[n] for n in ordered if p[n] >= thresholds[n]]}

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Probabilities (texts, classes), in the order of `labels`. Warns of texts that are cut."""
        rows, cut, unknown = encode(texts, self.tokenizer, self.config.net.context)
        if cut:
            warn(f"{cut:,} of {len(texts):,} texts are longer than {self.config.net.context} tokens: cut")
        if unknown > UNKNOWN_ALLOWED * sum(map(len, texts)):
            hint = self.tokenizer.other_form("\n".join(texts)) or "expect little"
            warn(f"{unknown:,} of {sum(map(len, texts)):,} characters are not in the vocabulary: {hint}")
        return probabilities(self.model, rows, self.tokenizer.special.pad, self.device)


def load_labeller(path: str | Path, which: str = "best", device: str = "auto", **backends: str) -> Labeller:
    """Load a run of finetune.classify. Raises UserError naming the file that is missing, damaged or foreign."""
    path = Path(path)
    facts = read_classifier_facts(path)
    labels = facts["classify"]["labels"]
    no_labels = torch.full((1, 1), -1) if facts["classify"].get("multi_label") else None  # is all that is asked for
    config = replace(flags.config_of(path, ClassifyConfig), **{"attention": "auto", "norm_kernel": "auto"} | backends)
    tokenizer = folder.read_tokenizer(path, facts["vocab_size"])
    chosen, _ = runtime.choose_device(device)
    check_backends(config, chosen)

    def build() -> Classifier:
        body = build_model(config, tokenizer.vocab_size, tokenizer.special)
        return build_classifier(config, body, torch.ones(len(labels)), no_labels)

    check_identity(path / which, identity(facts, tokenizer))
    check_sizes(build, layers(config), path / which)
    model = build()
    load_weights(model, path / which)
    return Labeller(model.to(chosen).eval(), tokenizer, config, labels, chosen)


def read_classifier_facts(path: Path) -> dict[str, Any]:
    """The facts of a classifier's run. Raises UserError for another kind of run."""
    facts = folder.read_facts(path)
    about = facts["classify"] if isinstance(facts.get("classify"), dict) else {}
    labels, fewest = about.get("labels"), 1 if about.get("multi_label") else 2
    if not isinstance(labels, list) or len(labels) < fewest or not all(isinstance(label, str) for label in labels):
        raise UserError(
            f"{path} is not a run of {command(ClassifyConfig.program)}; start one from it with --init {path}"
        )
    return facts


def thresholds_of(model: Classifier) -> np.ndarray | None:
    """As of a `Labeller`."""
    return None if model.thresholds is None else model.thresholds.cpu().numpy()


def probabilities(model: Classifier, rows: list[Row], pad: int, device: torch.device) -> np.ndarray:
    """The probability of each class for each row, (rows, n_classes), the model in evaluation mode meanwhile."""
    found = np.zeros((len(rows), model.head.out_features), np.float32)
    with in_evaluation_mode(model):
        for numbers in by_length(rows):
            batch = collate([rows[i] for i in numbers], pad).to(device)
            logits = model(batch.tokens, batch.targets).logits
            found[numbers] = model.probabilities(logits.float()).cpu().numpy()
    return found


def predict(config: ClassifyConfig, explicit: set[str]) -> int:
    """`--predict`: one JSON line for each text, as soon as it is read."""
    labeller = _labeller(config, explicit, {"predict"})
    for text in _texts(config):
        (p,) = labeller([text])
        ordered = sorted(zip(labeller.labels, p.tolist(), strict=True), key=lambda pair: -pair[1])
        probabilities = {label: round(q, 6) for label, q in ordered}
        show(json.dumps({"text": text, **labeller.answer(p), "probabilities": probabilities}), flush=True)
    return 0


def evaluate(config: ClassifyConfig, explicit: set[str]) -> dict[str, Any]:
    """What `--eval-only` says: of the run's own test examples, or of all of the given data."""
    labeller = _labeller(config, explicit, {"eval_only", "data", "text_column", "label_column", "label_separator"})
    if "data" in explicit:
        text = config.text
        columns = Columns(text.text_column, text.label_column)
        path = config.run.path
        labelled = given_examples(labeller, path, text.data, columns, text.encoding, text.label_separator)
    else:
        if useless := sorted(explicit & {"text_column", "label_column", "label_separator", "encoding"}):
            raise UserError(f"{flag(useless[0])} goes with --data here")
        labelled = own_examples(labeller, config.run.path)
    examples = labelled.sides["test"]
    p = labeller([e.text for e in examples])
    return {
        "data": labelled.name, "examples": len(examples),
        **measure.measure_side(p, labelled, "test", labeller.thresholds),
    }  # fmt: skip


def own_examples(labeller: Labeller, path: Path) -> Labelled:
    """The examples of the run in `path`, whose labeller this is. Raises UserError where they have changed since."""
    labelled = read_labelled(labeller.config)
    refuse_edited(labeller.config, labelled.key, read_classifier_facts(path), "name some with --data")
    return labelled


def given_examples(
    labeller: Labeller, path: Path, data: str, columns: Columns, encoding: str, separator: str | None = None
) -> Labelled:
    """The examples of `data`, as the test side, for the run in `path`, whose labeller this is; texts of a run with
    several labels may have one without a list.

    Raises UserError for labels that the run does not know, and for lists where a text has one label."""
    is_multi = labeller.thresholds is not None
    name, examples = read_examples(data, columns, encoding, separator or labeller.config.text.label_separator)
    if is_multi:
        examples = several.as_lists(examples)
    elif lists := [e for e in examples if e.labels is not None]:
        raise UserError(f"{lists[0].where} has a list of labels; a text of {path} has one label")
    foreign = sorted({label for e in examples for label in e.labels or (e.label,)} - set(labeller.labels) - {""})
    if foreign:
        where = next(e.where for e in examples if foreign[0] in (e.label, *(e.labels or ())))
        raise UserError(
            f"{where} has the label '{foreign[0]}', which training never saw; it knows: {', '.join(labeller.labels)}"
        )
    return Labelled(name, labeller.labels, {"test": examples}, key="", is_multi=is_multi)


def _labeller(config: ClassifyConfig, explicit: set[str], mode: set[str]) -> Labeller:
    refuse_useless_here(explicit, USE_FLAGS | mode | {"out"})
    threads.use(config.machine.threads if "threads" in explicit else None)
    return load_labeller(
        config.run.path, config.run.checkpoint or "best", config.machine.device, **backends_of(config, explicit)
    )


def _texts(config: ClassifyConfig) -> Iterator[str]:
    wanted = config.run.predict
    assert wanted is not None
    if wanted == "-":
        for n, line in enumerate(sys.stdin.buffer, 1):
            try:
                text = line.decode(config.text.encoding).rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(f"standard input is not {config.text.encoding}: line {n}; see --encoding") from error
            yield from filter(str.strip, text.split("\r"))  # a "\r" alone is a line end too
        return
    file, text = file_or_text(wanted)
    if file is not None:
        yield from read_lines(read_chunks([file], config.text.encoding))
    else:
        yield text
