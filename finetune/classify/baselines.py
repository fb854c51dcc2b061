"""Two classifiers to set a trained one beside: the most frequent class, and logistic regression over n-grams."""

import math
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.classify.classifier import multi_hot
from finetune.classify.examples import Labelled
from finetune.classify.measure import HEADLINES, headlines, measure
from finetune.classify.multi_label import choose_thresholds, measure_sets

NGRAMS = range(1, 5)
BUCKETS = 1 << 18
MAX_BYTES = 500_000_000  # of the regression's weights and of all that L-BFGS keeps of them ...
COPIES = 40  # ... which is at its peak so many times their size, as measured
LOGITS = 1 << 20  # computed at a time
MIN_SECONDS = 10.0  # that the regression may take after however short a training
TIMES_TRAINING = 2


class TookTooLong(Exception):
    """The regression was not done by its deadline."""


def measure_baselines(
    task: Labelled, seconds_of_training: float, with_ngrams: bool = True
) -> dict[str, dict[str, Any]]:
    """How well each baseline does on the test side, by name: its `headlines`. The regression, which is announced, may
    take twice as long as the training did, and at least `MIN_SECONDS`; where it is left out it has the reason alone,
    as `left_out`."""
    seconds = max(MIN_SECONDS, TIMES_TRAINING * seconds_of_training)
    found: dict[str, dict[str, Any]] = {"majority": _majority(task)}
    if not with_ngrams:
        return found | {"character n-grams": {"left_out": "--no-baseline"}}
    print(f"measuring the n-gram baseline, at most {seconds:.0f} s; all else is written (--no-baseline leaves it out)")
    try:
        found["character n-grams"] = _ngrams_of(task, time.perf_counter() + seconds)
    except TookTooLong:
        found["character n-grams"] = {"left_out": f"it took longer than {seconds:.0f} s"}
    return found


def majority(train: np.ndarray, test: np.ndarray, n_classes: int) -> np.ndarray:
    """Always the class that is most frequent in training."""
    return np.full(len(test), np.bincount(train, minlength=n_classes).argmax())


def ngram_baseline(
    texts: list[str], labels: np.ndarray, others: list[str], n_classes: int, deadline: float = math.inf
) -> tuple[np.ndarray, dict[str, int]]:
    """Classes of `others` under logistic regression over the characters' 1- to 4-grams, TF-IDF weighted: what anybody
    tries first. `labels` (len(texts),). The rest as in `ngram_logits`."""
    parts, note = ngram_logits(texts, labels, others, n_classes, deadline)
    return torch.cat([logits.argmax(1) for logits in parts]).numpy(), note


def ngram_logits(
    texts: list[str], labels: np.ndarray, others: list[str], n_classes: int, deadline: float = math.inf
) -> tuple[Iterator[Tensor], dict[str, int]]:
    """The logits of `others`, a part of the texts at a time, (part, n_classes). `labels` (len(texts),), or (len(texts),
    n) where a text has several, or fewer, and -1 in their place: then the regression is one for each class against the
    rest.

    The weights have a row for each n-gram of `texts`; where that takes more than `MAX_BYTES`, for those that occur in
    the most texts, and the second result says how many these are and of how many. Raises TookTooLong once
    `time.perf_counter()` is past `deadline`."""
    counts = [_ngrams(text, deadline) for text in texts]
    frequency = np.bincount(np.concatenate([found.buckets for found in counts]), minlength=BUCKETS)
    occurring = np.flatnonzero(frequency)
    idf = np.ones(BUCKETS, np.float32)
    idf[occurring] = np.log((1 + len(texts)) / (1 + frequency[occurring])) + 1
    room = max(1, MAX_BYTES // (4 * COPIES * n_classes))
    kept = occurring[np.argsort(-frequency[occurring], kind="stable")[:room]]
    row = np.full(BUCKETS, -1)
    row[kept] = np.arange(len(kept))
    step = max(1, LOGITS // n_classes)
    parts = [slice(start, start + step) for start in range(0, max(len(texts), len(others)), step)]
    batches = [(_bags(counts[part], idf, row), torch.from_numpy(labels[part])) for part in parts if counts[part]]
    logits = _fit(batches, len(kept), n_classes, deadline)
    found = [_bags([_ngrams(text, deadline) for text in others[part]], idf, row) for part in parts if others[part]]
    note = {} if len(kept) == len(occurring) else {"ngrams": len(kept), "of_ngrams": len(occurring)}
    return map(logits, found), note


def line(name: str, found: dict[str, Any]) -> str:
    """What the report says of a baseline, or of the model."""
    if "left_out" in found:
        return f"{name:18} left out: {found['left_out']}"
    some = f"  (the {found['ngrams']:,} most frequent of {found['of_ngrams']:,} n-grams)" if "ngrams" in found else ""
    scores = "  ".join(f"{HEADLINES[key]} {value:.4f}" for key, value in headlines(found).items())
    return f"{name:18} {scores}{some}"


class _Counts(NamedTuple):
    """The n-grams of one text: their buckets (n,) and how often each occurs (n,)."""

    buckets: np.ndarray
    counts: np.ndarray


class _Bags(NamedTuple):
    """What `embedding_bag` takes: rows of all texts in turn (n,), where each text begins (texts,), and weights (n,)."""

    rows: Tensor
    starts: Tensor
    weights: Tensor


def _majority(task: Labelled) -> dict[str, Any]:
    """Of the most frequent class, or set of labels."""
    train, test = task.numbers("train"), task.numbers("test")
    if not task.is_multi:
        return headlines(measure(majority(train, test, len(task.labels)), test, task.labels))
    predicted = task.are_labels(task.label_sets[majority(train, test, len(task.label_sets))])
    return headlines(measure_sets(predicted, task.has_label("test"), task.labels, np.full(len(task.labels), 0.5)))


def _ngrams_of(task: Labelled, deadline: float) -> dict[str, Any]:
    """Of the regression, with thresholds chosen as those of the model are."""
    texts = {side: [example.text for example in examples] for side, examples in task.sides.items()}
    numbers, n = task.numbers("train"), len(task.labels)
    if not task.is_multi:
        predicted, note = ngram_baseline(texts["train"], numbers, texts["test"], n, deadline)
        return headlines(measure(predicted, task.numbers("test"), task.labels)) | note
    others = texts["val"] + texts["test"]
    parts, note = ngram_logits(texts["train"], task.label_sets[numbers], others, n, deadline)
    val, test = np.split(np.concatenate([logits.sigmoid().numpy() for logits in parts]), [len(texts["val"])])
    thresholds = choose_thresholds(val, task.has_label("val"))
    return headlines(measure_sets(test, task.has_label("test"), task.labels, thresholds)) | note


def _ngrams(text: str, deadline: float) -> _Counts:
    if time.perf_counter() > deadline:
        raise TookTooLong
    text = f" {text} "
    grams = (text[i : i + n].encode("utf-8", "surrogatepass") for n in NGRAMS for i in range(len(text) - n + 1))
    found = Counter(zlib.crc32(gram) % BUCKETS for gram in grams)  # Python's own hash is another in every process
    return _Counts(np.fromiter(found, np.int32, len(found)), np.fromiter(found.values(), np.int32, len(found)))


def _bags(texts: list[_Counts], idf: np.ndarray, row: np.ndarray) -> _Bags:
    """The TF-IDF weights of each text, of norm 1 together, at those of its n-grams that have a row."""
    buckets = np.concatenate([found.buckets for found in texts])
    weights = ((1 + np.log(np.concatenate([found.counts for found in texts]))) * idf[buckets]).astype(np.float32)
    text = np.repeat(np.arange(len(texts)), [len(found.buckets) for found in texts])
    weights /= np.sqrt(np.bincount(text, np.square(weights), len(texts))).astype(np.float32)[text]
    there = row[buckets] >= 0
    lengths = np.bincount(text[there], minlength=len(texts))
    starts = np.concatenate([[0], lengths.cumsum()[:-1]])
    return _Bags(*(torch.from_numpy(part) for part in (row[buckets[there]], starts, weights[there])))


def _fit(
    batches: list[tuple[_Bags, Tensor]], n_rows: int, n_classes: int, deadline: float
) -> Callable[[_Bags], Tensor]:
    """Logistic regression on texts and their classes, as in `ngram_logits`: a function from bags to logits (texts,
    n_classes)."""
    weight, bias = nn.Parameter(torch.zeros(n_rows, n_classes)), nn.Parameter(torch.zeros(n_classes))
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=60, history_size=5, line_search_fn="strong_wolfe")

    def logits(bags: _Bags) -> Tensor:
        return F.embedding_bag(bags.rows, weight, bags.starts, mode="sum", per_sample_weights=bags.weights) + bias

    def nll(given: Tensor, y: Tensor) -> Tensor:
        if y.ndim == 1:
            return F.cross_entropy(given, y, reduction="sum")
        has_label = multi_hot(y, n_classes).type_as(given)
        return F.binary_cross_entropy_with_logits(given, has_label, reduction="sum")

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = 0.05 * weight.square().sum()
        total.backward()
        for x, y in batches:
            if time.perf_counter() > deadline:
                raise TookTooLong
            value = nll(logits(x), y)
            value.backward()
            total = total.detach() + value.detach()
        return total

    optimizer.step(loss)
    return torch.no_grad()(logits)
